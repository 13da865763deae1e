"""A push carries the finished model as it is on disk, nothing that names the machine, and says so when it fails."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard
from transformers import AutoTokenizer

from hf_efficient import EfficientTrainer, EfficientTrainingArguments, HubError
from hf_efficient.hub import LOCAL, hub_id, pushed_files, remove_local_names, repository, without_paths
from tests.hub.client import logits_of
from tests.hub.process import TOKEN, assert_nothing_local, told
from tests.hub.server import Fault, Hub
from tests.test_parity import build
from tests.tiny import text_model

REPO = "me/small-model"


@pytest.fixture
def hub() -> Iterator[Hub]:
    with Hub({TOKEN: "me"}) as server:
        yield server


@pytest.mark.slow
def test_push_and_load_from_the_hub(hub: Hub, tmp_path: Path) -> None:
    pushed = told(hub, tmp_path / "pusher", "train", str(tmp_path), REPO, "again")
    files = hub.files(REPO)
    commits = hub.commits(REPO)
    assert [message for message, _ in commits] == [
        "initial commit",
        "Finished model",
        "End of training",
    ]  # nothing before the model was finished
    assert [arrived for _, arrived in commits[1:]] == [set(files)] * 2
    assert set(files) == {".gitattributes", "README.md", "config.json", "model.safetensors", "report.png"}
    assert_nothing_local(files, str(tmp_path), tmp_path.name)
    on_disk = {path.name: path.read_bytes() for path in Path(pushed["finished"]).iterdir()}
    assert {name: content for name, content in files.items() if name != ".gitattributes"} == on_disk

    card = ModelCard(files["README.md"].decode())
    assert (card.data.license, card.data.language, card.data.pipeline_tag) == ("mit", "en", "text-classification")
    assert set(card.data.tags) == {"hf-efficient", "structured_pruning", "mine"}
    assert card.data.get("base_model") is None
    assert f'from_pretrained("{REPO}")' in card.text
    assert "| Parameters |" in card.text

    loaded = told(hub, tmp_path / "loader", "load", REPO, token="")
    assert loaded["logits"] == pushed["logits"]


KEPT: dict[str, tuple[str, dict[str, Any]]] = {
    "pruned-text": ("text", {"structured_pruning": {"keep_heads": 0.5, "keep_ffn": 0.5}}),
    "pruned-tokens": ("token", {"structured_pruning": {"keep_heads": 0.5}}),
    "pruned-vision": ("vision", {"structured_pruning": {"keep_heads": 0.5, "keep_ffn": 0.5}}),
    "clustered": ("text", {"weight_fusion": {"cluster": 4}}),
    "quantized": ("text", {"quantization": {"scheme": "int4", "group_size": 8, "start": 0.25}}),
    "merged-adapter": ("text", {"adapters": {"rank": 2}}),
}


@pytest.mark.slow
def test_models_of_all_kinds_come_back_equal(hub: Hub, tmp_path: Path) -> None:
    here = {}
    (tmp_path / "models").mkdir()
    for name, (kind, optimizations) in KEPT.items():
        options = {"optimizations": optimizations, "measure_seconds": 0, "num_train_epochs": 1, "save_strategy": "no"}
        options |= {"dense_epochs": 6} if "structured_pruning" in optimizations else {}
        trainer = build(EfficientTrainer, EfficientTrainingArguments, tmp_path / "output" / name, kind, **options)
        trainer.train()
        shutil.copytree(trainer.finished, tmp_path / "models" / name)
        here[name] = logits_of(str(tmp_path / "models" / name))
    text_model().save_pretrained(tmp_path / "models" / "dense")
    here["dense"] = logits_of(str(tmp_path / "models" / "dense"))
    told(hub, tmp_path / "pusher", "push_all", str(tmp_path / "models"), "me")
    assert told(hub, tmp_path / "loader", "load_all", "me", *here, token="") == here
    for name in here:
        assert_nothing_local(hub.files(f"me/{name}"), str(tmp_path))


@pytest.mark.slow
def test_checkpoints_that_were_asked_for_leave_nothing_at_the_top(hub: Hub, tmp_path: Path) -> None:
    told(hub, tmp_path / "home", "train", str(tmp_path), REPO, "checkpoint")
    before, last = [files for _, files in hub.commits(REPO)[-2:]]
    assert "training_args.bin" in before
    assert "last-checkpoint/trainer_state.json" in last
    assert not {"training_args.bin", "trainer_state.json"} & last
    assert "README.md" in last


@pytest.mark.slow
def test_failed_push_is_raised_by_train_and_the_model_is_there(hub: Hub, tmp_path: Path) -> None:
    hub.faults = [Fault("/commit/", status=403)]
    said = told(hub, tmp_path / "home", "train", str(tmp_path), REPO)
    finished = Path(said["finished"])
    assert f"{finished} was not pushed to '{REPO}'" in said["error"]
    assert "as the test wants it" in said["error"]
    assert "push again" in said["error"]
    assert (finished / "model.safetensors").is_file()
    assert set(hub.files(REPO)) == {".gitattributes"}


def test_offline_push_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(HubError, match=r"not pushed to 'me/model'.*HF_TOKEN"):
        repository("me/model", tmp_path)


class TestLocalNames:
    @pytest.mark.parametrize("name", ["bert-base-uncased", "sentence-transformers/all-MiniLM-L6-v2"])
    def test_hub_ids(self, name: str) -> None:
        assert hub_id(name) == name

    @pytest.mark.parametrize("name", [None, "", "/data/model", "./model", "~/model", "a/b/c", "C:\\model"])
    def test_paths_and_nothing_are_no_hub_id(self, name: str | None) -> None:
        assert hub_id(name) is None

    def test_folder_is_no_hub_id(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        Path("runs/final").mkdir(parents=True)
        assert hub_id("runs/final") is None
        assert without_paths({"teacher": "runs/final", "name": "finetune"}) == {"teacher": LOCAL, "name": "finetune"}

    def test_are_replaced_however_deep(self, tmp_path: Path) -> None:
        value = {"a": [{"path": str(tmp_path)}, ("C:\\Users\\x", 1)], "kept": "a/b, or ./ not", "share": 0.5}
        assert without_paths(value) == {"a": [{"path": LOCAL}, [LOCAL, 1]], "kept": "a/b, or ./ not", "share": 0.5}

    def test_are_taken_out_of_a_saved_model(self, tmp_path: Path, default_model: str) -> None:
        folder = tmp_path / "final"
        tokenizer = AutoTokenizer.from_pretrained(default_model)
        tokenizer.save_pretrained(folder)
        config = {"_name_or_path": str(tmp_path), "encoder": {"_name_or_path": "bert-base-uncased"}, "hidden": 1}
        (folder / "config.json").write_text(json.dumps(config))
        (folder / "training_args.bin").write_bytes(str(tmp_path).encode())
        values = json.loads((folder / "tokenizer_config.json").read_text())
        (folder / "tokenizer_config.json").write_text(json.dumps({**values, "name_or_path": default_model}))
        remove_local_names(folder)
        kept = json.loads((folder / "config.json").read_text())
        assert kept == {"encoder": {"_name_or_path": "bert-base-uncased"}, "hidden": 1}
        assert_nothing_local({path.name: path.read_bytes() for path in folder.iterdir()}, str(tmp_path), default_model)
        assert AutoTokenizer.from_pretrained(folder)("a b").input_ids == tokenizer("a b").input_ids

    def test_are_taken_out_of_a_card_of_peft(self, tmp_path: Path) -> None:
        metadata = "base_model: /data/x\nlibrary_name: peft\ntags:\n- base_model:adapter:/data/x\n- lora\n"
        (tmp_path / "README.md").write_text(f"---\n{metadata}---\n\n/data/x\n")
        remove_local_names(tmp_path)
        card = ModelCard.load(tmp_path / "README.md")
        assert (card.data.tags, card.data.library_name, card.data.get("base_model")) == (["lora"], "peft", None)
        assert "/data/x" not in (tmp_path / "README.md").read_text()

    def test_adapter_keeps_its_base_here(self, tmp_path: Path) -> None:
        (tmp_path / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "/data/x", "r": 8}))
        remove_local_names(tmp_path)
        assert "/data/x" in (tmp_path / "adapter_config.json").read_text()


def test_files_that_stay_here(tmp_path: Path) -> None:
    for name in (
        "model.safetensors",
        "onnx/model.onnx",
        "training_args.bin",
        "optimizer.pt",
        "runs/events.out.tfevents.1.host",
        "checkpoint-4/model.safetensors",
        ".cache/x",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert pushed_files(tmp_path) == ["model.safetensors", "onnx/model.onnx"]
    with pytest.raises(HubError, match="nothing to push"):
        pushed_files(tmp_path / "none")

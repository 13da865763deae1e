"""Changed shapes load in one plain line, as an ordinary model; damaged or foreign files are refused."""

import copy
import json
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import datasets
import evaluate
import pytest
import torch
import transformers
from safetensors.torch import load_file
from transformers import (
    AutoModel,
    AutoModelForSequenceClassification,
    BertConfig,
    BertForSequenceClassification,
    BertTokenizerFast,
    Trainer,
    TrainingArguments,
    set_seed,
)

from hf_efficient.blocks import cut_layers, layer_stacks
from hf_efficient.checkpoint import (
    FORMAT_VERSION,
    ManifestConfig,
    apply_shapes,
    load_state,
    load_weights,
    record_shapes,
    register_loader,
    save_state,
    shapes_of,
)
from hf_efficient.errors import ConfigError
from tests.golden import make
from tests.tiny import arguments, pad, text_examples, text_model

GOLDEN = sorted(Path(__file__).parent.glob("golden/v*"))


@pytest.fixture
def narrow(tmp_path: Path) -> tuple[Any, Path]:
    """A model with other shapes in every layer, and the folder it is saved in."""
    model = make.model()
    model.save_pretrained(tmp_path / "narrow")
    return model, tmp_path / "narrow"


def layer_cut() -> Any:
    """A model that had four layers and has the first and the third."""
    set_seed(0)
    sizes = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 32, "max_position_embeddings": 8}
    model = BertForSequenceClassification(BertConfig(vocab_size=16, num_hidden_layers=4, num_labels=3, **sizes)).eval()
    cut_layers(model, *layer_stacks(model), [0, 2])
    return model


def narrow_and_cut() -> Any:
    """A model with a manifest that lost its first layer afterwards."""
    model = make.model()
    cut_layers(model, *layer_stacks(model), [1])
    return model


@pytest.fixture(params=[make.model, layer_cut, narrow_and_cut], ids=["narrow", "layer cut", "narrow and cut"])
def changed(tmp_path: Path, request: pytest.FixtureRequest) -> tuple[Any, Path]:
    """A model whose shapes were changed, and the folder it is saved in."""
    model = request.param()
    model.save_pretrained(tmp_path / "changed")
    return model, tmp_path / "changed"


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(make.INPUT, make.MASK).logits


def test_there_is_a_golden_checkpoint_of_every_format() -> None:
    assert [folder.name for folder in GOLDEN] == [f"v{version}" for version in range(1, FORMAT_VERSION + 1)]


@pytest.mark.parametrize("folder", GOLDEN, ids=lambda folder: folder.name)
def test_golden_checkpoint_loads_to_the_same_logits(folder: Path) -> None:
    loaded = AutoModelForSequenceClassification.from_pretrained(folder)
    torch.testing.assert_close(logits(loaded), load_file(folder / "expected.safetensors")["logits"])
    assert loaded.bert.encoder.layer[0].intermediate.dense.out_features == 12


def test_loads_in_a_fresh_process(changed: tuple[Any, Path]) -> None:
    model, folder = changed
    code = (
        "import sys, hf_efficient; from transformers import AutoModelForSequenceClassification as A;"
        "from tests.golden.make import INPUT, MASK;"
        "print(A.from_pretrained(sys.argv[1])(INPUT, MASK).logits.tolist())"
    )
    done = subprocess.run([sys.executable, "-c", code, str(folder)], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout.splitlines()[-1]) == logits(model).tolist()


LOAD = """
import sys
from transformers import AutoModelForSequenceClassification as A
from transformers.utils import logging
import torch
logging.disable_progress_bar()
print(A.from_pretrained(sys.argv[1])(*torch.tensor(eval(sys.argv[2]))).logits.tolist())
"""


def load_without_the_import(folder: Path) -> subprocess.CompletedProcess:
    inputs = str([make.INPUT.tolist(), make.MASK.tolist()])
    return subprocess.run(
        [sys.executable, "-c", LOAD, str(folder), inputs], capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize("model", [make.model, narrow_and_cut])
def test_manifest_fails_loudly_without_the_import(model: Any, tmp_path: Path) -> None:
    model().save_pretrained(tmp_path)
    done = load_without_the_import(tmp_path)
    assert done.returncode == 1
    assert "hf_efficient" in done.stderr
    assert "mismatch" in done.stderr.lower()


def test_fewer_layers_need_no_import(tmp_path: Path) -> None:
    model = layer_cut()
    model.save_pretrained(tmp_path)
    done = load_without_the_import(tmp_path)
    assert json.loads(done.stdout.splitlines()[-1]) == logits(model).tolist()
    assert "hf_efficient" not in done.stderr


def test_loads_as_the_bare_encoder(changed: tuple[Any, Path]) -> None:
    model, folder = changed
    encoder = AutoModel.from_pretrained(folder).eval()
    with torch.no_grad():
        expected = model.bert(make.INPUT, make.MASK).last_hidden_state
        assert torch.equal(encoder(make.INPUT, make.MASK).last_hidden_state, expected)


class TestReloadedIsOrdinary:
    def test_nothing_says_quantized(self, changed: tuple[Any, Path]) -> None:
        loaded = AutoModelForSequenceClassification.from_pretrained(changed[1])
        assert not getattr(loaded, "is_quantized", False)
        assert not hasattr(loaded, "hf_quantizer")
        assert not hasattr(loaded, "quantization_method")

    def test_half_and_bfloat16(self, changed: tuple[Any, Path]) -> None:
        model, folder = changed
        loaded = AutoModelForSequenceClassification.from_pretrained(folder)
        torch.testing.assert_close(logits(loaded.bfloat16()).float(), logits(model), rtol=0.1, atol=0.1)
        assert loaded.half().dtype == torch.float16
        assert AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.bfloat16).dtype == torch.bfloat16

    def test_saves_again(self, changed: tuple[Any, Path], tmp_path: Path) -> None:
        model, folder = changed
        AutoModelForSequenceClassification.from_pretrained(folder).save_pretrained(tmp_path / "again")
        again = AutoModelForSequenceClassification.from_pretrained(tmp_path / "again")
        assert torch.equal(logits(again), logits(model))
        saved = [json.loads((path / "config.json").read_text()) for path in (folder, tmp_path / "again")]
        assert saved[0] == saved[1]

    def test_copies(self, changed: tuple[Any, Path]) -> None:
        model, folder = changed
        assert torch.equal(
            logits(copy.deepcopy(AutoModelForSequenceClassification.from_pretrained(folder))), logits(model)
        )

    def test_trains_with_the_stock_trainer(self, changed: tuple[Any, Path], tmp_path: Path) -> None:
        loaded = AutoModelForSequenceClassification.from_pretrained(changed[1])
        before = copy.deepcopy(loaded.state_dict())
        examples = text_examples(16)
        for example in examples.examples:
            example["input_ids"] = example["input_ids"] % 16
        Trainer(
            loaded, arguments(TrainingArguments, tmp_path / "out"), train_dataset=examples, data_collator=pad
        ).train()
        key = "bert.encoder.layer.0.intermediate.dense.weight"
        assert not torch.equal(before[key], loaded.state_dict()[key])
        reloaded = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out" / "checkpoint-4")
        assert torch.equal(reloaded.state_dict()[key], loaded.state_dict()[key])

    def test_takes_peft_adapters(self, changed: tuple[Any, Path], tmp_path: Path) -> None:
        peft = pytest.importorskip("peft")
        loaded = AutoModelForSequenceClassification.from_pretrained(changed[1])
        adapted = peft.get_peft_model(loaded, peft.LoraConfig(r=2, target_modules=["query", "value"]))
        torch.nn.init.ones_(
            adapted.base_model.model.bert.encoder.layer[-1].attention.self.query.lora_B["default"].weight
        )
        expected = logits(adapted)
        merged = adapted.merge_and_unload()
        torch.testing.assert_close(logits(merged), expected)
        merged.save_pretrained(tmp_path / "merged")
        reloaded = AutoModelForSequenceClassification.from_pretrained(tmp_path / "merged")
        torch.testing.assert_close(logits(reloaded), expected)

    def test_works_in_a_pipeline(self, changed: tuple[Any, Path]) -> None:
        words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "b", "c", "d"]
        BertTokenizerFast(vocab={word: index for index, word in enumerate(words)}).save_pretrained(changed[1])
        classify = transformers.pipeline("text-classification", model=str(changed[1]), device="cpu")
        assert 0 < classify("a b c")[0]["score"] < 1
        # Not the pipeline itself: evaluate 0.4.6 compares it with a class that transformers 5 has no more
        texts, classes = ["a b", "c d", "d"], classify.model.config.label2id
        said = [classes[each["label"]] for each in classify(texts)]
        rows = datasets.Dataset.from_dict({"text": texts, "label": [said[0], said[1], 1 - said[2]]})
        found = evaluate.evaluator("text-classification").compute(
            model_or_pipeline=str(changed[1]), data=rows, metric=Agreement(), label_mapping=classes
        )
        assert found["agreement"] == pytest.approx(2 / 3)


class Agreement(evaluate.Metric):  # type: ignore[misc]
    """A metric that is not fetched from anywhere."""

    def _info(self) -> Any:
        kinds = datasets.Features({"predictions": datasets.Value("int32"), "references": datasets.Value("int32")})
        return evaluate.MetricInfo(description="", citation="", features=kinds)

    def _compute(self, predictions: Any, references: Any) -> dict[str, float]:
        pairs = zip(predictions, references, strict=True)
        return {"agreement": sum(one == other for one, other in pairs) / len(references)}


class TestManifest:
    def test_registering_again_is_harmless(self) -> None:
        register_loader()

    def test_record_adds_to_what_is_there(self) -> None:
        model = text_model()
        record_shapes(model, {"a": {"x": 1}})
        record_shapes(model, {"a": {"y": 2}, "b": {"x": 3}})
        assert shapes_of(model.config) == {"a": {"x": 1, "y": 2}, "b": {"x": 3}}

    def test_newer_format_is_refused(self, narrow: tuple[Any, Path]) -> None:
        edit_manifest(narrow[1], version=FORMAT_VERSION + 1)
        with pytest.raises(ConfigError, match="Upgrade with"):
            AutoModel.from_pretrained(narrow[1])

    def test_unknown_key_is_refused(self) -> None:
        with pytest.raises(ConfigError, match="did you mean 'modules'"):
            ManifestConfig(moduls={})

    def test_unknown_module_is_refused(self) -> None:
        with pytest.raises(ConfigError, match=r"encoder\.layer\.9"):
            apply_shapes(text_model(), {"encoder.layer.9.output.dense": {"in_features": 2}})

    @pytest.mark.parametrize("attribute", ["out_featurs", "forward", "training"])
    def test_only_sizes_can_be_set(self, attribute: str) -> None:
        with pytest.raises(ConfigError, match="out_features"):
            apply_shapes(text_model(), {"encoder.layer.0.output.dense": {attribute: 2}})


def edit_manifest(folder: Path, **changes: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"].update(changes)
    (folder / "config.json").write_text(json.dumps(config))


class TestState:
    def test_round_trip(self, tmp_path: Path) -> None:
        save_state(tmp_path, "main", {"one": {"mask": torch.ones(2), "step": 3}})
        state = load_state(tmp_path)
        assert state is not None
        assert state["phase"] == "main"
        assert torch.equal(state["optimizations"]["one"]["mask"], torch.ones(2))

    def test_absent(self, tmp_path: Path) -> None:
        assert load_state(tmp_path) is None

    def test_damaged(self, tmp_path: Path) -> None:
        save_state(tmp_path, "main", {})
        file = tmp_path / "optimizations.pt"
        file.write_bytes(file.read_bytes()[:100])
        with pytest.raises(ConfigError, match="earlier checkpoint"):
            load_state(tmp_path)

    def test_code_in_it_is_not_run(self, tmp_path: Path) -> None:
        class Evil:
            def __reduce__(self) -> Any:
                return (Path.touch, (tmp_path / "ran",))

        torch.save({"version": 1, "phase": "main", "optimizations": Evil()}, tmp_path / "optimizations.pt")
        with pytest.raises(ConfigError):
            load_state(tmp_path)
        assert not (tmp_path / "ran").exists()

    def test_weights_of_other_shapes(self, narrow: tuple[Any, Path]) -> None:
        with warnings.catch_warnings(), pytest.raises(ConfigError, match="do not fit"):
            load_weights(text_model(), narrow[1])

    def test_no_weights(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match="no model weights"):
            load_weights(text_model(), tmp_path)

"""Other libraries: their trainers made efficient, trackers, launchers; skipped where the library is not installed."""

import contextlib
import json
import os
import sqlite3
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import pytest
import yaml
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from hf_efficient import EfficientTrainer, EfficientTrainingArguments, Optimization, Order, efficient
from hf_efficient.plan import optimization_class
from tests.test_parity import build

ROOT = Path(__file__).parents[1]


@dataclass(eq=False, kw_only=True)
class Seen(Optimization):
    """Counts how often its hooks run."""

    name = "seen"
    order = Order.STRUCTURE

    def __post_init__(self) -> None:
        self.models = self.steps = self.losses = 0

    def prepare_model(self, model: Any, context: Any) -> Any:
        self.models += 1
        return model

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.steps += 1


@dataclass(eq=False, kw_only=True)
class SeenLoss(Seen):
    def loss(self, loss: Any, inputs: Any, outputs: Any, scale: Any) -> Any:
        self.losses += 1
        return loss


def check(trainer: Any, seen: Seen, folder: Path) -> None:
    trainer.train()
    assert (seen.models, seen.steps) == (1, 3)
    assert (folder / "final" / "model.safetensors").is_file()


def test_sentence_transformers(tmp_path: Path, default_model: str) -> None:
    library = pytest.importorskip("sentence_transformers")
    losses = pytest.importorskip("sentence_transformers.sentence_transformer.losses")
    pairs = datasets.Dataset.from_dict({"anchor": ["one", "two"] * 4, "positive": ["eins", "zwei"] * 4})
    model = library.SentenceTransformer(default_model, device="cpu")
    args = library.SentenceTransformerTrainingArguments(
        str(tmp_path), max_steps=3, per_device_train_batch_size=2, report_to="none", use_cpu=True, disable_tqdm=True
    )
    seen = Seen()
    trainer = efficient(library.SentenceTransformerTrainer)(
        model=model,
        args=args,
        train_dataset=pairs,
        loss=losses.MultipleNegativesRankingLoss(model),
        callbacks=[seen],
    )
    check(trainer, seen, tmp_path)


@pytest.fixture
def llama() -> tuple[LlamaForCausalLM, PreTrainedTokenizerFast]:
    """A tiny model that is random, and a tokenizer of words w0 to w29."""
    tokenizers = pytest.importorskip("tokenizers")
    words = ["<pad>", "<eos>", "<unk>", *(f"w{index}" for index in range(30))]
    vocabulary = {word: index for index, word in enumerate(words)}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=40, **sizes))
    return model, PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>")


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_trl(tmp_path: Path, llama: Any) -> None:
    trl = pytest.importorskip("trl")
    model, processor = llama
    seen = SeenLoss()
    trainer = efficient(trl.SFTTrainer)(
        model=model,
        args=trl.SFTConfig(
            str(tmp_path), max_steps=3, per_device_train_batch_size=4, report_to="none", use_cpu=True, bf16=False
        ),
        train_dataset=datasets.Dataset.from_dict({"text": [f"w{index} w{index + 1}" for index in range(24)]}),
        processing_class=processor,
        callbacks=[seen],
    )
    check(trainer, seen, tmp_path)
    assert seen.losses == 3


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_trl_s_arguments_are_changed_without_being_made_anew(tmp_path: Path, llama: Any) -> None:
    """GRPOConfig refuses the batch sizes that it fills in itself, as `dataclasses.replace` would give them."""
    trl = pytest.importorskip("trl")
    model, processor = llama
    seen, precision = Seen(), optimization_class("precision")(dtype="bf16")
    trainer = efficient(trl.GRPOTrainer)(
        model=model,
        reward_funcs=lambda completions, **columns: [float(len(text)) for text in completions],
        args=trl.GRPOConfig(
            str(tmp_path), max_steps=3, per_device_train_batch_size=4, num_generations=2, max_completion_length=4,
            report_to="none", use_cpu=True, bf16=False,
        ),
        train_dataset=datasets.Dataset.from_dict({"prompt": [f"w{index} w{index + 1}" for index in range(24)]}),
        processing_class=processor,
        callbacks=[seen, precision],
    )  # fmt: skip
    check(trainer, seen, tmp_path)
    assert trainer.args.bf16
    assert trainer.accelerator.mixed_precision == "bf16"
    assert trainer.args.generation_batch_size == 4


def test_tensorboard_gets_what_was_measured(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    trainer = build(
        EfficientTrainer,
        EfficientTrainingArguments,
        tmp_path / "out",
        optimizations={"structured_pruning": {"keep_layers": [0, 2]}},
        report_to=["tensorboard"],
        measure_seconds=0.05,
    )
    trainer.train()
    (folder,) = {file.parent for file in tmp_path.rglob("events.out.tfevents.*")}
    events = EventAccumulator(str(folder))
    events.Reload()
    expected = trainer.report.figures()
    assert {"before_latency_ms", "after_parameters", "after_throughput"} <= set(expected)
    for name, value in expected.items():
        assert events.Scalars(f"train/{name}")[-1].value == pytest.approx(value, rel=1e-6), name
    assert events.Scalars("train/train_share_forward")[-1].value > 0


def test_trackio_gets_what_was_measured(tmp_path: Path) -> None:
    pytest.importorskip("trackio")
    told = ran(tmp_path, "script.py", TRACKER="trackio", TRACKIO_DIR=str(tmp_path / "trackio"))
    (file,) = (tmp_path / "trackio").glob("*.db")
    with contextlib.closing(sqlite3.connect(file)) as database:
        rows = database.execute("select run_name, metrics from metrics").fetchall()
    assert {name for name, _ in rows} == {"mine"}
    (last,) = (logged for logged in (json.loads(row) for _, row in rows) if "train/after_latency_ms" in logged)
    assert last["train/after_parameters"] == int(told.split()[-1])


SCRIPT = """
import os
from pathlib import Path
from hf_efficient import EfficientTrainer, EfficientTrainingArguments
from tests.test_parity import build

options = {"optimizations": {"structured_pruning": {"keep_layers": [0, 2]}}, "measure_seconds": 0.05}
if "TRACKER" in os.environ:
    options |= {"report_to": [os.environ["TRACKER"]], "run_name": "mine"}
trainer = build(EfficientTrainer, EfficientTrainingArguments, Path("out"), **options)
trainer.train()
print(trainer.accelerator.mixed_precision, trainer.report.after.parameters)
"""


def ran(folder: Path, *command: str, **variables: str) -> str:
    """The last line that ``python command``, which runs `SCRIPT` as script.py, prints."""
    (folder / "script.py").write_text(SCRIPT)
    done = subprocess.run(
        [sys.executable, *command],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1]), **variables},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert (folder / "out" / "final" / "model.safetensors").is_file()
    return next(line for line in done.stdout.splitlines()[::-1] if line.startswith(("no ", "bf16 ")))


def test_a_config_file_of_accelerate_works_as_it_is(tmp_path: Path) -> None:
    config = {
        "compute_environment": "LOCAL_MACHINE",
        "distributed_type": "NO",
        "mixed_precision": "bf16",
        "num_processes": 1,
        "use_cpu": True,
    }
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    launch = ("-m", "accelerate.commands.launch", "--config_file", "config.yaml", "script.py")
    assert ran(tmp_path, *launch).split()[0] == "bf16"


@pytest.mark.parametrize("file", sorted((ROOT / "recipes" / "accelerate").glob("*.yaml")), ids=lambda file: file.stem)
def test_configs_for_accelerate_are_what_it_reads(file: Path) -> None:
    """Each key of theirs; and the command in their head names them."""
    from accelerate.commands.config.config_args import load_config_from_file

    told = load_config_from_file(str(file))
    assert told.num_processes > 1
    assert told.distributed_type.value in ("MULTI_GPU", "FSDP", "DEEPSPEED")
    assert f"accelerate launch --config_file {file.name} " in file.read_text(encoding="utf-8")

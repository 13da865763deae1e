"""Checkpoints are whole or not there; damaged ones are passed over, or refused where they were asked for."""

import json
import logging
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import Trainer, TrainerCallback, TrainingArguments

from hf_efficient import ConfigError, EfficientTrainer, EfficientTrainingArguments
from hf_efficient.files import leftovers
from hf_efficient.resumption import CHECKSUMS, defect, newest_whole
from tests.kill import Killed, die
from tests.test_parity import assert_same_tensors, build, train
from tests.test_trainer import CUT, trainer

OPTIONS: dict[str, Any] = {"optimizations": CUT, "dense_epochs": 2, "seed": 3}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A trainer that has trained; nobody trains it again."""
    made = trainer(tmp_path_factory.mktemp("whole"), **OPTIONS)
    train(made)
    return made


@pytest.fixture
def folder(whole: Any, tmp_path: Path) -> Path:
    """A copy of what it left."""
    shutil.copytree(whole.args.output_dir, tmp_path / "copy")
    return tmp_path / "copy"


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


DAMAGES: dict[str, Callable[[Path], Any]] = {
    "model.safetensors is not what": lambda path: flip(path / "model.safetensors"),
    "optimizer.pt is not what": lambda path: flip(path / "optimizer.pt"),
    "scheduler.pt has 10 bytes instead": lambda path: (path / "scheduler.pt").write_bytes(b"0123456789"),
    "rng_state.pth is missing": lambda path: (path / "rng_state.pth").unlink(),
    "trainer_state.json is missing": lambda path: (path / "trainer_state.json").unlink(),
    "cannot be read": lambda path: (path / "trainer_state.json").write_text('{"epoch": 1.0, "glob'),
    "cannot be read ": lambda path: (path / CHECKSUMS).write_text('{"model.safetensors": 3}'),
}


@pytest.mark.parametrize("said", DAMAGES)
def test_a_damaged_checkpoint(folder: Path, said: str) -> None:
    newest = folder / "checkpoint-12"
    assert defect(newest) == ""
    DAMAGES[said](newest)
    assert said.strip() in defect(newest)
    with pytest.raises(ConfigError, match=f"checkpoint-12 is damaged: .*{said.strip()}.*another checkpoint"):
        trainer(folder, **OPTIONS).train(resume_from_checkpoint=str(newest))


def test_the_newest_whole_one_is_resumed_from(whole: Any, folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    flip(folder / "checkpoint-12" / "model.safetensors")
    (folder / "checkpoint-13").mkdir()
    with caplog.at_level(logging.WARNING, logger="hf_efficient.resumption"):
        resumed = trainer(folder, **OPTIONS)
        train(resumed, resume_from_checkpoint=True)
    assert [record.args[0].name for record in caplog.records] == ["checkpoint-13", "checkpoint-12"]  # type: ignore[index, union-attr]
    assert_same_tensors(dict(whole.model.state_dict()), dict(resumed.model.state_dict()))
    assert defect(folder / "checkpoint-12") == ""  # written again


def test_auto_starts_where_there_is_nothing(whole: Any, tmp_path: Path) -> None:
    for _ in range(2):  # the second time there is
        started = trainer(tmp_path, **OPTIONS)
        train(started, resume_from_checkpoint="auto")
        assert_same_tensors(dict(whole.model.state_dict()), dict(started.model.state_dict()))


@pytest.mark.parametrize("moment", ["_save_scaler", "_save_rng_state"])
def test_a_training_that_dies_while_it_saves(
    tmp_path: Path, moment: str, whole: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    killed = trainer(tmp_path, **OPTIONS)
    stock = getattr(Trainer, moment)

    def once(self: Any, folder: str) -> None:
        if "dense" not in folder and self.state.global_step == 8:
            die()
        stock(self, folder)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, moment, once)
        with pytest.raises(Killed):
            train(killed)
    newest = newest_whole(tmp_path)
    assert newest is not None
    assert newest.endswith("checkpoint-4")
    assert not list(tmp_path.glob("*checkpoint-8*"))
    assert not leftovers(tmp_path)
    resumed = trainer(tmp_path, **OPTIONS)
    train(resumed, resume_from_checkpoint=True)
    assert_same_tensors(dict(whole.model.state_dict()), dict(resumed.model.state_dict()))


def test_nothing_on_keeps_the_same_checkpoints_as_stock(tmp_path: Path) -> None:
    """Best and newest stay, under the names that their states tell."""
    options = {
        "save_total_limit": 1,
        "load_best_model_at_end": True,
        "eval_strategy": "epoch",
        "save_strategy": "epoch",
    }
    kept = []
    for name, (cls, args) in {
        "stock": (Trainer, TrainingArguments),
        "ours": (EfficientTrainer, EfficientTrainingArguments),
    }.items():
        made = build(cls, args, tmp_path / name, metric_for_best_model="loss", learning_rate=0.2, **options)
        made.train()
        best = made.state.best_model_checkpoint
        states = [json.loads(file.read_text()) for file in sorted((tmp_path / name).glob("*/trainer_state.json"))]
        told = [Path(state["best_model_checkpoint"]).relative_to(tmp_path / name) for state in states]
        left = sorted(path.name for path in (tmp_path / name).iterdir())
        kept.append((Path(best).relative_to(tmp_path / name), told, left))
    assert kept[0] == kept[1]


def test_nothing_on_passes_a_half_written_one_over(tmp_path: Path) -> None:
    whole = build(EfficientTrainer, EfficientTrainingArguments, tmp_path)
    train(whole)
    last = max(tmp_path.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
    (last / "trainer_state.json").unlink()  # stock writes it last
    again = build(EfficientTrainer, EfficientTrainingArguments, tmp_path)
    train(again, resume_from_checkpoint=True)
    assert_same_tensors(dict(whole.model.state_dict()), dict(again.model.state_dict()))


def test_a_clock_that_was_set_back(tmp_path: Path) -> None:
    """What was written before is dated later; the newest stays all the same."""

    class Future(TrainerCallback):
        def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            later = time.time() + 1000 - state.global_step
            os.utime(Path(args.output_dir) / f"checkpoint-{state.global_step}", (later, later))

    options = {"save_total_limit": 1, "save_steps": 4}
    build(EfficientTrainer, EfficientTrainingArguments, tmp_path, given={"callbacks": [Future]}, **options).train()
    assert [path.name for path in tmp_path.glob("checkpoint-*")] == ["checkpoint-12"]

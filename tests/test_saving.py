"""Checkpoints that are made whole beside the training: the same ones, waited for where they are needed."""

import errno
import os
import threading
from pathlib import Path
from typing import Any

import pytest
from transformers import TrainerCallback

from hf_efficient import ConfigError, saving
from hf_efficient.files import leftovers
from hf_efficient.resumption import defect
from tests.test_parity import assert_same_tensors, train
from tests.test_trainer import CUT, trainer

OPTIONS: dict[str, Any] = {"optimizations": CUT, "save_strategy": "steps", "save_steps": 4, "save_total_limit": 2}


def checkpoints(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("checkpoint-*"))


@pytest.mark.parametrize("optimizations", [CUT, None])
def test_leaves_what_is_left_without(tmp_path: Path, optimizations: Any) -> None:
    options = {**OPTIONS, "optimizations": optimizations}
    one, other = (trainer(tmp_path / str(beside), async_save=beside, **options) for beside in (True, False))
    train(one, other)
    assert_same_tensors(dict(one.model.state_dict()), dict(other.model.state_dict()))
    assert checkpoints(tmp_path / "True") == checkpoints(tmp_path / "False") == ["checkpoint-12", "checkpoint-8"]
    for name in checkpoints(tmp_path / "True"):
        both = [sorted(path.name for path in (tmp_path / str(beside) / name).iterdir()) for beside in (True, False)]
        assert both[0] == both[1]
        assert defect(tmp_path / "True" / name) == ""
    assert not leftovers(tmp_path)


class GoesOn(TrainerCallback):
    """Lets a checkpoint become whole once the training has gone on."""

    def __init__(self, gone_on: threading.Event):
        self.gone_on = gone_on

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 6:
            assert checkpoints(Path(args.output_dir)) == []
            self.gone_on.set()


def test_the_training_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gone_on, seal = threading.Event(), saving.seal

    def waiting(folder: Path) -> None:
        assert gone_on.wait(60)
        seal(folder)

    monkeypatch.setattr(saving, "seal", waiting)
    train(trainer(tmp_path, {"callbacks": [GoesOn(gone_on)]}, async_save=True, **OPTIONS))
    assert checkpoints(tmp_path) == ["checkpoint-12", "checkpoint-8"]


def test_the_best_one_is_waited_for(tmp_path: Path) -> None:
    judged = {"eval_strategy": "steps", "eval_steps": 4, "load_best_model_at_end": True}
    one = trainer(tmp_path, async_save=True, **OPTIONS, **judged)
    train(one)
    assert Path(one.state.best_model_checkpoint).is_dir()


def test_a_full_disk_ends_the_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seal = saving.seal

    def full(folder: Path) -> None:
        if "checkpoint-8" in folder.name:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder))
        seal(folder)

    monkeypatch.setattr(saving, "seal", full)
    with pytest.raises(ConfigError, match=r"checkpoint-8.*free some space"):
        train(trainer(tmp_path, async_save=True, **OPTIONS))
    assert checkpoints(tmp_path) == ["checkpoint-4"]
    assert not leftovers(tmp_path)

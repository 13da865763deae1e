"""SIGTERM: the step is finished and saved, the process ends with 143, and what is resumed ends as if nothing was."""

import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import TrainerCallback

from hf_efficient.cli import main
from hf_efficient.errors import Preempted
from hf_efficient.run import unfinished
from tests.preemption_worker import STEP, Told
from tests.test_distributed import on_two_processes
from tests.test_parity import assert_same_tensors, train
from tests.test_run import default_callbacks, measure_hastily, tiny_recipe, weights
from tests.test_trainer import CUT, trainer

OPTIONS: dict[str, Any] = {"optimizations": CUT, "dense_epochs": 2, "save_strategy": "no"}


def test_the_step_is_saved_and_resumed_from(tmp_path: Path) -> None:
    whole = trainer(tmp_path / "whole", **OPTIONS)
    train(whole)
    with pytest.raises(SystemExit) as caught:
        train(trainer(tmp_path / "told", {"callbacks": [Told]}, **OPTIONS))
    assert isinstance(caught.value, Preempted)
    assert caught.value.code == 143
    assert caught.value.checkpoint == str(tmp_path / "told" / "dense" / f"checkpoint-{STEP}")
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    resumed = trainer(tmp_path / "told", **OPTIONS)
    train(resumed, resume_from_checkpoint="auto")
    assert_same_tensors(dict(whole.model.state_dict()), dict(resumed.model.state_dict()))


def test_a_handler_that_is_there_stays(tmp_path: Path) -> None:
    told: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: told.append(number))
    try:
        one = trainer(tmp_path, {"callbacks": [Told]}, optimizations=CUT)
        one.train()
    finally:
        signal.signal(signal.SIGTERM, before)
    assert told == [signal.SIGTERM]
    assert one.report is not None or one.finished is not None  # to its end


class ToldIn(TrainerCallback):
    """Told to end in the second epoch of stage ``stage``."""

    def __init__(self, stage: str):
        self.stage = stage

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if Path(args.output_dir).name == self.stage and state.global_step == 7:
            os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.parametrize("stage", ["finetune", "compress"])
def test_a_run_ends_with_143_and_auto_goes_on(
    tmp_path: Path, stage: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    measure_hastily(monkeypatch)
    recipe = str(tiny_recipe(tmp_path))
    runs = tmp_path / "runs"
    assert main(["run", recipe, "seed=7", "--runs", str(tmp_path / "whole"), "--resume", "auto"]) == 0
    again = ["run", recipe, "seed=7", "--runs", str(runs), "--resume", "auto"]
    with monkeypatch.context() as patch:
        patch.setattr("transformers.trainer.DEFAULT_CALLBACKS", [*default_callbacks(), ToldIn(stage)])
        assert main(again) == 143
    assert f"stages/{stage}/checkpoint-8; the same command goes on" in capsys.readouterr().err
    (folder,) = unfinished(runs, "tiny")
    assert main(again) == 0
    assert not unfinished(runs, "tiny")
    (whole,) = (tmp_path / "whole" / "tiny").iterdir()
    assert_same_tensors(weights(whole / "final"), weights(folder / "final"))
    assert main(again) == 0  # a new one: that one is finished
    assert len(list((runs / "tiny").iterdir())) == 2


@pytest.mark.slow
def test_two_processes_leave_at_the_same_step(tmp_path: Path) -> None:
    on_two_processes("tests.preemption_worker", tmp_path, timeout_s=240)
    told = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    assert [each["code"] for each in told] == [143, 143]
    assert [each["step"] for each in told] == [STEP, STEP]
    for each in told:
        assert_same_tensors(each["whole"], each["resumed"])

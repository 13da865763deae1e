"""The training that `tests/test_preemption.py` runs on two processes, of which the second alone is told to end."""

import os
import signal
import sys
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

from hf_efficient.errors import Preempted
from tests.test_parity import train
from tests.test_trainer import trainer

STEP = 3


class Told(TrainerCallback):
    """A machine that is taken away at `STEP`."""

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == STEP - 1:
            os.kill(os.getpid(), signal.SIGTERM)


def main(folder: Path, rank: int) -> None:
    options: dict[str, Any] = {"optimizations": {"precision": {"dtype": "fp32"}}, "use_cpu": True}
    whole = trainer(folder / "whole", **options)
    train(whole)
    told = trainer(folder / "told", {"callbacks": [Told()] if rank == 1 else []}, **options)
    code = 0
    try:
        train(told)
    except Preempted as error:
        code = int(str(error.code))
    resumed = trainer(folder / "told", **options)
    train(resumed, resume_from_checkpoint=True)
    weights = {name: made.model.state_dict() for name, made in {"whole": whole, "resumed": resumed}.items()}
    torch.save({"code": code, "step": told.state.global_step, **weights}, folder / f"{rank}.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(os.environ["RANK"]))

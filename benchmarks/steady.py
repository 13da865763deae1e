"""Trainings timed without their first steps, in which kernels are chosen, compiled and given their memory."""

from typing import Any

from transformers import Trainer, TrainerCallback

from hf_efficient import accounting


class _Warm(TrainerCallback):
    def __init__(self, trainer: Any, steps: int):
        self.trainer, self.steps = trainer, steps

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.steps:
            self.trainer.accounts.restart()


def steady(trainer: Trainer, warm_up: int) -> dict[str, Any]:
    """`Accounting.figures` of ``trainer.train()`` after ``warm_up`` steps, with a peak that is measured anew."""
    trainer.add_callback(_Warm(trainer, warm_up))
    if getattr(trainer, "optimizations", None):  # it accounts for itself
        trainer.train()
    else:
        with accounting.account(trainer):
            trainer.train()
    accounting.peak.cache_clear()
    return trainer.accounts.figures()  # type: ignore[attr-defined]

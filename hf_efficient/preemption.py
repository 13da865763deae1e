"""A machine that is taken away says so with SIGTERM: the training is saved at the end of its step, and left.

Stock's `enable_jit_checkpoint` saves, too, but then goes on as if the training were finished, and each process by its
own clock, so that several wait for each other for ever. Where it is set, or a handler of SIGTERM is there, nothing here
takes part.
"""

import contextlib
import logging
import signal
import threading
from collections.abc import Iterator
from typing import Any

import torch
from torch import distributed
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from hf_efficient.errors import Preempted

logger = logging.getLogger(__name__)


class Preemption(TrainerCallback):
    """Saves and raises `Preempted` once any process was told to end; all processes do so at the same step."""

    def __init__(self, trainer: Any) -> None:
        self.trainer = trainer
        self.told = False
        self._leaving = False
        self._group: Any = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if distributed.is_initialized() and distributed.get_backend() != "gloo":
            self._group = distributed.new_group(backend="gloo")  # asking there does not wait for an accelerator's work

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> TrainerControl:
        if self._any_told():
            control.should_save = self._leaving = True
        return control

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if self._leaving:
            raise Preempted(self.trainer.saved)

    def _any_told(self) -> bool:
        if not distributed.is_initialized() or distributed.get_world_size() == 1:
            return self.told
        told = torch.tensor(int(self.told))
        distributed.all_reduce(told, op=distributed.ReduceOp.MAX, group=self._group)
        return bool(told)


@contextlib.contextmanager
def preemptible(trainer: Any) -> Iterator[None]:
    """During the block, SIGTERM ends a training of ``trainer`` at the end of its step, saved; a second one ends it at
    once.

    Raises:
        Preempted: it came.
    """
    free = signal.getsignal(signal.SIGTERM) == signal.SIG_DFL and not trainer.args.enable_jit_checkpoint
    if not free or threading.current_thread() is not threading.main_thread():
        yield
        return
    callback = Preemption(trainer)

    def handle(number: int, frame: Any) -> None:
        callback.told = True
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        logger.warning("told to end (SIGTERM): the training is saved at the end of its step")

    trainer.add_callback(callback)
    signal.signal(signal.SIGTERM, handle)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        trainer.remove_callback(callback)

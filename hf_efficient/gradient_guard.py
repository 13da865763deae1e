"""Steps whose gradients are not finite are left out; a training in which too many follow each other says why it ends.

Stock takes such a step: every weight is NaN from then on, and the training runs to its end all the same.
"""

import logging
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn
from torch.nn.utils import get_total_norm
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from hf_efficient.errors import ConfigError

logger = logging.getLogger(__name__)

BACKOFF = 0.5
"""By how much the learning rate is multiplied after each step that was left out."""
RECOVERY_STEPS = 50
"""After so many steps in a row that were taken, it is as scheduled again."""


class GradientGuard(TrainerCallback):
    """Leaves out optimizer steps whose gradients are not finite, and takes smaller ones for a while after.

    In fp16, the gradient scaler does so already (and lowers its scale); what it leaves out is counted here alone.

    Args:
        most: so many in a row are left out; the next one ends the training.

    Attributes:
        skipped: number of steps that were left out.
    """

    def __init__(self, most: int):
        self.most = most
        self.skipped = 0
        self._in_a_row = 0
        self._since = 0
        self._factor = 1.0
        self._rates: list[float] = []

    def on_pre_optimizer_step(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: nn.Module | None = None,
        optimizer: Any = None,
        **kwargs: Any,
    ) -> None:
        """
        Raises:
            ConfigError: too many in a row.
        """
        assert model is not None
        if finite(model.parameters()):
            self._in_a_row, self._since = 0, self._since + 1
            if self._since >= RECOVERY_STEPS:
                self._factor = 1.0
        else:
            self._skip(state, optimizer)
        if self._factor < 1:
            self._rates = [group["lr"] for group in optimizer.param_groups]
            for group in optimizer.param_groups:
                group["lr"] *= self._factor

    def on_optimizer_step(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        optimizer: Any = None,
        **kwargs: Any,
    ) -> None:
        for group, rate in zip(optimizer.param_groups, self._rates, strict=False):  # the schedule goes by what it set
            group["lr"] = rate
        self._rates = []

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        state.log_history.append({"skipped_steps": self.skipped, "epoch": state.epoch, "step": state.global_step})

    def _skip(self, state: TrainerState, optimizer: Any) -> None:
        self.skipped, self._in_a_row, self._since = self.skipped + 1, self._in_a_row + 1, 0
        step = state.global_step + 1
        if self._in_a_row > self.most:
            raise ConfigError(
                f"the gradients of {self._in_a_row} steps in a row were not finite, the last at step {step}: lower "
                "learning_rate, add warmup_steps, look for broken examples, or train in float32 (precision: {dtype: "
                "fp32}); max_skipped_steps says how many may be"
            )
        logger.warning("step %d is left out: its gradients are not finite (%d so far)", step, self.skipped)
        if getattr(optimizer, "scaler", None) is None:
            self._factor *= BACKOFF
            optimizer.zero_grad(set_to_none=True)  # without gradients, optimizers change nothing


def finite(parameters: Iterable[nn.Parameter]) -> bool:
    """Whether all gradients are; on every process alike, sharded or not."""
    grads = [each.grad for each in parameters if each.grad is not None]
    dense = [grad.coalesce().values() if grad.is_sparse else grad for grad in grads]
    if not dense:
        return True
    norm: Any = get_total_norm(dense)
    norm = norm.full_tensor() if hasattr(norm, "full_tensor") else norm
    return bool(torch.isfinite(norm))

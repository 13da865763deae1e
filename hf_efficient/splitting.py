"""Micro-batches that do not fit into memory are taken in parts: the part of `EfficientMixin` that takes a step.

Gradients of a step add up, so a batch in parts gives the gradient of the batch, with less in memory at a time. What did
fit once is the budget for all batches that come.
"""

import functools
import itertools
import logging
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, cast

import torch
from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size
from torch import nn
from transformers import Trainer, TrainerState

from hf_efficient.batches import Items, count_items

if TYPE_CHECKING:
    _Base = Trainer
else:
    _Base = object

logger = logging.getLogger(__name__)


class SplittingMixin(_Base):
    """Steps of a Trainer class that go on in smaller parts where memory runs out (`args.split_on_out_of_memory`)."""

    _items: Items | None  # of `BatchMixin`, as the next three
    _weights: list[Any]
    _counts_items: bool | None
    _loss_counts_items: Callable[..., bool]

    _budget = math.inf
    """Numbers in the largest input of a micro-batch that fits."""

    _tried = (0, 0)
    """Those of the one that is computed, and its examples."""

    _taken: tuple[Any, ...] = ()
    """Micro-batches of this optimizer step whose gradients are there."""

    _taken_in: TrainerState | None = None
    """The training that they are of."""

    def training_step(
        self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: torch.Tensor | int | None = None
    ) -> torch.Tensor:
        step = functools.partial(super().training_step, model, num_items_in_batch=num_items_in_batch)
        if not getattr(self.args, "split_on_out_of_memory", False):
            return step(inputs)
        if self._taken_in is not self.state:
            self._taken, self._taken_in = (), self.state
        loss, todo = None, (inputs,)
        while loss is None:
            try:
                for each in todo:
                    loss = self._in_parts(step, model, each, num_items_in_batch)
            except RuntimeError as error:
                if not should_reduce_batch_size(error):
                    raise
                self._spend_less(error)
                loss = None
            if loss is None:  # what of a batch is in the gradients nobody knows: all of the step anew
                clear_device_cache(garbage_collection=True)
                model.zero_grad()
                self._weights, todo = [], (*self._taken, inputs)
        self._taken = () if self.accelerator.sync_gradients else (*self._taken, inputs)
        return loss

    def _spend_less(self, error: RuntimeError) -> None:
        """
        Raises:
            RuntimeError: ``error``, where there was one example alone.
        """
        size, rows = self._tried
        if rows == 1:
            raise error
        self._budget = size / 2
        logger.warning("out of memory with %d examples: micro-batches are taken in smaller parts from now on", rows)

    def _in_parts(self, step: Callable[..., torch.Tensor], model: nn.Module, inputs: Any, items: Any) -> torch.Tensor:
        """The loss of a micro-batch, whose gradients are added."""
        rows = _rows(inputs)
        count = min(rows, math.ceil(_size(inputs) / self._budget))
        if count <= 1:
            self._tried = _size(inputs), rows
            return step(inputs)
        parts = list(_parts(inputs, rows, count))
        weights = self._shares(model, parts, items)
        losses = []
        for part, weight in zip(parts, weights, strict=True):
            self._tried = _size(part), _rows(part)
            with self._weighted(weight):
                losses.append(step(part))
        return torch.stack(losses).sum()

    def _shares(self, model: nn.Module, parts: list[Any], items: Any) -> list[Any]:
        """By what the loss of each part is multiplied so that together they are that of the whole."""
        if self._items is not None:  # weighted by what a batch holds already
            return [1.0] * len(parts)
        if items is not None and self._counts_items is None:
            first = self._prepare_inputs(dict(parts[0]))
            self._tried = _size(first), _rows(first)
            self._counts_items = self._loss_counts_items(self.compute_loss, model, first, items)
        if items is not None and self._counts_items:
            return [1.0] * len(parts)
        held = [float(count_items(part["labels"])) if "labels" in part else float(_rows(part)) for part in parts]
        return [each / sum(held) for each in held]

    @contextmanager
    def _weighted(self, weight: float) -> Iterator[None]:
        compute, own = self.compute_loss, vars(self).get("compute_loss")
        self.compute_loss = lambda *given, **named: weight * cast(torch.Tensor, compute(*given, **named))  # type: ignore[method-assign]
        try:
            yield
        finally:
            if own is None:
                del self.compute_loss
            else:
                self.compute_loss = own  # type: ignore[method-assign]


def _size(inputs: Mapping[str, Any]) -> int:
    return max((each.numel() for each in inputs.values() if isinstance(each, torch.Tensor)), default=0)


def _rows(inputs: Mapping[str, Any]) -> int:
    """Examples in a batch; 1 where its inputs do not agree on that."""
    found = {len(each) if isinstance(each, torch.Tensor) and each.dim() else 1 for each in inputs.values()}
    return found.pop() if len(found) == 1 else 1


def _parts(inputs: Mapping[str, Any], rows: int, count: int) -> Iterator[dict[str, Any]]:
    """``count`` batches of about as many examples each."""
    ends = [rows * number // count for number in range(count + 1)]
    for start, end in itertools.pairwise(ends):
        yield {name: each[start:end] for name, each in inputs.items()}

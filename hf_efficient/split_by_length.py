"""Batches computed in parts of like lengths, so that less padding is computed."""

from collections.abc import Mapping
from typing import Any

import torch

from hf_efficient.errors import ConfigError
from hf_efficient.timing import Runtime


class SplitByLength:
    """A `Runtime` that computes a batch in parts, short rows with short ones, and answers in the batch's order.

    Worth it where a model's time goes with its tokens and the texts of a batch differ in length. The answers are those
    of the whole batch, up to what a runtime computes in the range of each batch (dynamic int8).

    Args:
        runtime: gives ``logits`` of shape (rows, classes) or (rows, length, classes).
        size: rows of a part; a batch of no more, or one that is not padded at the right, is computed as it is.
    """

    def __init__(self, runtime: Runtime, size: int = 8):
        if size < 1:
            raise ConfigError(f"size must be at least 1, got {size}")
        self.runtime, self.size = runtime, size

    @property
    def name(self) -> str:
        return self.runtime.name

    @property
    def version(self) -> str:
        return self.runtime.version

    @property
    def device(self) -> str:
        return self.runtime.device

    def set_threads(self, threads: int) -> None:
        self.runtime.set_threads(threads)

    def __getattr__(self, name: str) -> Any:
        if name == "runtime":  # while a copy is being made
            raise AttributeError(name)
        return getattr(self.runtime, name)

    def predict(self, batch: Mapping[str, Any]) -> Any:
        mask = batch.get("attention_mask")
        if mask is None or mask.dim() != 2 or len(mask) <= self.size:
            return self.runtime.predict(batch)
        lengths = mask.sum(1)
        if not torch.equal(mask.bool(), torch.arange(mask.shape[1], device=mask.device) < lengths[:, None]):
            return self.runtime.predict(batch)
        joined = torch.empty(0)
        for rows in lengths.argsort().split(self.size):
            longest = int(lengths[rows[-1]])
            output = self.runtime.predict(_part(batch, mask.shape, rows, longest))
            logits = output.logits
            if not len(joined):
                joined = logits.new_zeros(len(mask), *((mask.shape[1],) if logits.dim() == 3 else ()), logits.shape[-1])
            if logits.dim() == 3:
                joined[rows, :longest] = logits
            else:
                joined[rows] = logits
        return type(output)(logits=joined)


def _part(batch: Mapping[str, Any], shape: torch.Size, rows: torch.Tensor, length: int) -> dict[str, Any]:
    """Some rows, cut to ``length`` where the columns are positions."""
    return {
        name: value[rows, :length] if value.shape[:2] == shape else value[rows]
        for name, value in batch.items()
        if isinstance(value, torch.Tensor) and value.dim() and len(value) == shape[0]
    }

"""Images and convolutions with the channels of a pixel side by side in memory."""

import copy
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from hf_efficient.errors import NoEffectWarning
from hf_efficient.optimization import Context, Optimization, Order
from hf_efficient.proposal import Observed, Proposal

BEST_GAIN = 0.3
"""Share of forward and backward passes that it saves at the very best, where most of them are convolutions."""
FEW = 4
"""Convolutions of a model that does not live by them: a ViT has one."""


@dataclass(eq=False, kw_only=True)
class ChannelsLast(Optimization):
    """Keep images and the weights of 2d convolutions in the layout (examples, height, width, channels).

    It is the one that oneDNN and cuDNN compute in; shapes and results are as before, but for rounding.
    """

    name = "channels_last"
    order = Order.PRECISION

    def __post_init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self._convolutions = 0

    @classmethod
    def proposals(cls, observed: Observed) -> Iterable[Proposal]:
        if sum(1 for _ in _convolutions(observed.model)) > FEW:
            yield Proposal(gain=BEST_GAIN * observed.computing)

    def prepare_model(self, model: nn.Module, context: Context) -> nn.Module:
        self._convolutions = sum(1 for _ in _convolutions(model))
        if not self._convolutions:
            warnings.warn("channels_last: the model has no 2d convolutions", NoEffectWarning, 2)
            return model
        return model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def map_batch(self, batch: dict[str, Any]) -> dict[str, Any]:
        if not self._convolutions:
            return batch
        mapped = copy.copy(batch)
        for name, value in batch.items():
            if isinstance(value, torch.Tensor) and value.dim() == 4:
                mapped[name] = value.contiguous(memory_format=torch.channels_last)
        return mapped

    def finalize(self, model: nn.Module) -> nn.Module:
        return model.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]

    def describe(self) -> dict[str, Any]:
        return {"convolutions": self._convolutions}


def _convolutions(model: nn.Module) -> Iterator[nn.Module]:
    return (module for module in model.modules() if isinstance(module, nn.Conv2d))

"""Masks of dropout from 16 random bits for each element, where a CPU draws them slowly."""

import math
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from hf_efficient.errors import NoEffectWarning
from hf_efficient.functional.attention import configured_dropout
from hf_efficient.optimization import Optimization, Order
from hf_efficient.proposal import Observed, Proposal
from hf_efficient.timing import shortest_seconds

BEST_GAIN = 0.2
"""Share of forward and backward passes that drawing takes at the very most; MiniLM in bf16: an eighth."""
RESOLUTION = 2**16
OFF_BY = 0.01
"""Probabilities that so many values cannot tell to this share are drawn as stock draws them."""


@dataclass(eq=False, kw_only=True)
class DropoutMasks(Optimization):
    """Draw dropout's masks from 64 random bits for four elements, in place of as many for each.

    On CPUs PyTorch has a parallel generator (MKL's) for Intel's processors alone; elsewhere one thread draws a number
    for each element while the others wait. A rate is rounded to 1/65536. While the training runs, this is the CPU's
    kernel of ``bernoulli_``, which `torch.library` has a public way to set: for dropout of all kinds, and in attention.
    """

    name = "dropout_masks"
    order = Order.PRECISION

    def __post_init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self._kernel: torch.library.Library | None = None  # it is in place as long as there is this object
        self._rates: list[float] = []

    @classmethod
    def proposals(cls, observed: Observed) -> Iterable[Proposal]:
        if observed.args.device.type == "cpu" and dropout_rates(observed.model):
            yield Proposal(gain=(1 - 1 / speedup()) * BEST_GAIN * observed.computing)

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        super().on_train_begin(args, state, control, **kwargs)
        self._rates = sorted(set(dropout_rates(model)))
        if args.device.type != "cpu":
            warnings.warn("dropout_masks: the training computes on an accelerator", NoEffectWarning, 2)
        elif not self._rates:
            warnings.warn("dropout_masks: the model has no dropout", NoEffectWarning, 2)
        else:
            self._kernel = torch.library.Library("aten", "IMPL")
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "Warning only once for all operators")  # it is meant
                self._kernel.impl("bernoulli_.float", draw, "CPU")

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._kernel = None

    def describe(self) -> dict[str, Any]:
        return {"rates": self._rates}


def dropout_rates(model: nn.Module) -> list[float]:
    """Of its dropout modules, and of dropout in its configuration, which functions may use; those above 0."""
    built = [module.p for module in model.modules() if isinstance(module, nn.modules.dropout._DropoutNd)]
    return [*configured_dropout(model).values(), *(rate for rate in built if rate > 0)]


def draw(out: torch.Tensor, p: float = 0.5, *, generator: torch.Generator | None = None) -> torch.Tensor:
    """Fill ``out``, of any shape and type, with ones at probability ``p`` and zeros else, as ``bernoulli_`` does.

    Raises:
        RuntimeError: ``p`` is not from 0 to 1.
    """
    if not 0 <= p <= 1:
        raise RuntimeError(f"bernoulli_ expects p to be in [0, 1], but got p={p}")
    ones, rarer = round(p * RESOLUTION), min(p, 1 - p)
    if ones in (0, RESOLUTION) or abs(ones - p * RESOLUTION) > OFF_BY * rarer * RESOLUTION:
        return torch.lt(torch.rand(out.shape, generator=generator), p, out=out)
    bits = torch.empty(math.ceil(out.numel() / 4), dtype=torch.int64).random_(-(2**63), None, generator=generator)
    values = bits.view(torch.int16)[: out.numel()].view(out.shape)
    return torch.lt(values, ones - RESOLUTION // 2, out=out)


def speedup(elements: int = 200_000, repeats: int = 5) -> float:
    """How many times faster `draw` is than ``bernoulli_`` on this CPU; no other random numbers are touched."""
    out, generator = torch.empty(elements), torch.Generator()
    stock = shortest_seconds(lambda: out.bernoulli_(0.9, generator=generator), repeats)
    return stock / shortest_seconds(lambda: draw(out, 0.9, generator=generator), repeats)

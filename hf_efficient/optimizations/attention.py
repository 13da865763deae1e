"""Which kernel computes attention."""

import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hf_efficient.errors import NoEffectWarning
from hf_efficient.functional.attention import implementation_of, switch_attention
from hf_efficient.optimization import Context, Optimization, Order
from hf_efficient.proposal import Observed, Proposal

if TYPE_CHECKING:
    from torch import nn

BEST_GAIN = 0.3
"""Share of forward and backward passes that another kernel saves at the very best, whatever the length."""
UNFUSED = 4
"""How many times as long as its arithmetic attention takes at the very worst: scores go through memory."""
TRIED = {"cpu": ("sdpa", "eager"), "cuda": ("sdpa", "flash_attention_2", "eager")}
"""Device type -> what `autotune` tries."""


@dataclass(eq=False, kw_only=True)
class Attention(Optimization):
    """Train with another implementation of attention, by transformers' attention interface.

    What it computes is the same but for rounding. The finished model has the one that it came with.
    """

    implementation: str = "sdpa"
    """eager: plain matrix products; sdpa: PyTorch's fused kernels; flash_attention_2, flash_attention_3 (Dao 2023,
    arXiv 2307.08691), flex_attention: where the device and the installed packages have them."""

    name = "attention"
    order = Order.PRECISION

    def __post_init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self._before: str | None = None

    @classmethod
    def proposals(cls, observed: Observed) -> Iterable[Proposal]:
        now = implementation_of(observed.model)
        for implementation in TRIED.get(observed.args.device.type, ()) if now else ():
            if implementation != now:
                yield Proposal({"implementation": implementation}, _best_gain(observed) * observed.computing)

    def prepare_model(self, model: "nn.Module", context: Context) -> "nn.Module":
        now = implementation_of(model)
        self._before = self._before or now  # a dense phase has switched it already
        if self._before is None:
            warnings.warn("attention: the model's code has one implementation alone", NoEffectWarning, 2)
        elif self._before == self.implementation:
            warnings.warn(f"attention.implementation={self.implementation} is in use already", NoEffectWarning, 2)
        elif now != self.implementation:
            self._switch(model, self.implementation)
        return model

    def finalize(self, model: "nn.Module") -> "nn.Module":
        if self._before is not None:
            self._switch(model, self._before)
        return model

    def _switch(self, model: Any, implementation: str) -> None:
        switch_attention(model, implementation, f"attention.implementation={implementation}", "drop attention")

    def describe(self) -> dict[str, Any]:
        return {"implementation": self.implementation, "before": self._before}


def _best_gain(observed: Observed) -> float:
    """By the share that attention has in a layer's arithmetic: 4 n^2 d of (4 n^2 d + 24 n d^2) operations, for n tokens
    of d features and four times as wide an intermediate layer."""
    width = getattr(observed.model.config, "hidden_size", None)
    if observed.lengths is None or not isinstance(width, int):
        return BEST_GAIN
    lengths = observed.lengths.double()
    scores = float(4 * (lengths**2).sum() * width)
    return min(BEST_GAIN, UNFUSED * scores / (scores + float(24 * lengths.sum() * width**2)))

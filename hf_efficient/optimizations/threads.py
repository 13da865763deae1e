"""How many threads compute on a CPU."""

import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch

from hf_efficient.errors import ConfigError, NoEffectWarning
from hf_efficient.machine import available_cores
from hf_efficient.optimization import Context, Optimization, Order
from hf_efficient.proposal import Observed, Proposal

BEST_GAIN = 0.5
"""Share of the computing that another number of threads saves at the very best."""
MANY = 8
"""Cores from which on half of them may be faster: they share caches and memory."""


@dataclass(eq=False, kw_only=True)
class Threads(Optimization):
    """Train with so many threads in each process; afterwards there are as many as before."""

    count: int | None = None
    """null: the physical cores that this process may use, shared out among the processes that train."""

    name = "threads"
    order = Order.PRECISION

    def __post_init__(self) -> None:
        if self.count is not None and self.count < 1:
            raise ConfigError(f"threads.count must be at least 1, got {self.count}")
        self._before = 0

    @classmethod
    def proposals(cls, observed: Observed) -> Iterable[Proposal]:
        if observed.args.device.type != "cpu":
            return
        now, cores = torch.get_num_threads(), _share(observed.args)
        fewer = cores // 2 if cores >= MANY else cores
        for count in sorted({cores, fewer} - {now}, reverse=True):
            yield Proposal({"count": count}, BEST_GAIN * observed.computing)

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        super().on_train_begin(args, state, control, **kwargs)
        count = _share(args) if self.count is None else self.count
        self._before = torch.get_num_threads()
        if count == self._before:
            warnings.warn(f"threads.count={count} is what PyTorch uses already", NoEffectWarning, 2)
        torch.set_num_threads(count)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        torch.set_num_threads(self._before)

    def check(self, context: Context) -> None:
        if context.args.device.type != "cpu":
            warnings.warn("threads: the training computes on an accelerator", NoEffectWarning, 2)

    def describe(self) -> dict[str, Any]:
        return {"count": self.count, "before": self._before}


def _share(args: Any) -> int:
    """Cores for each process of this training."""
    return max(1, available_cores() // args.world_size)

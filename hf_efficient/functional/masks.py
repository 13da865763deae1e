"""Masks: which weights are zero, how many at a step of the training, and what zeros hide."""

from collections.abc import Mapping, Sequence

import torch

from hf_efficient.functional.sharded import joined, own, own_part


def cubic_ramp(step: int, first: int, last: int) -> float:
    """Share of the final zeros, from 0 at step ``first`` to 1 at ``last``: most of them early, while much is redundant
    (Zhu & Gupta 2017, arXiv 1710.01878).
    """
    if step >= last:
        return 1.0
    return 1 - (1 - max(0, step - first) / (last - first)) ** 3


def least(scores: torch.Tensor, count: int) -> torch.Tensor:
    """Which ``count`` of ``scores`` (any shape) are least, as bools of the same shape; of equal ones, the first.

    The first, so that all processes choose alike on every device.
    """
    flat = scores.flatten()
    if count == 0:
        return torch.zeros_like(scores, dtype=torch.bool)
    limit = flat.topk(count, largest=False, sorted=False).values.max()
    below, equal = flat < limit, flat == limit
    return (below | (equal & (equal.cumsum(0) <= count - below.sum()))).reshape(scores.shape)


def least_of_all(scores: Sequence[torch.Tensor], share: float) -> list[torch.Tensor]:
    """As `least`, for ``share`` of the numbers of all tensors together."""
    together = torch.cat([each.flatten() for each in scores])
    parts = least(together, round(share * len(together))).split([each.numel() for each in scores])
    return [part.reshape(each.shape) for part, each in zip(parts, scores, strict=True)]


def least_in_groups(scores: torch.Tensor, count: int, size: int) -> torch.Tensor:
    """As `least`, in each run of ``size`` numbers along a row; rows (..., in) hold whole runs."""
    groups = scores.reshape(-1, size)
    chosen = groups.argsort(dim=1, stable=True)[:, :count]
    return torch.zeros_like(groups, dtype=torch.bool).scatter_(1, chosen, True).reshape(scores.shape)


class MaskedWeight:
    """A weight that is zero where its mask says so, and what it would be there.

    The model computes with the zeros themselves, so the gradient of a zero is that of the masked weight: just what the
    straight-through estimate of Sanh et al. 2020 (arXiv 2005.07683) multiplies with the weight that the zero hides.

    Where processes hold a part of the weight each, they hold the same part of what is kept here. Then `scores`, `mask`
    and `state`, which are about the whole, have to be called on all of them.

    Args:
        saved: what `state` gave.
        moves: whether to keep `movement` and `travel`.

    Attributes:
        weight: shape (out, in), as all here.
        zeros: how many there are in the whole.
        zero: where it is zero.
        hidden: where it is zero, what it was when it became so; 0 elsewhere.
        movement: sum over steps of ``-weight * gradient``, in fp32: positive for weights that move away from zero.
        travel: sum of the same without its sign, so that ``movement / travel`` is from -1 to 1.
    """

    def __init__(self, weight: torch.Tensor, saved: Mapping[str, torch.Tensor] | None = None, moves: bool = False):
        def tensor(name: str, dtype: torch.dtype) -> torch.Tensor:
            blank = torch.zeros_like(own(weight), dtype=dtype, requires_grad=False)
            return blank.copy_(own_part(saved[name], weight)) if saved and name in saved else blank

        self.weight = weight
        self.zeros = int(saved["zero"].sum()) if saved else 0
        self.zero = tensor("zero", torch.bool)
        self.hidden = tensor("hidden", weight.dtype)
        self.movement, self.travel = (tensor(name, torch.float32) if moves else None for name in ("movement", "travel"))

    @property
    def dense(self) -> torch.Tensor:
        return own(self.weight).detach() + self.hidden

    @property
    def scores(self) -> torch.Tensor:
        """By which elements are ranked: magnitude; where movement is kept, times one plus how steadily it goes away
        from zero, so twice the magnitude or nothing where all steps agree.

        The sum alone, as in the paper, did badly in trainings of some thousand steps; presumably it ranks by noise
        until more have been added up, and great weights have the most of that.
        """
        size = self.dense.float().abs()
        if self.movement is not None and self.travel is not None:
            size = size * (1 + self.movement / self.travel.clamp_min(torch.finfo(torch.float32).tiny))
        return joined(size, self.weight)

    def take_gradient(self, moving: bool = True) -> None:
        """Before an optimizer step: note the movement, and let the optimizer see no gradient of zeros."""
        if self.weight.grad is None:
            return
        gradient = own(self.weight.grad)
        if self.movement is not None and self.travel is not None and moving:
            # 16-bit gradients overflow now and then, and the optimizer skips the step
            step = torch.nan_to_num(self.dense.float() * gradient.float(), 0.0, 0.0, 0.0)
            self.movement -= step
            self.travel += step.abs()
        gradient.masked_fill_(self.zero, 0)

    @torch.no_grad()
    def enforce(self) -> None:
        """Make zero again what momentum and the like moved."""
        own(self.weight).masked_fill_(self.zero, 0)

    @torch.no_grad()
    def mask(self, zero: torch.Tensor) -> None:
        """From now on be zero there; what is not zero any more is what it was."""
        self.zeros, dense = int(zero.sum()), self.dense
        self.zero = own_part(zero, self.weight)
        self.hidden = dense.masked_fill(~self.zero, 0)
        own(self.weight).copy_(dense.masked_fill(self.zero, 0))

    def state(self) -> dict[str, torch.Tensor]:
        names = ("zero", "hidden") if self.movement is None else ("zero", "hidden", "movement", "travel")
        return {name: joined(getattr(self, name), self.weight) for name in names}

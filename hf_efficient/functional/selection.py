"""Which examples a pass over a training set leaves out, and how those that stay make up for it."""

import math

import torch


def soft_prune(
    scores: torch.Tensor, low: float, ratio: float, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """Leave out some of the examples with the lowest scores at random, and let the others of those weigh more.

    InfoBatch (Qin et al. 2023, arXiv 2303.04947), with two changes: low is not what is below the mean score but the
    lowest ``low`` of all, so that every pass is as long; and weights have the mean 1 over the examples that stay. So
    the weighted mean of their gradients, or losses, is that of all examples in the mean over draws.

    Args:
        scores: loss of each example when it was last seen, shape (examples,); inf where it was not.
        low: share of the examples that may be left out, from 0 to 1.
        ratio: share of these that are, from 0 to below 1.

    Returns:
        indices of the examples that stay, ascending; and the weight of every example, shape (examples,), 0 for those
        left out.
    """
    lowest = torch.argsort(scores, stable=True)[: math.floor(low * len(scores))]
    out = lowest[torch.randperm(len(lowest), generator=generator)[: left_out(len(scores), low, ratio)]]
    weights = torch.ones(len(scores))
    weights[lowest] = len(lowest) / max(1, len(lowest) - len(out))
    weights[out] = 0
    return weights.nonzero().flatten(), weights * (1 - len(out) / len(scores))


def left_out(count: int, low: float, ratio: float) -> int:
    """How many of ``count`` examples `soft_prune` leaves out."""
    return math.floor(ratio * math.floor(low * count))


def steps_of_passes(whole: int, pruned: int, passes: int, ending: float) -> list[int]:
    """Optimizer steps in each of ``passes`` passes: the first whole, for scores; the last ``ending`` of all, too.

    Args:
        whole, pruned: steps of a pass over all examples, and over those that stay.
    """
    last = math.ceil(ending * passes)
    return [whole if number == 0 or number >= passes - last else pruned for number in range(passes)]

"""Batches of examples of similar length: less padding, the same cost for each batch."""

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch


def by_length(examples: list[Any]) -> list[Any]:
    """``examples``, like lengths together, for less padding in batches; as they were where some have no tokens."""
    if not all("input_ids" in example for example in examples):
        return examples
    return sorted(examples, key=lambda example: len(example["input_ids"]))


def in_like_lengths(texts: Sequence[str], size: int, compute: Callable[[list[str]], np.ndarray]) -> np.ndarray:
    """What ``compute`` says of ``texts``, ``size`` of like length at a time; in their order, shape (texts, ...)."""
    order = np.argsort([len(text) for text in texts], kind="stable")
    parts = [order[start : start + size] for start in range(0, len(order), size)]
    found = np.concatenate([compute([texts[index] for index in part]) for part in parts])
    return found[np.argsort(order)]


def length_batches(
    lengths: torch.Tensor, steps: int, per_step: int, windows: int, generator: torch.Generator
) -> list[list[int]]:
    """Put every example into one of ``steps * per_step`` batches.

    Examples are shuffled and split into windows; within a window they are sorted by length and cut where the batches
    come out equally expensive (see `equal_cost`). So short examples stand in large batches, and which examples meet in
    a batch is random as far as windows and ties in length allow. Short and long ones take turns (see `spread`).

    Args:
        lengths: tokens of each example, shape (examples,), at least 1.
        steps: groups of batches, which may differ in length.
        per_step: batches in a group: processes times gradient accumulation.
        windows: at most this many windows, each of at least one step.
        generator: decides windows and order; the same seed gives the same batches.

    Returns:
        lists of example indices, none empty; the batches ``[k * per_step, (k + 1) * per_step)`` are step k.

    Raises:
        ValueError: fewer examples than batches.
    """
    if len(lengths) < steps * per_step:
        raise ValueError(f"{steps * per_step} batches need as many examples, got {len(lengths)}")
    order = torch.randperm(len(lengths), generator=generator)
    windows = max(1, min(windows, steps))
    batches: list[list[int]] = []
    for window in range(windows):
        first, last = (steps * edge // windows for edge in (window, window + 1))
        inside = order[len(order) * first // steps : len(order) * last // steps]
        by_length = inside[torch.argsort(lengths[inside], descending=True, stable=True)]
        edges = equal_cost(lengths[by_length].tolist(), (last - first) * per_step)
        found = [by_length[start:stop].tolist() for start, stop in itertools.pairwise(edges)]
        batches += [found[index] for index in spread(len(found), float(torch.rand((), generator=generator)))]
    return batches


def spread(count: int, start: float = 0.0) -> list[int]:
    """An order of ``count`` sorted things in which any few in a row are spread over all of them.

    Steps of the golden ratio around a circle, which is what fills it most evenly however many are taken. Batches of one
    length have gradients that differ by what depends on length; so ordered, that averages out over the few steps that
    an optimizer's momentum holds, as it does within a random batch (stratified sampling).

    Args:
        start: where on the circle, in [0, 1).
    """
    points = [(start + step * (math.sqrt(5) - 1) / 2) % 1 for step in range(count)]
    order = [0] * count
    for rank, step in enumerate(sorted(range(count), key=points.__getitem__)):
        order[step] = rank
    return order


def equal_cost(lengths: Sequence[int], batches: int) -> list[int]:
    """Edges that cut ``lengths`` into ``batches`` runs whose greatest cost is as small as can be.

    A run costs what it takes padded: its number of examples times its longest.

    Args:
        lengths: descending.
        batches: at most as many as ``lengths``.

    Returns:
        ``batches + 1`` ascending indices from 0 to ``len(lengths)``.
    """
    low, high = lengths[0] - 1, lengths[0] * len(lengths)
    while high - low > 1:
        middle = (low + high) // 2
        if len(_runs(lengths, middle)) - 1 <= batches:
            high = middle
        else:
            low = middle
    edges = _runs(lengths, high)
    while len(edges) - 1 < batches:  # fewer would do: halve the run with the most examples
        at = max(range(len(edges) - 1), key=lambda index: edges[index + 1] - edges[index])
        edges.insert(at + 1, (edges[at] + edges[at + 1]) // 2)
    return edges


def _runs(lengths: Sequence[int], budget: int) -> list[int]:
    """Edges of the fewest runs that cost at most ``budget`` each, which is at least ``lengths[0]``."""
    edges = [0]
    while edges[-1] < len(lengths):
        edges.append(min(len(lengths), edges[-1] + budget // lengths[edges[-1]]))
    return edges


def random_padding(lengths: torch.Tensor, batch_size: int, seed: int) -> float:
    """Share of padding in random batches.

    Args:
        lengths: tokens of each example, shape (examples,).
    """
    order = torch.randperm(len(lengths), generator=torch.Generator().manual_seed(seed))
    return 1 - int(lengths.sum()) / padded_tokens(lengths, order.split(batch_size))


def padded_tokens(lengths: torch.Tensor, batches: Sequence[Sequence[int] | torch.Tensor]) -> int:
    """Tokens that ``batches`` take when each is padded to its longest example."""
    return sum(len(batch) * int(lengths[torch.as_tensor(batch)].max()) for batch in batches)

"""Knowledge distillation: how far a student's outputs are from its teacher's. Tensors in, fp32 losses out.

Every loss is a mean over what is counted, so that it scales like the usual training loss.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F

RELATION_HEADS = 48
"""MiniLMv2's, for models that are 768 wide."""
RELATION_WIDTH = 8
"""Least width of a relation head, as 48 heads of a model that is 384 wide."""


def soft_targets(logits: torch.Tensor, temperature: float) -> torch.Tensor:
    """Log-probabilities (..., classes): the mean of what several teachers say, each softened by ``temperature``.

    Args:
        logits: shape (teachers, ..., classes).
    """
    said = F.log_softmax(logits.float() / temperature, dim=-1)
    return said[0] if len(said) == 1 else said.logsumexp(0) - math.log(len(said))


def soft_cross_entropy(
    student: torch.Tensor, targets: torch.Tensor, temperature: float, counted: torch.Tensor
) -> torch.Tensor:
    """Kullback-Leibler divergence of the student from `soft_targets`, times the temperature's square.

    It has the gradient of the cross-entropy with soft targets, and is 0 where the student says what the teacher says.
    The factor keeps gradients alike at every temperature (Hinton et al. 2015, arXiv 1503.02531).

    Args:
        student: logits (..., classes).
        targets: log-probabilities (..., classes).
        counted: boolean (...), which positions the mean is over.
    """
    said = F.log_softmax(student[counted].float() / temperature, dim=-1)
    divergence = F.kl_div(said, targets[counted], log_target=True, reduction="sum")
    return divergence * temperature**2 / counted.sum().clamp(min=1)


def squared_error(student: torch.Tensor, teachers: torch.Tensor, counted: torch.Tensor) -> torch.Tensor:
    """Mean squared distance of outputs that are no class scores to the mean of the teachers'.

    Args:
        student: shape (..., outputs).
        teachers: shape (teachers, ..., outputs).
        counted: boolean (...).
    """
    wanted = teachers.float().mean(0)[counted]
    return (student[counted].float() - wanted).square().mean(-1).sum() / counted.sum().clamp(min=1)


def hidden_loss(
    student: torch.Tensor, teacher: torch.Tensor, mask: torch.Tensor, weights: torch.Tensor
) -> torch.Tensor:
    """Mean squared error of hidden states over the teacher's mean square: 1 is what zeros would get, in any model.

    Taken example by example, so that it does not depend on which examples meet in a batch.

    Args:
        student, teacher: shape (examples, positions, width).
        mask: boolean (examples, positions), positions that are not padding.
        weights: of the examples in the mean, shape (examples,).
    """
    missed = (student.float() - teacher.float()).square().mean(-1) * mask
    size = teacher.float().square().mean(-1) * mask
    return mean_over_examples(missed.sum(1) / size.sum(1).clamp(min=1e-12), weights)


def relation_loss(
    student: Sequence[torch.Tensor],
    teacher: Sequence[torch.Tensor],
    heads: int,
    mask: torch.Tensor,
    weights: torch.Tensor,
) -> torch.Tensor:
    """Kullback-Leibler divergence between self-attention relations, the mean over query, key and value relations.

    A relation is the softmax of scaled dot products among the queries themselves, the keys, or the values. Split anew
    into as many heads on both sides, student and teacher compare whatever their own heads and widths are (MiniLMv2,
    Wang et al. 2021, arXiv 2012.15828).

    Args:
        student, teacher: queries, keys and values, each of shape (examples, positions, width).
        heads: relation heads; divides every width.
        mask: boolean (examples, positions), positions that are not padding.
        weights: of the examples in the mean, shape (examples,).
    """
    losses = []
    for ours, theirs in zip(student, teacher, strict=True):
        said, wanted = _relations(ours, heads, mask), _relations(theirs, heads, mask)
        divergence = F.kl_div(said, wanted, log_target=True, reduction="none").sum(-1).mean(1) * mask
        losses.append(mean_over_examples(divergence.sum(1) / mask.sum(1).clamp(min=1), weights))
    return torch.stack(losses).mean()


def _relations(projected: torch.Tensor, heads: int, mask: torch.Tensor) -> torch.Tensor:
    """Log-probabilities (examples, heads, positions, positions) of each position over all that are not padding."""
    split = projected.float().unflatten(-1, (heads, -1)).transpose(1, 2)
    scores = split @ split.transpose(-1, -2) / math.sqrt(split.shape[-1])
    # the least finite number: log-probabilities stay finite, and 0 times them stays 0
    return F.log_softmax(scores.masked_fill(~mask[:, None, None, :], torch.finfo(scores.dtype).min), dim=-1)


def relation_heads(*widths: int) -> int:
    """The most heads, up to `RELATION_HEADS`, that divide all ``widths`` and are at least `RELATION_WIDTH` wide."""
    most = max(1, min(RELATION_HEADS, min(widths) // RELATION_WIDTH))
    common = math.gcd(*widths)
    return next(heads for heads in range(most, 0, -1) if common % heads == 0)


def mean_over_examples(values: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Weighted mean of ``values`` (examples,); 0 where all weights are 0."""
    return (values * weights).sum() / weights.sum().clamp(min=1)


def layer_map(student_layers: int, teacher_layers: int) -> list[tuple[int, int]]:
    """Pairs (student layer, teacher layer), counted from 0: evenly spread, the last on the last.

    >>> layer_map(2, 6)
    [(0, 2), (1, 5)]
    """
    return [(index, math.ceil((index + 1) * teacher_layers / student_layers) - 1) for index in range(student_layers)]

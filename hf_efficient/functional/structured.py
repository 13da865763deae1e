"""Structured cuts: whole layers, heads and features in, whole ones out; what is left, repaired by least squares."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

Projection = nn.Linear | Conv1D
"""A matrix product. GPT-2's `Conv1D` is one, too, whose weight is transposed."""


def size_names(projection: Projection) -> tuple[str, str]:
    """Attributes that hold how many inputs and outputs it has."""
    return ("nx", "nf") if isinstance(projection, Conv1D) else ("in_features", "out_features")


def matrix(projection: Projection) -> torch.Tensor:
    """Its weight as (outputs, inputs), without gradient: a view, so what is written there is written to the weight."""
    weight: torch.Tensor = projection.weight.data
    return weight.T if isinstance(projection, Conv1D) else weight


def resized(projection: Projection, inputs: int, outputs: int, **options: Any) -> Projection:
    """One of these sizes with new weights, and with a bias where ``projection`` has one.

    Args:
        options: device and dtype.
    """
    if isinstance(projection, Conv1D):
        return Conv1D(outputs, inputs).to(**options)
    return nn.Linear(inputs, outputs, projection.bias is not None, **options)


def keep_layers(stack: nn.ModuleList, indices: Sequence[int]) -> nn.ModuleList:
    """The layers of ``stack`` at ``indices``, in that order; the layers themselves are shared, not copied."""
    return nn.ModuleList(stack[index] for index in indices)


def renumber(stack: nn.ModuleList) -> None:
    """Set every `layer_idx` inside ``stack`` to its layer's position: key-value caches are addressed by it."""
    for index, layer in enumerate(stack):
        for module in layer.modules():
            if hasattr(module, "layer_idx"):
                module.layer_idx = index  # type: ignore[assignment]


def majority_share(labels: torch.Tensor) -> float:
    """Share of the most frequent value in ``labels`` (any shape, integers), in [0, 1]."""
    return (torch.bincount(labels.flatten()).max() / labels.numel()).item()


def rows_of_units(units: Sequence[int], size: int, total: int, parts: int = 1) -> torch.Tensor:
    """Indices of the rows (or columns) that belong to ``units``.

    Args:
        size: rows of a unit in each part.
        total: rows there are.
        parts: equal blocks of rows, in each of which every unit has its share.
    """
    within = torch.as_tensor(units, dtype=torch.long)[:, None] * size + torch.arange(size)
    starts = torch.arange(parts) * (total // parts)
    return (starts[:, None] + within.flatten()).flatten()


def narrowed(
    projection: Projection, rows: torch.Tensor | None = None, columns: torch.Tensor | None = None
) -> Projection:
    """``projection`` with only these output rows or input columns; its bias loses the same rows."""
    weight, bias = matrix(projection), None if projection.bias is None else projection.bias.data
    if rows is not None:
        weight, bias = weight[rows.to(weight.device)], None if bias is None else bias[rows.to(weight.device)]
    if columns is not None:
        weight = weight[:, columns.to(weight.device)]
    made = resized(projection, weight.shape[1], weight.shape[0], device="meta")
    kept = weight.T if isinstance(projection, Conv1D) else weight
    made.weight = nn.Parameter(kept.clone(memory_format=torch.contiguous_format), projection.weight.requires_grad)
    if bias is not None:
        made.bias = nn.Parameter(bias.clone(), requires_grad=projection.bias.requires_grad)
    return made.train(projection.training)


class Moments:
    """Second moments of inputs x (tokens, n) and targets t (tokens, m), enough for every least-squares fit of t on x.

    Args:
        intercept: the fits have a bias; without one, nothing is centred.

    Attributes:
        xx: centred sum of squares of x, shape (n, n), float64 as all here.
        xt: centred cross moments, shape (n, m).
        tt: centred sum of squares of t, summed over its m columns.
    """

    def __init__(self, inputs: int, targets: int, intercept: bool = True):
        self.count, self.intercept = 0, intercept
        self._x, self._t = torch.zeros(inputs, dtype=torch.float64), torch.zeros(targets, dtype=torch.float64)
        self._xx = torch.zeros(inputs, inputs, dtype=torch.float64)
        self._xt = torch.zeros(inputs, targets, dtype=torch.float64)
        self._tt = 0.0

    def add(self, x: torch.Tensor, t: torch.Tensor) -> None:
        x, t = x.float(), t.float()
        self.count += len(x)
        self._xx += (x.T @ x).double().cpu()
        self._xt += (x.T @ t).double().cpu()
        self._x += x.sum(0).double().cpu()
        self._t += t.sum(0).double().cpu()
        self._tt += t.double().square().sum().item()

    @property
    def mean_x(self) -> torch.Tensor:
        return self._x / self.count * self.intercept

    @property
    def mean_t(self) -> torch.Tensor:
        return self._t / self.count * self.intercept

    @property
    def xx(self) -> torch.Tensor:
        return self._xx - torch.outer(self._x, self.mean_x)

    @property
    def xt(self) -> torch.Tensor:
        return self._xt - torch.outer(self._x, self.mean_t)

    @property
    def tt(self) -> float:
        return self._tt - (self._t @ self.mean_t).item()


def repaired(
    moments: Moments, columns: torch.Tensor, weight: torch.Tensor, ridge: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Weight (m, kept) and bias (m,) that best give the targets from the kept inputs alone.

    Minimises ``|t - W x - b|^2 + ridge * mean(diag(xx)) * |W - W_old|^2`` over the moments' tokens: what is cut off is
    made up for by what is left (Hassibi & Stork 1993, OBS; Kwon et al. 2022, arXiv 2204.09656).

    Args:
        columns: of the inputs that are kept.
        weight: W_old of those columns, shape (m, kept).
        ridge: pull towards the old weight, relative to the inputs' mean square.
    """
    xx = moments.xx[columns][:, columns]
    pull = ridge * xx.diagonal().mean().clamp_min(1e-12)
    old = weight.double().cpu()
    solution = torch.linalg.solve(
        xx + pull * torch.eye(len(columns), dtype=xx.dtype), moments.xt[columns] + pull * old.T
    )
    return solution.T, moments.mean_t - solution.T @ moments.mean_x[columns]


def removal_order(moments: Moments, weight: torch.Tensor, size: int, ridge: float, least: int = 1) -> list[int]:
    """Units in the order in which they can go with the least squared error, the others making up for each.

    The structured optimal brain surgeon (Kurtic et al. 2023, ZipLM, arXiv 2302.04089): of the units left, those go next
    whose removal costs least once the rest is refitted; a fifth of them at a time, then costs are computed anew.

    Args:
        weight: of the output projection, shape (m, units * size).
        size: columns of a unit.
        least: units that are never reached: they come last, in the order of their cost.
    """
    left = list(range(weight.shape[1] // size))
    gone: list[int] = []
    while len(left) > least:
        costs = removal_costs(moments, weight, left, size, ridge)
        ranked = costs.argsort().tolist()
        count = min(max(1, len(left) // 5), len(left) - least)
        gone += [left[position] for position in ranked[:count]]
        left = sorted(set(left) - set(gone))
    last = removal_costs(moments, weight, left, size, ridge).argsort().tolist()
    return gone + [left[position] for position in last]


def removal_costs(
    moments: Moments, weight: torch.Tensor, units: Sequence[int], size: int, ridge: float
) -> torch.Tensor:
    """Growth of the squared error when one of ``units`` goes and the others are refitted, shape (units,)."""
    columns = rows_of_units(units, size, weight.shape[1])
    xx = moments.xx[columns][:, columns]
    pull = ridge * xx.diagonal().mean().clamp_min(1e-12)
    inverse = torch.linalg.inv(xx + pull * torch.eye(len(columns), dtype=xx.dtype))
    fitted = inverse @ (moments.xt[columns] + pull * weight[:, columns].double().cpu().T)  # (columns, m)
    blocks = torch.stack([inverse[i : i + size, i : i + size] for i in range(0, len(columns), size)])
    parts = fitted.reshape(len(units), size, -1)
    return (parts * torch.linalg.solve(blocks, parts)).sum((1, 2))

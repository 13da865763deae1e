"""Updates of the rows of a table that have a gradient, and nothing for the others."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn


def sgd_rows(weight: torch.Tensor, gradient: torch.Tensor, *, lr: float, weight_decay: float = 0.0) -> None:
    """Plain gradient descent; the same as of the whole table, but that decay reaches only rows with a gradient.

    Args:
        weight: shape (rows, features); changed in place.
        gradient: sparse and coalesced, of that shape.
    """
    rows, values = gradient.indices()[0], gradient.values()
    if weight_decay:
        values = values + weight_decay * weight[rows]
    weight.index_add_(0, rows, values, alpha=-lr)


def adamw_rows(
    weight: torch.Tensor,
    gradient: torch.Tensor,
    state: dict[str, Any],
    *,
    lr: float,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float = 0.0,
) -> None:
    """AdamW (Loshchilov and Hutter 2019, arXiv 1711.05101) of rows with a gradient; others and their moments rest.

    A row that has a gradient in every step moves as with AdamW. One that has not, moves only in the steps in which it
    has one: its moments do not fade in between, and it does not go on by momentum, nor decay.

    Args:
        weight: shape (rows, features); changed in place.
        gradient: sparse and coalesced, of that shape.
        state: of this table, empty at first. ``step``; ``slots``, shape (rows,): where the moments of a row are, -1
            where it has none; ``exp_avg`` and ``exp_avg_sq``, shape (at least rows seen, features).
    """
    rows, values = gradient.indices()[0], gradient.values()
    slots = _slots(weight, rows, state)
    state["step"] += 1
    steps = float(state["step"])
    mean = state["exp_avg"][slots].lerp_(values, 1 - betas[0])
    square = state["exp_avg_sq"][slots].mul_(betas[1]).addcmul_(values, values, value=1 - betas[1])
    state["exp_avg"][slots], state["exp_avg_sq"][slots] = mean, square
    scale = (square.sqrt_() / (1 - betas[1] ** steps) ** 0.5).add_(eps)
    change = mean.div_(scale).mul_(-lr / (1 - betas[0] ** steps))
    if weight_decay:
        change.add_(weight[rows], alpha=-lr * weight_decay)
    weight.index_add_(0, rows, change)


def _slots(weight: torch.Tensor, rows: torch.Tensor, state: dict[str, Any]) -> torch.Tensor:
    """Where the moments of ``rows`` are; places are made for those that have none."""
    if not state:
        state["step"] = torch.zeros((), dtype=torch.float32)
        state["slots"] = torch.full((len(weight),), -1, device=weight.device)
        for name in ("exp_avg", "exp_avg_sq"):
            state[name] = weight.new_zeros(0, weight.shape[1])
    new = rows[state["slots"][rows] < 0]
    if len(new):
        used = rows_seen(state)
        state["slots"][new] = torch.arange(used, used + len(new), device=weight.device)
        missing = used + len(new) - len(state["exp_avg"])
        if missing > 0:
            more = max(missing, len(state["exp_avg"]) // 4)  # not for every few rows anew
            for name in ("exp_avg", "exp_avg_sq"):
                state[name] = torch.cat([state[name], weight.new_zeros(more, weight.shape[1])])
    return state["slots"][rows]


def rows_seen(state: Mapping[str, Any]) -> int:
    """Rows of which moments are kept in a state of `adamw_rows`."""
    return int((state["slots"] >= 0).sum())


class DenseGradients:
    """What computes and clips norms takes this for a module: parameters with sparse gradients stand by their values.

    PyTorch (2.13) has no norm of sparse tensors in `clip_grad_norm_`. Values lie in the gradient's own memory, so that
    scaling them scales it.
    """

    def __init__(self, model: nn.Module):
        self.model = model

    def parameters(self) -> list[torch.Tensor]:
        return [_by_values(parameter) for parameter in self.model.parameters()]


def _by_values(parameter: torch.Tensor) -> torch.Tensor:
    if parameter.grad is None or not parameter.grad.is_sparse:
        return parameter
    parameter.grad = parameter.grad.coalesce()
    stand_in = nn.Parameter(parameter.grad._values(), requires_grad=True)
    stand_in.grad = parameter.grad._values()
    return stand_in


def has_sparse_gradients(model: nn.Module) -> bool:
    return any(parameter.grad is not None and parameter.grad.is_sparse for parameter in model.parameters())

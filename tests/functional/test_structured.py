"""Cuts on plain modules."""

import pytest
import torch
from torch import nn

from hf_efficient.functional.structured import (
    Moments,
    keep_layers,
    majority_share,
    narrowed,
    removal_costs,
    removal_order,
    renumber,
    repaired,
    rows_of_units,
)


def test_kept_layers_are_the_same_objects() -> None:
    stack = nn.ModuleList(nn.Linear(1, 1) for _ in range(4))
    kept = keep_layers(stack, [0, 3])
    assert [id(layer) for layer in kept] == [id(stack[0]), id(stack[3])]
    assert len(stack) == 4


def test_renumber() -> None:
    stack = nn.ModuleList(nn.Sequential(nn.Linear(1, 1)) for _ in range(3))
    for index, layer in enumerate(stack):
        layer[0].layer_idx = index + 5
    renumber(stack)
    assert [layer[0].layer_idx for layer in stack] == [0, 1, 2]
    assert not hasattr(stack[0], "layer_idx")


@pytest.mark.parametrize(("labels", "share"), [([0, 0, 0, 1], 0.75), ([[2, 2], [1, 0]], 0.5), ([4], 1.0)])
def test_majority_share(labels: list, share: float) -> None:
    assert majority_share(torch.tensor(labels)) == share


def test_rows_of_units_in_parts() -> None:
    """Three parts of two heads with two rows each, as in a fused projection of query, key and value."""
    assert rows_of_units([1], 2, 12, parts=3).tolist() == [2, 3, 6, 7, 10, 11]
    assert rows_of_units([0, 2], 1, 3).tolist() == [0, 2]


def test_narrowed_linear_computes_the_rows_and_columns_that_stay() -> None:
    linear = nn.Linear(4, 6).eval()
    rows, columns = torch.tensor([0, 5]), torch.tensor([1, 2])
    x = torch.randn(3, 4)
    torch.testing.assert_close(narrowed(linear, rows=rows)(x), linear(x)[:, rows])
    zeroed = x.clone()
    zeroed[:, [0, 3]] = 0
    made = narrowed(linear, columns=columns)
    torch.testing.assert_close(made(x[:, columns]), linear(zeroed))
    assert not made.training
    assert made.weight.requires_grad


def data(tokens: int = 400, inputs: int = 6, targets: int = 3) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(tokens, inputs, generator=generator)
    x[:, 5] = x[:, 0] + x[:, 1] + 0.01 * torch.randn(tokens, generator=generator)  # can be made up for
    weight = torch.randn(targets, inputs, generator=generator)
    return x, weight, x @ weight.T + 2


@pytest.mark.parametrize("intercept", [True, False])
def test_repair_is_least_squares(intercept: bool) -> None:
    x, weight, t = data()
    moments = Moments(6, 3, intercept)
    for part in (slice(0, 150), slice(150, None)):
        moments.add(x[part], t[part])
    columns = torch.tensor([0, 1, 2])
    found, bias = repaired(moments, columns, weight[:, columns], ridge=0)
    design = torch.cat([x[:, columns], torch.ones(len(x), int(intercept))], 1)
    expected = torch.linalg.lstsq(design.double(), t.double()).solution
    torch.testing.assert_close(found, expected[:3].T, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(bias, expected[3] if intercept else torch.zeros(3).double(), rtol=1e-5, atol=1e-5)


def test_ridge_pulls_towards_the_old_weight() -> None:
    x, weight, t = data()
    moments = Moments(6, 3)
    moments.add(x, t)
    columns = torch.arange(3)
    found, _ = repaired(moments, columns, weight[:, columns], ridge=1e6)
    torch.testing.assert_close(found, weight[:, columns].double(), rtol=1e-3, atol=1e-3)


def test_what_others_can_make_up_for_goes_first() -> None:
    x, weight, t = data()
    moments = Moments(6, 3)
    moments.add(x, t)
    order = removal_order(moments, weight, size=1, ridge=1e-6)
    assert sorted(order) == list(range(6))
    assert order[0] in (0, 1, 5)  # one of the three that depend on each other


def test_removal_costs_are_those_of_refitting() -> None:
    x, weight, t = data()
    moments = Moments(6, 3)
    moments.add(x, t)
    costs = removal_costs(moments, weight, [0, 1, 2], size=2, ridge=0)
    for unit in range(3):
        columns = torch.tensor([c for c in range(6) if c // 2 != unit])
        found, bias = repaired(moments, columns, weight[:, columns], ridge=0)
        rest = (t.double() - x[:, columns].double() @ found.T - bias).square().sum().item()
        assert costs[unit].item() == pytest.approx(rest, rel=1e-4)

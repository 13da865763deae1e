"""Merges of units, on activations whose best fit is known."""

import itertools

import pytest
import torch

from hf_efficient.functional.merge import Merger
from hf_efficient.functional.structured import Moments

TOKENS, OUTPUTS = 400, 5


def observed(x: torch.Tensor, weight: torch.Tensor, intercept: bool = True) -> Moments:
    moments = Moments(x.shape[1], len(weight), intercept)
    moments.add(x, x @ weight.T)
    return moments


def made(units: int, size: int = 1, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Activations and weights."""
    generator = torch.Generator().manual_seed(seed)
    width = units * size
    x = torch.randn(TOKENS, width, generator=generator) @ torch.randn(width, width, generator=generator) + 1
    return x, torch.randn(OUTPUTS, width, generator=generator)


def test_a_multiple_goes_without_loss() -> None:
    x, weight = made(6)
    x[:, 4] = 2.5 * x[:, 1] + 3
    merger = Merger(observed(x, weight), weight, 1)
    lost, gone, into = merger.cheapest()
    assert {gone, into} == {1, 4}
    assert lost == pytest.approx(0, abs=1e-5)
    merger.merge(gone, into)
    found = x.double() @ merger.weight.T + merger.bias
    torch.testing.assert_close(found, (x @ weight.T).double(), rtol=1e-3, atol=1e-3)
    assert merger.weight[:, gone].eq(0).all()
    assert merger.left.sum() == 5


@pytest.mark.parametrize(("units", "size"), [(6, 1), (4, 3)])
@pytest.mark.parametrize("intercept", [True, False])
def test_loss_is_that_of_the_best_pair(units: int, size: int, intercept: bool) -> None:
    """Every pair by plain least squares."""
    x, weight = made(units, size, seed=1)
    moments = observed(x, weight, intercept)
    losses = {}
    for gone, into in itertools.permutations(range(units), 2):
        blocks = [x[:, unit * size : (unit + 1) * size].double() for unit in (gone, into)]
        given = torch.cat([blocks[1], torch.ones(TOKENS, 1)], 1) if intercept else blocks[1]
        rest = blocks[0] - given @ torch.linalg.lstsq(given, blocks[0]).solution
        error = rest @ weight[:, gone * size : (gone + 1) * size].double().T
        losses[gone, into] = error.square().sum().item() / moments.tt
    merger = Merger(moments, weight, size)
    lost, gone, into = merger.cheapest()
    assert (gone, into) == min(losses, key=lambda pair: losses[pair])
    assert lost == pytest.approx(losses[gone, into], rel=1e-3)
    merger.merge(gone, into)
    outputs = (x @ weight.T).double()
    error = outputs - x.double() @ merger.weight.T - (merger.bias if intercept else 0)
    assert error.square().sum().item() / moments.tt == pytest.approx(lost, rel=1e-3)


def test_merged_units_can_be_merged_again() -> None:
    x, weight = made(5)
    x[:, 1], x[:, 2] = -x[:, 0], 3 * x[:, 0] - 1
    merger = Merger(observed(x, weight), weight, 1)
    for left in (4, 3):
        lost, gone, into = merger.cheapest()
        assert lost == pytest.approx(0, abs=1e-5)
        assert {gone, into} <= {0, 1, 2}
        merger.merge(gone, into)
        assert merger.left.sum() == left
    found = x.double() @ merger.weight.T + merger.bias
    torch.testing.assert_close(found, (x @ weight.T).double(), rtol=1e-3, atol=1e-3)
    assert merger.cheapest()[0] > 1e-4


def test_units_that_are_not_alike_stay_apart() -> None:
    x, weight = made(4)
    x = torch.linalg.qr(x - x.mean(0)).Q * 10
    x[:, 3] = x[:, 0] + 0.1 * x[:, 1]
    merger = Merger(observed(x, weight), weight, 1, alike=0.9)
    _, gone, into = merger.cheapest()
    assert {gone, into} == {0, 3}
    merger.merge(gone, into)
    assert merger.cheapest()[0] == float("inf")

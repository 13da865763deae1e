"""Masks against their definitions."""

import pytest
import torch

from hf_efficient.functional.masks import MaskedWeight, cubic_ramp, least, least_in_groups, least_of_all
from hf_efficient.optimizations.quantization import TARGETS
from hf_efficient.rounding import Rounding, Scheme


def test_ramp() -> None:
    assert [cubic_ramp(step, 2, 6) for step in (0, 2, 4, 6, 9)] == [0, 0, 1 - 0.5**3, 1, 1]
    assert cubic_ramp(0, 0, 0) == 1


def test_exactly_as_many_go_as_asked_even_among_equals() -> None:
    scores = torch.tensor([[3.0, 1.0, 1.0], [1.0, 2.0, 0.0]])
    assert least(scores, 3).tolist() == [[False, True, True], [False, False, True]]
    assert not least(scores, 0).any()
    assert least(scores, 6).all()
    assert least(torch.zeros(10), 4).tolist() == 4 * [True] + 6 * [False]


def test_of_all_tensors_together() -> None:
    small, large = least_of_all([torch.tensor([[0.1, 0.2]]), torch.tensor([5.0, 0.15, 6.0])], 0.6)
    assert small.tolist() == [[True, True]]
    assert large.tolist() == [False, True, False]


def test_in_groups() -> None:
    scores = torch.tensor([[4.0, 3.0, 2.0, 1.0, 0.0, 0.0, 0.0, 9.0]])
    assert least_in_groups(scores, 2, 4).tolist() == [[False, False, True, True, True, True, False, False]]
    assert not least_in_groups(scores, 0, 4).any()


def test_what_a_zero_hides_comes_back() -> None:
    masked = MaskedWeight(torch.nn.Parameter(torch.tensor([[1.0, -2.0, 3.0]])))
    masked.mask(torch.tensor([[True, True, False]]))
    assert masked.weight.tolist() == [[0, 0, 3]]
    assert masked.scores.tolist() == [[1, 2, 3]]
    with torch.no_grad():
        masked.weight += 10  # momentum
    masked.enforce()
    assert masked.weight.tolist() == [[0, 0, 13]]
    masked.mask(torch.tensor([[True, False, True]]))
    assert masked.weight.tolist() == [[0, -2, 0]]
    assert masked.hidden.tolist() == [[1, 0, 13]]


def test_movement_is_the_straight_through_gradient_of_the_mask() -> None:
    """With scores that multiply the dense weights, as in the paper: the mask's own gradient, summed with its sign."""
    torch.manual_seed(0)
    dense, zero = torch.randn(4, 6), torch.rand(4, 6) < 0.5
    masked = MaskedWeight(torch.nn.Parameter(dense.clone()), moves=True)
    masked.mask(zero)
    expected = torch.zeros(4, 6)
    for _ in range(3):
        inputs, wanted = torch.randn(5, 6), torch.randn(5, 4)
        mask = (~zero).float().requires_grad_()
        torch.nn.functional.mse_loss(inputs @ (dense * mask).T, wanted).backward()
        expected -= mask.grad
        masked.weight.grad = None
        torch.nn.functional.mse_loss(inputs @ masked.weight.T, wanted).backward()
        masked.take_gradient()
        assert not masked.weight.grad[zero].any()
        assert masked.weight.grad[~zero].all()
    torch.testing.assert_close(masked.movement, expected)
    assert masked.movement[zero].any()


def test_gradients_that_overflowed_or_are_missing_count_for_nothing() -> None:
    masked = MaskedWeight(torch.nn.Parameter(torch.tensor([[1.0, 2.0, 3.0]])), moves=True)
    masked.take_gradient()
    masked.weight.grad = torch.tensor([[float("inf"), float("nan"), 1.0]])
    masked.take_gradient()
    assert masked.movement.tolist() == [[0, 0, -3]]
    masked.take_gradient(moving=False)
    assert masked.movement.tolist() == [[0, 0, -3]]
    assert masked.scores.tolist() == [[1, 2, 0]]


def test_a_weight_that_goes_to_and_fro_counts_by_its_size() -> None:
    masked = MaskedWeight(torch.nn.Parameter(torch.full((1, 4), -2.0)), moves=True)
    for signs in ([1.0, 1.0, -1.0, 3.0], [1.0, -1.0, -1.0, -1.0]):
        masked.weight.grad = torch.tensor([signs])
        masked.take_gradient()
    assert masked.scores.tolist() == [[4, 2, 0, 3]]


def test_state_goes_back() -> None:
    masked = MaskedWeight(torch.nn.Parameter(torch.tensor([[1.0, 2.0]])), moves=True)
    masked.mask(torch.tensor([[True, False]]))
    again = MaskedWeight(torch.nn.Parameter(masked.weight.detach().clone()), masked.state(), moves=True)
    assert torch.equal(again.dense, torch.tensor([[1.0, 2.0]]))
    assert {name: value.tolist() for name, value in again.state().items()} == {
        name: value.tolist() for name, value in masked.state().items()
    }


SCHEMES = {**TARGETS, "int4": Scheme("group", bits=4, group=8), "fixed_point": Scheme("step", step=2**-6)}


@pytest.mark.parametrize("scheme", SCHEMES)
def test_every_rounding_keeps_zeros(scheme: str) -> None:
    torch.manual_seed(0)
    layer = torch.nn.Linear(32, 16)
    zero = least_in_groups(layer.weight.abs(), 2, 4)
    layer.weight.data.masked_fill_(zero, 0)
    before = layer.weight.clone()
    Rounding(SCHEMES[scheme]).fold(layer)
    assert not layer.weight[zero].any()
    assert not torch.equal(layer.weight, before)

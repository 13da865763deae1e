"""The cheapest set of cuts within a budget."""

import itertools

import numpy as np
import pytest

from hf_efficient.functional.allocation import allocate


def brute_force(errors: list[list[float]], costs: list[list[float]], budget: float) -> float:
    choices = itertools.product(*(range(len(options)) for options in errors))
    return min(
        sum(row[i] for row, i in zip(errors, choice, strict=True))
        for choice in choices
        if sum(row[i] for row, i in zip(costs, choice, strict=True)) <= budget
    )


@pytest.mark.parametrize("seed", range(5))
def test_is_as_good_as_trying_everything(seed: int) -> None:
    generator = np.random.default_rng(seed)
    costs = [sorted(map(float, generator.integers(1, 20, 4)), reverse=True) for _ in range(5)]
    errors = [sorted(map(float, generator.random(4))) for _ in range(5)]
    budget = 40.0  # a whole number of steps for every cost
    chosen = allocate(errors, costs, budget)
    assert chosen is not None
    assert sum(row[i] for row, i in zip(costs, chosen, strict=True)) <= budget
    assert sum(row[i] for row, i in zip(errors, chosen, strict=True)) == pytest.approx(
        brute_force(errors, costs, budget)
    )


def test_a_budget_below_the_cheapest_is_refused() -> None:
    assert allocate([[0.0, 1.0]], [[5.0, 2.0]], 1.9) is None
    assert allocate([[0.0, 1.0]], [[5.0, 2.0]], 2.0) == [1]
    assert allocate([[0.0, 1.0]], [[5.0, 2.0]], -1.0) is None


def test_a_budget_of_just_the_cheapest_is_taken() -> None:
    """Although each of the cheapest, rounded, is a little dearer than it is."""
    assert allocate(3 * [[0.0, 1.0]], 3 * [[8.0, 6.676]], 20.03) == [1, 1, 1]


def test_an_ample_budget_costs_no_error() -> None:
    assert allocate([[0.0, 1.0], [0.0, 2.0]], [[5.0, 2.0], [3.0, 1.0]], 100.0) == [0, 0]

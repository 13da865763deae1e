"""Batches by length: complete, even in cost, random where they may be."""

import itertools

import pytest
import torch

from hf_efficient.functional.batching import equal_cost, length_batches, padded_tokens, spread


def lengths(count: int = 400, seed: int = 0) -> torch.Tensor:
    """Many short examples and a few long ones, as texts are."""
    generator = torch.Generator().manual_seed(seed)
    return (torch.rand(count, generator=generator) ** 3 * 60).long() + 3


def make(tokens: torch.Tensor, steps: int, per_step: int = 1, windows: int = 2, seed: int = 0) -> list[list[int]]:
    return length_batches(tokens, steps, per_step, windows, torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("steps", "per_step", "windows"), [(20, 1, 1), (13, 2, 3), (7, 3, 50), (1, 1, 1), (400, 1, 4)])
def test_every_example_once_in_the_planned_number_of_batches(steps: int, per_step: int, windows: int) -> None:
    batches = make(lengths(), steps, per_step, windows)
    assert len(batches) == steps * per_step
    assert sorted(index for batch in batches for index in batch) == list(range(400))
    assert all(batches)


def test_batches_cost_about_the_same() -> None:
    tokens = lengths(2000)
    costs = [len(batch) * int(tokens[batch].max()) for batch in make(tokens, 40, windows=1)]
    assert max(costs) <= 1.1 * sum(costs) / len(costs)


def test_less_padding_than_random_batches() -> None:
    tokens = lengths()
    order = torch.randperm(400, generator=torch.Generator().manual_seed(1)).tolist()
    random = [order[start : start + 20] for start in range(0, 400, 20)]
    assert padded_tokens(tokens, make(tokens, 20)) < 0.6 * padded_tokens(tokens, random)
    assert padded_tokens(tokens, make(tokens, 20)) >= int(tokens.sum())


def test_seed_decides() -> None:
    tokens = lengths()
    assert make(tokens, 20, seed=3) == make(tokens, 20, seed=3)
    assert make(tokens, 20, seed=3) != make(tokens, 20, seed=4)


def test_with_as_many_windows_as_steps_each_holds_as_much() -> None:
    batches = make(lengths(), 20, per_step=2, windows=20)
    steps = [len(batches[start]) + len(batches[start + 1]) for start in range(0, 40, 2)]
    assert steps == [20] * 20


@pytest.mark.parametrize("count", [1, 2, 7, 50, 282])
@pytest.mark.parametrize("start", [0.0, 0.4])
def test_any_few_in_a_row_are_spread_over_all(count: int, start: float) -> None:
    order = spread(count, start)
    assert sorted(order) == list(range(count))
    for few in (5, 10, 20):
        for first in range(count - few + 1):
            middle = sum(order[first : first + few]) / few / (count - 1)
            assert abs(middle - 0.5) < 1.1 / few


def test_too_few_examples() -> None:
    with pytest.raises(ValueError, match="10 batches need as many examples, got 4"):
        make(lengths(4), 10)


@pytest.mark.parametrize(
    ("tokens", "batches", "edges"),
    [
        ([8, 4, 4, 2, 2, 2, 2], 3, [0, 1, 3, 7]),
        ([5, 5, 5, 5], 2, [0, 2, 4]),
        ([9, 1, 1], 3, [0, 1, 2, 3]),
        ([9, 1, 1, 1], 2, [0, 1, 4]),
        ([7], 1, [0, 1]),
    ],
)
def test_equal_cost(tokens: list[int], batches: int, edges: list[int]) -> None:
    assert equal_cost(tokens, batches) == edges


def test_equal_cost_is_the_least_possible() -> None:
    """Against every way to cut nine examples into three runs."""
    tokens = sorted(lengths(9, seed=5).tolist(), reverse=True)

    def worst(edges: list[int]) -> int:
        return max(tokens[start] * (stop - start) for start, stop in itertools.pairwise(edges))

    best = min(worst([0, first, second, 9]) for first in range(1, 8) for second in range(first + 1, 9))
    assert worst(equal_cost(tokens, 3)) == best

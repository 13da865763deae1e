from pathlib import Path
from typing import Any

import pytest

from hf_efficient.search.goals import Goals, Objective
from hf_efficient.search.spread import spread
from tests.search.test_space import LAYERS, RATE, of

TRADED = Goals((Objective("accuracy", True), Objective("latency_ms", False)))
FFN = "stages.compress.optimizations.structured_pruning.keep_ffn"
SEED = "seed"
SPACE: dict[str, Any] = {
    RATE: {"low": 1e-4, "high": 1e-2, "log": True},
    "stages.compress.training.weight_decay": {"low": 0.0, "high": 0.1},  # not in the recipe
    LAYERS: [[0], [0, 1]],
    FFN: {"low": 0.25, "high": 1.0, "step": 0.25},
    SEED: {"low": 1, "high": 100, "log": True},
}


def test_first_trials_are_the_cheapest_as_given_and_with_a_larger_rate(recipe: Path) -> None:
    space = of(recipe, SPACE)
    cheapest, faster = found = spread(space, TRADED, 12, seed=0)
    assert cheapest.keys() == {RATE, LAYERS, FFN, SEED}
    assert cheapest[RATE] == 5e-3
    assert cheapest[SEED] in range(1, 101)
    assert cheapest[FFN] == 0.25
    assert cheapest[LAYERS] == "[0]"  # as given: which of some choices is cheaper is not known
    assert faster == {**cheapest, RATE: pytest.approx((5e-3 * 1e-2) ** 0.5)}
    assert spread(space, TRADED, 12, seed=0) == found
    assert spread(space, TRADED, 12, seed=1)[0] == cheapest
    assert spread(space, TRADED, 5, seed=0) == [cheapest]


def test_without_a_larger_rate_another_shape_comes(recipe: Path) -> None:
    """It learns as given, as the cheapest does."""
    for rate in ({"low": 1e-4, "high": 5e-3, "log": True}, [1e-3, 5e-3]):
        space = of(recipe, {**SPACE, RATE: rate})
        cheapest, other = spread(space, TRADED, 12, seed=0)
        assert cheapest[RATE] == other[RATE] == 5e-3
        assert other[FFN] in (0.25, 0.5, 0.75, 1.0)
        assert other != cheapest
        assert spread(space, TRADED, 12, seed=1)[1] != other


def test_more_of_a_setting_may_be_cheaper(recipe: Path) -> None:
    target = "stages.compress.optimizations.structured_pruning.target_speedup"
    cheapest, _ = spread(of(recipe, {RATE: SPACE[RATE], target: {"low": 1.5, "high": 4.0}}), TRADED, 12, seed=0)
    assert cheapest[target] == 4.0


def test_all_of_them_differ_in_shape_where_there_are_shapes(recipe: Path) -> None:
    keys = {RATE: {"low": 1e-4, "high": 5e-3}, FFN: {"low": 0.5, "high": 1.0, "step": 0.5}}
    assert [parameters[FFN] for parameters in spread(of(recipe, keys), TRADED, 12, seed=0)] == [0.5, 1.0]
    weight = "stages.compress.optimizations.distillation.alpha"
    assert len(spread(of(recipe, {RATE: SPACE[RATE], weight: {"low": 0.1, "high": 0.9}}), TRADED, 12, seed=0)) == 2


def test_where_there_is_nothing_to_spread(recipe: Path) -> None:
    accuracy = Goals((Objective("accuracy", True),))
    assert spread(of(recipe, SPACE), accuracy, 12, seed=0) == []
    assert spread(of(recipe, {RATE: SPACE[RATE]}), TRADED, 12, seed=0) == []
    assert spread(of(recipe, {FFN: SPACE[FFN]}), TRADED, 12, seed=0) == []

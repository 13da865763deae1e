from pathlib import Path
from typing import Any

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


def test_first_trials_learn_as_given_and_are_the_cheapest_and_another(recipe: Path) -> None:
    space = of(recipe, SPACE)
    cheapest, other = found = spread(space, TRADED, 12, seed=0)
    for parameters in found:
        assert parameters.keys() == {RATE, LAYERS, FFN, SEED}
        assert parameters[RATE] == 5e-3
        assert parameters[SEED] in range(1, 101)
    assert cheapest[FFN] == 0.25
    assert cheapest[LAYERS] == "[0]"  # as given: which of some choices is cheaper is not known
    assert other[FFN] in (0.25, 0.5, 0.75, 1.0)
    assert other != cheapest
    assert spread(space, TRADED, 12, seed=0) == found
    assert spread(space, TRADED, 12, seed=1)[0] == cheapest
    assert spread(space, TRADED, 12, seed=1)[1] != other
    assert spread(space, TRADED, 5, seed=0) == [cheapest]


def test_more_of_a_setting_may_be_cheaper(recipe: Path) -> None:
    target = "stages.compress.optimizations.structured_pruning.target_speedup"
    (cheapest, _) = spread(of(recipe, {RATE: SPACE[RATE], target: {"low": 1.5, "high": 4.0}}), TRADED, 12, seed=0)
    assert cheapest[target] == 4.0


def test_all_of_them_differ_in_shape_where_there_are_shapes(recipe: Path) -> None:
    keys = {RATE: SPACE[RATE], FFN: {"low": 0.5, "high": 1.0, "step": 0.5}}
    assert [parameters[FFN] for parameters in spread(of(recipe, keys), TRADED, 12, seed=0)] == [0.5, 1.0]
    weight = "stages.compress.optimizations.distillation.alpha"
    assert len(spread(of(recipe, {RATE: SPACE[RATE], weight: {"low": 0.1, "high": 0.9}}), TRADED, 12, seed=0)) == 2


def test_where_there_is_nothing_to_spread(recipe: Path) -> None:
    accuracy = Goals((Objective("accuracy", True),))
    assert spread(of(recipe, SPACE), accuracy, 12, seed=0) == []
    assert spread(of(recipe, {RATE: SPACE[RATE]}), TRADED, 12, seed=0) == []
    assert spread(of(recipe, {FFN: SPACE[FFN]}), TRADED, 12, seed=0) == []

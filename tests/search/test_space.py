from pathlib import Path
from typing import Any

import optuna
import pytest

from hf_efficient import ConfigError, Recipe
from hf_efficient.search.space import Space
from hf_efficient.search_settings import SearchSettings
from hf_efficient.settings import parse

RATE = "stages.compress.training.learning_rate"
LAYERS = "stages.compress.optimizations.structured_pruning.keep_layers"
HEADS = "stages.compress.optimizations.structured_pruning.keep_heads"


def of(recipe: Path, dimensions: dict[str, Any]) -> Space:
    return Space(Recipe.load(recipe), parse(SearchSettings, {"space": dimensions}, "search").space)


@pytest.mark.parametrize(
    ("dimensions", "said"),
    [
        ({"stages.compress.training.learning_rat": [1e-3]}, "did you mean 'learning_rate'"),
        ({"stages.compres.training.learning_rate": [1e-3]}, "compres"),
        ({HEADS: {"low": 0.5, "high": 1.5}}, r"keep_heads: the value 1.5 is not allowed: .*keep_heads"),
        ({RATE: ["fast"]}, "the value 'fast' is not allowed"),
        ({RATE: {"low": 1, "high": 2}, HEADS: {"low": 0.5, "high": 1, "when": {LAYERS + "x": 1}}}, "neither searched"),
    ],
)
def test_values_that_no_recipe_may_have(recipe: Path, dimensions: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        of(recipe, dimensions)


@pytest.mark.parametrize(
    ("dimension", "said"),
    [
        ({"low": 1}, "give both low and high"),
        ({"low": 2, "high": 1}, "is more than high"),
        ({"low": 0, "high": 1, "log": True}, "log takes low above 0"),
        ({"choices": [1], "log": True}, "belong to a range"),
        ({"low": 1, "high": 2, "stepp": 1}, "stepp"),
        ({"choices": []}, "at least 1"),
    ],
)
def test_dimensions_that_are_none(dimension: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        parse(SearchSettings, {"space": {RATE: dimension}}, "search")


def test_what_is_proposed_fits_and_is_set(recipe: Path) -> None:
    found = of(
        recipe,
        {
            RATE: {"low": 1e-5, "high": 1e-2, "log": True},
            "stages.finetune.training.num_train_epochs": {"low": 1, "high": 4},
            LAYERS: [[0], [1], [0, 1]],
            "stages.compress.training.warmup_steps": {"low": 0, "high": 10, "step": 5, "when": {LAYERS: [[0], [1]]}},
        },
    )
    study, seen = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0)), []
    for _ in range(20):
        values = found.suggested(study.ask())
        made = Recipe.load(recipe).changed(values)
        assert made.stages["compress"].training["learning_rate"] == values[RATE]
        assert made.stages["compress"].optimizations["structured_pruning"]["keep_layers"] == values[LAYERS]
        assert isinstance(values["stages.finetune.training.num_train_epochs"], int)
        assert ("stages.compress.training.warmup_steps" in values) == (values[LAYERS] != [0, 1])
        seen.append(values[LAYERS])
    assert [0, 1] in seen
    assert found.is_conditional
    assert found.size is None


def test_the_recipe_as_given_is_a_point_of_it(recipe: Path) -> None:
    found = of(recipe, {RATE: {"low": 1e-4, "high": 1e-2}, LAYERS: [[1], [0]], HEADS: [0.5, 1.0]})
    assert found.as_given() == {RATE: 5e-3, LAYERS: "[0]"}
    assert of(recipe, {RATE: {"low": 1e-4, "high": 1e-3}}).as_given() == {}
    repair = "stages.compress.optimizations.structured_pruning.repair"
    assert of(recipe, {repair: [True, False]}).as_given() == {repair: True}  # its default
    assert of(recipe, {HEADS: {"low": 0.5, "high": 1.0}}).as_given() == {}  # there is none


def test_stages_before_the_first_that_changes_are_shared(recipe: Path) -> None:
    assert of(recipe, {RATE: [1e-3]}).first_stage() == 1
    assert of(recipe, {RATE: [1e-3], "stages.finetune.training.learning_rate": [1e-3]}).first_stage() == 0
    assert of(recipe, {RATE: [1e-3], "seed": [1, 2]}).first_stage() == 0
    assert of(recipe, {"export": [None, {"format": "onnx"}]}).first_stage() == 2


def test_how_large_it_is(recipe: Path) -> None:
    assert of(recipe, {RATE: [1e-3, 2e-3], LAYERS: [[0], [1], [0, 1]]}).size == 6
    assert of(recipe, {RATE: {"low": 0.0, "high": 0.01, "step": 0.005}}).size == 3
    assert of(recipe, {RATE: {"low": 0.001, "high": 0.01}}).size is None

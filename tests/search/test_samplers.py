from pathlib import Path
from typing import Any

import pytest

from hf_efficient import ConfigError
from hf_efficient.search.samplers import MANY, SAMPLERS, make_pruner, make_sampler
from tests.search.test_space import LAYERS, RATE, of

RANGE = {"low": 1e-5, "high": 1e-2, "log": True}


def made(recipe: Path, dimensions: dict[str, Any], name: str = "auto", objectives: int = 1, trials: int = 20) -> Any:
    return make_sampler(name, of(recipe, dimensions), objectives, trials, constrained=False, seed=0, parallel=False)


@pytest.mark.parametrize(
    ("dimensions", "objectives", "trials", "name"),
    [
        ({RATE: [1e-3, 2e-3]}, 2, 20, "grid"),
        ({RATE: RANGE}, 1, 20, "gp"),
        ({RATE: RANGE}, 2, 20, "gp"),
        ({RATE: RANGE}, 2, MANY, "nsga2"),
        ({RATE: RANGE, LAYERS: [[0], [1]]}, 1, 20, "tpe"),
    ],
)
def test_the_automatic_one_and_its_reason(
    recipe: Path, dimensions: dict[str, Any], objectives: int, trials: int, name: str
) -> None:
    sampler, reason = made(recipe, dimensions, "auto", objectives, trials)
    assert reason.startswith(f"{name} (")
    assert type(sampler) is type(made(recipe, dimensions, name, objectives)[0])


def test_refused(recipe: Path) -> None:
    with pytest.raises(ConfigError, match="did you mean 'tpe'"):
        made(recipe, {RATE: RANGE}, "tep")
    with pytest.raises(ConfigError, match="cmaes takes one objective"):
        made(recipe, {RATE: RANGE}, "cmaes", 2)
    with pytest.raises(ConfigError, match="grid takes choices"):
        made(recipe, {RATE: RANGE}, "grid")
    with pytest.raises(ConfigError, match="did you mean 'median'"):
        make_pruner("medain", 1)


@pytest.mark.parametrize("name", sorted(set(SAMPLERS) - {"grid"}))
def test_each_can_be_made(name: str, recipe: Path) -> None:
    assert "as asked for" in made(recipe, {RATE: RANGE}, name)[1]

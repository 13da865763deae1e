"""A space of recipes: its values checked beforehand, drawn by Optuna, and set in the recipe."""

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

from hf_efficient.errors import ConfigError, unknown
from hf_efficient.plan import optimization_class
from hf_efficient.recipe import Recipe
from hf_efficient.search_settings import Dimension

_SCALARS = (bool, int, float, str, type(None))


class Space:
    """The `Dimension` of each dotted key of ``recipe``, in the order in which they are given.

    Raises:
        ConfigError: a key that no recipe has, a value that the recipe or an optimization does not allow, a condition on
            what is not searched before.
    """

    def __init__(self, recipe: Recipe, dimensions: Mapping[str, Dimension]):
        self.recipe, self.dimensions = recipe, dict(dimensions)
        self._plain = recipe.model_dump()
        seen: set[str] = set()
        for key, dimension in self.dimensions.items():
            for name in dimension.when:
                if name not in seen and self.given(name) is None:
                    raise ConfigError(
                        f"search.space.{key}.when: '{name}' is neither searched before it nor set in the recipe; move "
                        f"'{key}' behind it, or name one of {', '.join(sorted(seen)) or 'the keys of the recipe'}"
                    )
            seen.add(key)
            self._check(key, dimension)

    def _stage(self, key: str) -> str | None:
        """Name of the stage that ``key`` is in; None where it is in none."""
        head, *rest = key.split(".")
        return rest[0] if head == "stages" and rest else None

    def _check(self, key: str, dimension: Dimension) -> None:
        condition = {name: wanted[0] if isinstance(wanted, list) else wanted for name, wanted in dimension.when.items()}
        stage = self._stage(key)
        if stage is not None and stage not in self.recipe.stages:  # would else be a new one
            raise ConfigError(f"search.space.{key}: {unknown('stage', stage, self.recipe.stages)}")
        for value in dimension.ends:
            try:
                self.recipe.changed({**condition, key: value})
            except ConfigError as error:
                raise ConfigError(f"search.space.{key}: the value {value!r} is not allowed: {error}") from None

    def given(self, key: str) -> Any:
        """What the recipe comes to at ``key``, defaults of optimizations included; None where it has nothing."""
        found: Any = self._plain
        for part in key.split("."):
            found = found.get(part) if isinstance(found, Mapping) else None
        return self._default(key) if found is None else found

    def _default(self, key: str) -> Any:
        """Of a setting of an optimization that the recipe lists without it."""
        parts = key.split(".")
        stage = self.recipe.stages.get(self._stage(key) or "")
        if stage is None or len(parts) != 5 or parts[2] != "optimizations" or parts[3] not in stage.optimizations:
            return None
        fields = dataclasses.fields(optimization_class(parts[3]))  # type: ignore[arg-type]
        return next((each.default for each in fields if each.name == parts[4]), None)

    @property
    def size(self) -> int | None:
        """How many values there are to try; None where they are too many to count, or depend on each other."""
        total = 1
        for dimension in self.dimensions.values():
            if dimension.when:
                return None
            if dimension.choices is not None:
                total *= len(dimension.choices)
            elif not dimension.is_continuous:
                total *= 1 + int((float(dimension.high or 0) - float(dimension.low or 0)) // float(dimension.step or 1))
            else:
                return None
        return total

    @property
    def is_conditional(self) -> bool:
        return any(dimension.when for dimension in self.dimensions.values())

    @property
    def is_numeric(self) -> bool:
        """Whether all are ranges of numbers."""
        return all(dimension.choices is None for dimension in self.dimensions.values())

    def suggested(self, trial: Any, only: set[str] | None = None) -> dict[str, Any]:
        """Dotted key -> value, as an `optuna.Trial` proposes them; keys whose condition does not hold are left out.

        Args:
            only: keys to ask for; None: all.
        """
        values: dict[str, Any] = {}
        for key, dimension in self.dimensions.items():
            if (only is None or key in only) and self._applies(dimension, values):
                values[key] = _suggest(trial, key, dimension)
        return values

    def _applies(self, dimension: Dimension, values: Mapping[str, Any]) -> bool:
        for name, wanted in dimension.when.items():
            found = values.get(name, self.given(name))
            if found not in (wanted if isinstance(wanted, list) else [wanted]):
                return False
        return True

    def as_given(self) -> dict[str, Any]:
        """Parameters of Optuna for the recipe as it is, where its values are in the space."""
        return self.parameters({key: self.given(key) for key in self.dimensions})

    @property
    def has_given(self) -> bool:
        """Whether the recipe as it is is a point of the space."""
        values, found = {key: self.given(key) for key in self.dimensions}, self.as_given()
        return all(key in found for key, dimension in self.dimensions.items() if self._applies(dimension, values))

    def parameters(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Parameters of Optuna for ``values``, those that are not in the space left out."""
        found: dict[str, Any] = {}
        for key, dimension in self.dimensions.items():
            value = values.get(key)
            if value is None or not self._applies(dimension, values):
                continue
            if dimension.choices is not None:
                if value in dimension.choices:
                    found[key] = _label(value)
            elif dimension.low is not None and dimension.high is not None and dimension.low <= value <= dimension.high:
                found[key] = value
        return found

    def first_stage(self) -> int:
        """Index of the first stage that the space may change; those before are the same for all trials."""
        names = list(self.recipe.stages)

        def index(key: str) -> int:
            if key.split(".")[0] == "export":
                return len(names)
            stage = self._stage(key)
            return 0 if stage is None else names.index(stage)

        return min(map(index, self.dimensions))


def _suggest(trial: Any, key: str, dimension: Dimension) -> Any:
    if dimension.choices is not None:
        labels = {_label(choice): choice for choice in dimension.choices}
        return labels[trial.suggest_categorical(key, list(labels))]
    low, high, step = dimension.low, dimension.high, dimension.step
    if isinstance(low, int) and isinstance(high, int) and (step is None or isinstance(step, int)):
        return trial.suggest_int(key, low, high, step=step or 1, log=dimension.log)
    return trial.suggest_float(key, low, high, step=step, log=dimension.log)


def _label(choice: Any) -> Any:
    """What stands for a choice in Optuna, whose choices are plain values."""
    return choice if isinstance(choice, _SCALARS) else json.dumps(choice, sort_keys=True)

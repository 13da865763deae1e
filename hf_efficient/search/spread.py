"""The first trials of a search for a trade-off: its cheap end, learning as given and in larger steps, or other shapes.

The cheapest model that the space has is one end of the front, tells what all others are to be compared with, and trains
fastest: what else is to be found out is found out there. It is narrower than the one that the recipe was written for,
and narrower models want a larger learning rate (about as one over their width: Yang et al. 2021, Tensor Programs V).

Other shapes learn as given: how a recipe trains has been found good by whoever wrote it, and a bad learning rate hides
what a shape is worth. The sampler varies all from then on.
"""

import math
from typing import Any

from scipy.stats import qmc

from hf_efficient.plan import optimization_class
from hf_efficient.search.goals import MEASURED, Goals
from hf_efficient.search.space import Space

MOST = 2
LEAST_SHARE = 3
"""One of so many trials at most."""
TRIED = 4
"""Points of the sequence for each that is wanted: some are of a shape that another one has."""


def spread(space: Space, goals: Goals, trials: int, seed: int) -> list[dict[str, Any]]:
    """Parameters of Optuna: the cheapest, it with a larger learning rate, then by a Halton sequence; none where no
    trade-off is searched, or nothing stays as given.

    Args:
        trials: that the search will have.
    """
    given = {key: value for key, value in space.as_given().items() if _is_learning(key)}
    free = [key for key in space.dimensions if not _is_learning(key)]
    traded = len(goals.objectives) > 1 and any(goal.name in MEASURED for goal in goals.objectives)
    if not (traded and given and free):
        return []
    count = min(MOST, trials // LEAST_SHARE)
    points = [
        _Point(given, dict(zip(free, point.tolist(), strict=True)))
        for point in qmc.Halton(len(free), seed=seed).random(TRIED * count)
    ]
    ends = {key: 1.0 if end > 0 else 0.0 for key in free if (end := _cheap_end(space, key))}
    if ends:
        others = {key: value for key, value in space.as_given().items() if key not in ends}
        points = [_Point(others, {**dict.fromkeys(free, 0.5), **ends}), *points]
    found: list[dict[str, Any]] = []
    for drawn in points:
        space.suggested(drawn, {*free, *given})
        if not any(_alike(space, drawn.parameters, other) for other in (*found, space.as_given())):
            found.append(drawn.parameters)
    if ends and (rates := _larger_rates(space, given)):
        found.insert(1, {**found[0], **rates})
    return found[:count]


def _larger_rates(space: Space, given: dict[str, Any]) -> dict[str, float]:
    """Learning rates half way, by their logarithm, from those ``given`` to the greatest of the space."""
    ranges = {key: space.dimensions[key] for key in given if key.endswith(".learning_rate")}
    return {
        key: math.sqrt(given[key] * each.high)
        for key, each in ranges.items()
        if each.high is not None and each.is_continuous and each.high > given[key]
    }


def _alike(space: Space, one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether all that is not continuous is the same: such trials say the same of the trade-off."""
    told = [key for key in one if not space.dimensions[key].is_continuous]
    return bool(told) and all(one[key] == other.get(key) for key in told)


def _cheap_end(space: Space, key: str) -> int:
    """-1 where less of ``key`` makes a cheaper model, 1 where more does, 0 where neither is known."""
    parts = key.split(".")
    if len(parts) != 5 or parts[2] != "optimizations" or space.dimensions[key].choices is not None:
        return 0
    return optimization_class(parts[3]).cheaper.get(parts[4], 0)


def _is_learning(key: str) -> bool:
    return key.startswith("stages.") and key.split(".")[2:3] == ["training"]


class _Point:
    """Suggests, as an `optuna.Trial` does, what is ``given``, and else what lies at a share of each range."""

    def __init__(self, given: dict[str, Any], shares: dict[str, float]):
        self._given, self._shares = given, shares
        self.parameters: dict[str, Any] = {}

    def suggest_categorical(self, key: str, choices: list[Any]) -> Any:
        return self._noted(key, lambda share: choices[_whole(share, len(choices))])

    def suggest_int(self, key: str, low: int, high: int, step: int = 1, log: bool = False) -> int:
        if log:
            return int(self._noted(key, lambda share: round(low * (high / low) ** share)))
        return int(self._noted(key, lambda share: low + step * _whole(share, 1 + (high - low) // step)))

    def suggest_float(self, key: str, low: float, high: float, step: float | None = None, log: bool = False) -> float:
        if log:
            return float(self._noted(key, lambda share: low * (high / low) ** share))
        if step is None:
            return float(self._noted(key, lambda share: low + (high - low) * share))
        return float(self._noted(key, lambda share: low + step * _whole(share, 1 + round((high - low) / step))))

    def _noted(self, key: str, at: Any) -> Any:
        value = self._given[key] if key in self._given else at(self._shares[key])
        self.parameters[key] = value
        return value


def _whole(share: float, count: int) -> int:
    return min(int(share * count), count - 1)

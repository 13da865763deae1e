"""What a search is for: objectives, constraints, and the rule by which one of the best is picked."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from hf_efficient.errors import ConfigError, unknown

MEASURED = {"latency_ms": False, "throughput": True, "bytes": False, "training_seconds": False}
"""What is measured beside the task's metrics -> whether more is better: milliseconds for one example (median), examples
a second in batches, of the weight files, and of the trial's stages."""

_CONSTRAINT = re.compile(r"^\s*(\S+?)\s*(>=|<=)\s*(\S+)\s*$")


@dataclass(frozen=True)
class Objective:
    """A figure to make large or small."""

    name: str
    maximize: bool

    @classmethod
    def parse(cls, text: str, metrics: Mapping[str, bool]) -> "Objective":
        """From ``max name``, ``min name`` or ``name``.

        Args:
            metrics: figures whose direction is known -> whether more is better.

        Raises:
            ConfigError: no such form, or a direction that has to be said.
        """
        words = text.split()
        if len(words) == 2 and words[0] in ("max", "min"):
            return cls(words[1], words[0] == "max")
        known = {**MEASURED, **metrics}
        if len(words) != 1:
            raise ConfigError(f"search.objectives: '{text}' is no objective; write e.g. 'max accuracy' or 'latency_ms'")
        if words[0] not in known:
            raise ConfigError(
                f"search.objectives: whether more or less of '{words[0]}' is better is not known; write "
                f"'max {words[0]}' or 'min {words[0]}', or name one of {', '.join(sorted(known))}"
            )
        return cls(words[0], known[words[0]])

    def better(self, one: float, other: float) -> bool:
        return one > other if self.maximize else one < other

    def __str__(self) -> str:
        return f"{'max' if self.maximize else 'min'} {self.name}"


@dataclass(frozen=True)
class Constraint:
    """A bound on a figure."""

    name: str
    at_least: bool
    bound: float

    @classmethod
    def parse(cls, text: str, where: str = "search.constraints") -> "Constraint":
        """From ``name >= number`` or ``name <= number``.

        Raises:
            ConfigError: neither.
        """
        match = _CONSTRAINT.match(text)
        try:
            assert match is not None
            return cls(match[1], match[2] == ">=", float(match[3]))
        except (AssertionError, ValueError):
            raise ConfigError(
                f"{where}: '{text}' is no constraint; write e.g. 'accuracy >= 0.91' or 'latency_ms <= 3'"
            ) from None

    def excess(self, values: Mapping[str, float]) -> float:
        """By how much ``values`` are beyond the bound; 0 or less where it is kept."""
        return self.bound - values[self.name] if self.at_least else values[self.name] - self.bound

    def __str__(self) -> str:
        return f"{self.name} {'>=' if self.at_least else '<='} {self.bound:g}"


@dataclass(frozen=True)
class Goals:
    """All that a search is for."""

    objectives: tuple[Objective, ...]
    constraints: tuple[Constraint, ...] = ()

    @property
    def names(self) -> set[str]:
        """Figures that have to be known of a trial."""
        return {goal.name for goal in self.objectives} | {bound.name for bound in self.constraints}

    def values(self, figures: Mapping[str, float]) -> list[float]:
        """Those of the objectives, in their order."""
        return [figures[objective.name] for objective in self.objectives]

    def excesses(self, figures: Mapping[str, float]) -> list[float]:
        """Of each constraint, `Constraint.excess`."""
        return [constraint.excess(figures) for constraint in self.constraints]

    def require(self, figures: Iterable[str]) -> None:
        """Refuse names that a trial does not tell.

        Raises:
            ConfigError: names the first, with the nearest.
        """
        told = set(figures)
        for name in sorted(self.names - told):
            raise ConfigError(f"search: {unknown('figure', name, told)}")

    def dominates(self, one: Sequence[float], other: Sequence[float]) -> bool:
        """Whether ``one`` is nowhere worse than ``other``, and better somewhere (Pareto)."""
        pairs = list(zip(self.objectives, one, other, strict=True))
        return not any(goal.better(b, a) for goal, a, b in pairs) and any(goal.better(a, b) for goal, a, b in pairs)

    def front(self, values: Mapping[int, Sequence[float]]) -> list[int]:
        """Numbers of the trials that no other one dominates."""
        return [
            number
            for number, mine in values.items()
            if not any(self.dominates(theirs, mine) for other, theirs in values.items() if other != number)
        ]


@dataclass(frozen=True)
class Rule:
    """Which of the trials is picked: the best by ``objective`` among those that keep ``constraints``."""

    constraints: tuple[Constraint, ...]
    objective: Objective

    @classmethod
    def parse(cls, text: str, metrics: Mapping[str, bool]) -> "Rule":
        """From e.g. ``accuracy >= 0.92, min latency_ms``.

        Raises:
            ConfigError: no such form.
        """
        parts = [part.strip() for part in text.split(",") if part.strip()]
        bounds = [part for part in parts if _CONSTRAINT.match(part)]
        others = [part for part in parts if part not in bounds]
        if len(others) != 1:
            raise ConfigError(
                f"--pick: '{text}' must name one objective and any number of constraints, such as "
                "'accuracy >= 0.92, min latency_ms'"
            )
        constraints = tuple(Constraint.parse(part, "--pick") for part in bounds)
        return cls(constraints, Objective.parse(others[0], metrics))

    def __str__(self) -> str:
        return ", ".join(map(str, (*self.constraints, self.objective)))

    def picked(self, figures: Mapping[int, Mapping[str, float]]) -> int:
        """Number of the trial, of those with all that is asked for.

        Raises:
            ConfigError: none keeps the constraints, or figures are not known.
        """
        names = {self.objective.name, *(constraint.name for constraint in self.constraints)}
        known = set().union(*figures.values()) if figures else set()
        for name in sorted(names - known):
            raise ConfigError(f"--pick: {unknown('figure', name, known)}")
        fit = {number: found for number, found in figures.items() if names <= set(found)}
        kept = {
            number: found
            for number, found in fit.items()
            if all(constraint.excess(found) <= 0 for constraint in self.constraints)
        }
        if not kept:
            nearest = "; ".join(
                f"the best {constraint.name} is "
                f"{(max if constraint.at_least else min)(found[constraint.name] for found in fit.values()):g}"
                for constraint in self.constraints
            )
            raise ConfigError(f"no trial keeps {', '.join(map(str, self.constraints))} ({nearest}); loosen a bound")
        sign = 1 if self.objective.maximize else -1
        return max(kept, key=lambda number: (sign * kept[number][self.objective.name], -number))

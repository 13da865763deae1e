"""Alarm on a surge of negatives, with a false-alarm rate that is chosen and kept.

Whether an item is among the most negative share of all so far, ties broken by chance, is the same coin flip for every
item, independent of all others, as long as items come in no order: that is what conformal p-values are (Vovk, Gammerman
& Shafer 2005, Algorithmic Learning in a Random World, ch. 8). So the Page-Hinkley detector of `river` sees a stream
whose law is known whatever the classifier says and however often, and its threshold can be calibrated by simulation.
"""

import functools
import math
import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from hf_efficient.errors import MissingDependencyError

FIRST = 100
"""Items of a topic before it is watched: they tell how many are negative as a rule."""

LEVELS = (0.02, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.45, 0.5, 0.6, 0.7, 0.8, 0.9)
"""Shares of coin flips that come up; the one nearest to the share of negatives is taken."""

STREAMS, HORIZON = 2000, 20_000
"""Streams, and items of each, by which a threshold is calibrated."""
_TAIL = 0.05


@dataclass(frozen=True)
class Rise:
    """What a detector found.

    Attributes:
        began: time of the first item of the surge, as far as can be told.
        items: since then.
        share: of negatives among them.
        before: share of negatives before; of that many items `of`.
    """

    began: float
    items: int
    share: float
    before: float
    of: int


class Surge:
    """Watches the negatives of one topic. After an alarm it begins anew: what is then, is the rule from then on.

    Args:
        name: of the topic; with the number of the item it seeds what breaks ties, so that a restart changes nothing.
        smallest: rise of the share of negatives that is worth an alarm, such as 0.1.
        every: items from one false alarm to the next, on average.
    """

    def __init__(self, name: str, smallest: float, every: float):
        self.name, self.smallest, self.every = name, smallest, every
        self.alarms = 0
        self._begin()

    def _begin(self) -> None:
        self.items = self.negatives = 0
        self.level: float | None = None
        self.detector: Any = None
        self.began, self.recent, self.recent_negatives = 0.0, 0, 0

    def update(self, negative: bool, time: float) -> Rise | None:
        """Count an item; what rose, where this item is the one that gives alarm."""
        self.items += 1
        self.negatives += negative
        if self.level is None:
            if self.items >= FIRST:
                self.level = min(LEVELS, key=lambda level: abs(level - self.negatives / self.items))
                self.detector = _detector(self.level, self.smallest, self.every)
            return None
        if not self.recent:
            self.began = time
        self.recent, self.recent_negatives = self.recent + 1, self.recent_negatives + negative
        self.detector.update(float(self._is_up(negative)))
        if self.detector.drift_detected:
            rise = self._rise()
            self.alarms += 1
            self._begin()
            return rise
        if self.detector._sum_increase <= self.detector._min_increase:  # no rise so far: one begins later
            self.recent = self.recent_negatives = 0
        return None

    def _is_up(self, negative: bool) -> bool:
        """Whether the item ranks among the most negative share `level` of all so far."""
        chance = random.Random(f"{self.name}/{self.alarms}/{self.items}").random()
        rank = chance * self.negatives if negative else self.negatives + chance * (self.items - self.negatives)
        assert self.level is not None
        return rank < self.level * self.items

    def _rise(self) -> Rise:
        of = self.items - self.recent
        before = (self.negatives - self.recent_negatives) / of
        return Rise(self.began, self.recent, self.recent_negatives / self.recent, before, of)

    def state(self) -> dict[str, Any]:
        """Plain values that `load` goes on from, exactly."""
        names = ("alarms", "items", "negatives", "level", "began", "recent", "recent_negatives")
        told = {name: getattr(self, name) for name in names}
        if self.detector is not None:
            mean = self.detector._x_mean
            told["detector"] = {
                "sum": self.detector._sum_increase,
                "low": None if math.isinf(self.detector._min_increase) else self.detector._min_increase,
                "count": mean.n,
                "mean": mean.get(),
            }
        return told

    def load(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state` gave."""
        values = dict(state)
        numbers = values.pop("detector", None)
        for name, value in values.items():
            setattr(self, name, value)
        if numbers is None or self.level is None:
            return
        self.detector = _detector(self.level, self.smallest, self.every)
        self.detector._sum_increase = numbers["sum"]
        self.detector._min_increase = math.inf if numbers["low"] is None else numbers["low"]
        self.detector._x_mean.n, self.detector._x_mean._mean = numbers["count"], numbers["mean"]


def _detector(level: float, smallest: float, every: float) -> Any:
    """Page-Hinkley for rises, without forgetting: a cumulative sum against the mean so far."""
    try:
        from river.drift import PageHinkley
    except ImportError as error:
        raise MissingDependencyError("the alarm on surges", "river", "apps") from error
    limit = threshold(level, smallest, every)
    return PageHinkley(min_instances=FIRST, delta=smallest / 2, threshold=limit, alpha=1.0, mode="up")


@functools.cache
def threshold(level: float, smallest: float, every: float) -> float:
    """Threshold at which coin flips that come up with the share ``level`` give alarm once in ``every`` items.

    From simulated streams; beyond what these can show, along the exponential tail that such sums have: the flatter one
    of what is seen and of what theory says (Siegmund 1985, Sequential Analysis, ch. 2).
    """
    found = peaks(level, smallest / 2, STREAMS, HORIZON)
    wanted = -math.expm1(-HORIZON / every)  # share of the streams that give alarm
    if wanted >= _TAIL:
        return float(np.quantile(found, 1 - wanted))
    start = float(np.quantile(found, 1 - _TAIL))
    beyond = found[found > start] - start
    scale = max(float(beyond.mean()) if len(beyond) else 0.0, 1 / _exponent(level, smallest / 2))
    return start + scale * math.log(_TAIL / wanted)


def peaks(level: float, delta: float, streams: int, horizon: int, seed: int = 0) -> np.ndarray:
    """Greatest statistic of river's detector in each of ``streams`` simulated ones; shape (streams,)."""
    chance = np.random.default_rng(seed)
    total, ups, low, peak = (np.zeros(streams) for _ in range(4))
    low += np.inf
    for item in range(1, horizon + 1):
        up = chance.random(streams, dtype=np.float32) < level
        ups += up
        total += up - ups / item - delta
        np.minimum(low, total, out=low)
        if item >= FIRST:
            np.maximum(peak, total - low, out=peak)
    return peak


def _exponent(level: float, delta: float) -> float:
    """The positive x at which the mean of exp(x (flip - level - delta)) is 1."""
    low, high = 1e-9, 1.0

    def above(x: float) -> bool:
        return math.log1p(level * math.expm1(x)) - x * (level + delta) > 0

    while not above(high):
        if high > 500:  # level + delta >= 1: such sums never rise
            return high
        high *= 2
    while high - low > 1e-9:
        middle = (low + high) / 2
        low, high = (low, middle) if above(middle) else (middle, high)
    return high


class Surges:
    """A `Surge` for each topic, and one for all items.

    Args:
        every: items from one false alarm to the next, on average, whichever detector gives it.
        other: topic of items that are of none; it is not watched by itself.
    """

    ALL = ""

    def __init__(self, smallest: float, every: float, states: Mapping[str, Mapping[str, Any]], other: str = ""):
        self.smallest, self.every, self.other = smallest, every, other
        self._watched: dict[str, Surge] = {}
        for topic, state in states.items():
            self._of(topic).load(state)

    def update(self, topic: str, negative: bool, time: float) -> list[tuple[str, Rise]]:
        """Count an item; the topics that give alarm, "" for all of them together."""
        names = (self.ALL,) if topic in (self.ALL, self.other) else (self.ALL, topic)
        found = ((name, self._of(name).update(negative, time)) for name in names)
        return [(name, rise) for name, rise in found if rise is not None]

    def states(self) -> dict[str, dict[str, Any]]:
        return {topic: surge.state() for topic, surge in self._watched.items()}

    def _of(self, topic: str) -> Surge:
        if topic not in self._watched:
            self._watched[topic] = Surge(topic, self.smallest, 2 * self.every)  # by two each item is counted
        return self._watched[topic]

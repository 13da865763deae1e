"""Items and users up to a moment: what was taken, and the features by which items are ranked for a user.

The same code replays a log to learn from and goes on while serving, so what is learnt is what is served, and a feature
holds nothing from its own moment or later.
"""

from collections import deque
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from hf_efficient.tasks.apps.catalogue import Item
from hf_efficient.tasks.apps.interactions import Interaction, moments

FEATURES = ("similar", "nearest", "category", "price", "popular", "trend", "ever", "new", "untried")
"""Of an item for a user, at a moment:

similar: cosine of the item with what the user took, the newest counting most; nearest: the greatest cosine with one of
the last `NEAREST`; category: how much more he takes of its category than others do, as a logarithm; price: how far it
is from what he pays, both over what is usual in the category, as logarithms, negative; popular, trend, ever: logarithms
of how often it was taken, counting half after a half-life, after a quarter of it, and all; new: 1 when it comes, half
after a half-life; untried: 1 before it was taken, half after once.
"""

RECENT, NEAREST, FADING = 50, 5, 0.85
DAY = 86400.0


@dataclass
class User:
    """What somebody took: numbers of items.

    Attributes:
        recent: the newest last.
        taken: all.
    """

    recent: deque[int] = field(default_factory=lambda: deque(maxlen=RECENT))
    taken: set[int] = field(default_factory=set)

    def take(self, number: int) -> None:
        self.recent.append(number)
        self.taken.add(number)


class Market:
    """Grows by `add` and `observe`; not for several threads at a time.

    Args:
        half_life: seconds after which what was taken counts half.

    Attributes:
        items: by number.
        numbers: id of each item -> its number.
        vectors: of length 1, shape (items, width).
        users: by id.
        now: the latest time observed.
    """

    def __init__(self, items: Sequence[Item], vectors: np.ndarray, half_life: float):
        self.items: list[Item] = []
        self.numbers: dict[str, int] = {}
        self.vectors = np.empty((0, vectors.shape[1]), dtype=np.float32)
        self.users: dict[str, User] = {}
        self.half_life = half_life
        self.now, self._origin = -np.inf, np.nan
        self._counts = np.zeros((3, 0))  # popular and trend in units of `_origin`, ever
        self._first = np.empty(0)
        self._categories: dict[str, int] = {}
        self._by_category = np.empty(0)
        self.add(items, vectors)

    def add(self, items: Sequence[Item], vectors: np.ndarray) -> None:
        """Take ``items`` in, or in the place of those of the same ids."""
        places = [self.numbers.setdefault(item.item, len(self.numbers)) for item in items]
        more = len(self.numbers) - len(self.items)
        self.items += [Item("", "")] * more
        grown = np.zeros((more, vectors.shape[1]), dtype=np.float32)
        self.vectors = np.concatenate([self.vectors, grown]) if more else self.vectors
        self._counts = np.pad(self._counts, ((0, 0), (0, more)))
        self._first = np.concatenate([self._first, np.full(more, np.nan)])
        for place, item, vector in zip(places, items, vectors, strict=True):
            self.items[place], self.vectors[place] = item, vector
        self._describe()

    def _describe(self) -> None:
        """Arrays of what items tell."""
        codes = [self._categories.setdefault(item.category, len(self._categories)) for item in self.items]
        self._codes = np.array(codes, dtype=int)
        self._dates = np.array([np.nan if item.date is None else item.date for item in self.items])
        prices = np.log([np.nan if item.price is None else item.price for item in self.items])
        priced = ~np.isnan(prices)
        sums = np.bincount(self._codes[priced], prices[priced], len(self._categories))
        counts = np.bincount(self._codes[priced], minlength=len(self._categories))
        self._dearness = prices - (sums / np.maximum(1, counts))[self._codes]
        self._usual_gap = float(np.abs(self._dearness[priced]).mean()) if priced.any() else 0.0
        self._by_category = np.bincount(self._codes, self._counts[2], len(self._categories))

    def observe(self, one: Interaction) -> None:
        """Somebody took an item; of one that is not in the catalogue, nothing is learnt."""
        number = self.numbers.get(one.item)
        if number is None:
            return
        self._move_origin(one.time)
        halvings = (one.time - self._origin) / self.half_life
        self._counts[:, number] += 2.0**halvings, 2.0 ** (4 * halvings), 1
        self._by_category[self._codes[number]] += 1
        if not self._first[number] <= one.time:
            self._first[number] = one.time
        self.users.setdefault(one.user, User()).take(number)
        self.now = max(self.now, one.time)

    def _move_origin(self, time: float) -> None:
        """Keep powers of 2 small: decayed counts are in units of one taken at `_origin`."""
        if np.isnan(self._origin):
            self._origin = time
        halvings = (time - self._origin) / self.half_life
        if halvings > 100:
            self._counts[0] *= 2.0**-halvings
            self._counts[1] *= 2.0 ** (-4 * halvings)
            self._origin = time

    def offered(self, time: float) -> np.ndarray:
        """Boolean, shape (items,): which are there at ``time``; those without a date always are."""
        return ~(self._dates > time)

    def features(
        self, recent: Sequence[int], time: float, rows: np.ndarray | None = None, wish: np.ndarray | None = None
    ) -> np.ndarray:
        """`FEATURES` of items for somebody who took ``recent`` (numbers, the newest last); shape (items, features).

        Args:
            rows: numbers of the items; None for all.
            wish: a vector of length 1 that counts as what was taken last.
        """
        some = slice(None) if rows is None else rows
        found = np.zeros((len(self.items) if rows is None else len(rows), len(FEATURES)), dtype=np.float32)
        if len(recent) or wish is not None:
            taken = self.vectors[list(recent)]
            taken = taken if wish is None else np.concatenate([taken, wish[None]])
            found[:, :2] = _similarities(self.vectors[some], taken)
        found[:, 2] = self._category_lift(recent)[self._codes[some]]
        found[:, 3] = self._price_fit(recent, self._dearness[some])
        halvings = 0.0 if np.isnan(self._origin) else (self._origin - time) / self.half_life
        counts = self._counts[:, some] * np.array([[2.0**halvings], [2.0 ** (4 * halvings)], [1]])
        found[:, 4:7] = np.log1p(counts).T
        since = np.where(np.isnan(self._dates[some]), self._first[some], self._dates[some])
        found[:, 7] = np.nan_to_num(2.0 ** (-np.maximum(0, time - since) / self.half_life))
        found[:, 8] = 1 / (1 + counts[2])
        return found

    def _category_lift(self, recent: Sequence[int]) -> np.ndarray:
        usual = (self._by_category + 1) / (self._by_category + 1).sum()
        own = np.bincount(self._codes[list(recent)], minlength=len(usual)) if len(recent) else np.zeros(len(usual))
        return np.log((own + 2 * usual) / (own.sum() + 2) / usual)

    def _price_fit(self, recent: Sequence[int], dearness: np.ndarray) -> np.ndarray:
        paid = self._dearness[list(recent)] if len(recent) else np.empty(0)
        paid = paid[~np.isnan(paid)]
        if not len(paid):
            return np.zeros(len(dearness))
        return np.nan_to_num(-np.abs(dearness - paid.sum() / (len(paid) + 1)), nan=-self._usual_gap)

    def replay(
        self, log: Sequence[Interaction], since: float, again: bool = False
    ) -> Iterator[tuple[Interaction, User]]:
        """Observe ``log``; each interaction from ``since`` on is given before, with its user as he was until then.

        Args:
            again: also those of what the user had taken already.
        """
        for time, some in moments(log):
            for one in some if time >= since else ():
                number, user = self.numbers.get(one.item), self.users.get(one.user, User())
                if number is not None and (again or number not in user.taken) and self.offered(time)[number]:
                    yield one, user
            for one in some:
                self.observe(one)


def _similarities(vectors: np.ndarray, taken: np.ndarray) -> np.ndarray:
    """``similar`` and ``nearest`` of each of ``vectors``; shape (items, 2)."""
    last = taken[-NEAREST:]
    faded = (FADING ** np.arange(len(taken))[::-1].astype(np.float32)) @ taken
    cosines = vectors @ np.concatenate([faded[None] / max(1e-9, float(np.linalg.norm(faded))), last]).T
    return np.stack([cosines[:, 0], cosines[:, 1:].max(axis=1)], axis=1)


def allowed(market: Market, time: float, taken: Collection[int], again: bool = False) -> np.ndarray:
    """Boolean, shape (items,): what may be ranked for somebody who took ``taken``."""
    found = market.offered(time)
    if not again and len(taken):
        found[list(taken)] = False
    return found


def half_life_of(log: Sequence[Interaction], days: float | None = None) -> float:
    """Seconds: of ``days``, or a tenth of what ``log`` spans."""
    return DAY * days if days else max(1.0, (log[-1].time - log[0].time) / 10)


def of_catalogue(items: Mapping[str, Item], vectors: np.ndarray, half_life: float) -> Market:
    """The market before anything was taken."""
    return Market(list(items.values()), vectors, half_life)

"""A ranker learnt from a log: a weight for each feature, moved by how much is known of the user.

Pairs of what was taken and something that was there and was not are told apart by a logistic regression on the
differences of their features (Burges et al. 2005, ICML, without hidden units; scikit-learn's). So it ranks by one
product with a matrix, and is kept as numbers, which no version of a library has to read.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from sklearn.linear_model import LogisticRegression

from hf_efficient.errors import ConfigError, DataError
from hf_efficient.tasks.apps.interactions import Interaction, cutoff
from hf_efficient.tasks.apps.market import FEATURES, Market, User, allowed

logger = logging.getLogger(__name__)

NEGATIVES, EVENTS = 30, 4000
"""Items beside each that was taken, and interactions that are learnt from at most: drawn, the same each time."""

HALF_KNOWN = 3
"""Items that a user took when he is half known."""

JUDGED_SHARE = 0.3
"""Newest share of what the ranker has, by which it is judged before it learns from all."""

TOP = 10


@dataclass(frozen=True)
class Ranker:
    """Scores items by their features.

    Attributes:
        unknown: weight of each feature for a user of whom nothing is known.
        known: what comes to them for one who is fully known.
        judged: ndcg@10 on the newest interactions, by name of the way to rank; empty where none was judged.
    """

    unknown: np.ndarray
    known: np.ndarray
    judged: dict[str, float] = field(default_factory=dict)

    def scores(self, features: np.ndarray, count: int) -> np.ndarray:
        """One for each row of ``features``, for a user who took ``count`` items."""
        return features @ (self.unknown + share_known(count) * self.known).astype(np.float32)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        weights = {name: list(map(float, getattr(self, name))) for name in ("unknown", "known")}
        return {"features": list(FEATURES), **weights, "judged": self.judged}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Ranker":
        """What `to_dict` gave.

        Raises:
            ConfigError: it was of other features.
        """
        if tuple(values["features"]) != FEATURES:
            raise ConfigError(
                f"the ranker weighs {', '.join(values['features'])}, and this version has {', '.join(FEATURES)}; "
                "run the recipe again"
            )
        return cls(np.array(values["unknown"]), np.array(values["known"]), values["judged"])


def share_known(count: int) -> float:
    """How much is known of a user who took ``count`` items: from 0 to 1."""
    return count / (count + HALF_KNOWN)


def by(*names: str) -> Ranker:
    """Ranks by the sum of some features alone."""
    return Ranker(np.array([float(name in names) for name in FEATURES]), np.zeros(len(FEATURES)))


BASELINES = {"popularity": by("popular"), "similarity": by("similar")}


def learn(
    market: Callable[[], Market], log: Sequence[Interaction], since: float, again: bool = False, seed: int = 0
) -> Ranker:
    """A ranker from the interactions of ``log`` from the time ``since`` on; judged on the newest of them first.

    Args:
        market: makes one in which nothing has been taken.
        again: whether what a user took is ranked for him again.

    Raises:
        DataError: too few interactions.
    """
    later = [one for one in log if one.time >= since]
    if len(later) < 20:
        raise DataError(
            f"the ranker has {len(later)} interactions to learn from and needs 20; raise app.newest, or give a "
            "longer log"
        )
    split = cutoff(later, JUDGED_SHARE)
    learnt = fit(market(), [one for one in log if one.time < split], since, again, seed)
    judged = judge({"learnt": learnt, **BASELINES}, market(), log, split, again)
    best = max(judged, key=lambda name: judged[name])
    if best != "learnt":
        logger.warning("the learnt ranker (ndcg@10 %.4f) is worse than %s (%.4f)", judged["learnt"], best, judged[best])
    whole = fit(market(), log, since, again, seed)
    return Ranker(whole.unknown, whole.known, judged)


def fit(market: Market, log: Sequence[Interaction], since: float, again: bool = False, seed: int = 0) -> Ranker:
    """Weights from the interactions of ``log`` from ``since`` on; ``market`` takes all of it in."""
    chance = np.random.default_rng(seed)
    count = sum(one.time >= since for one in log)
    differences, known = [], []
    for one, user in market.replay(log, since, again):
        if chance.random() >= EVENTS / count:
            continue
        taken = market.numbers[one.item]
        others = np.flatnonzero(allowed(market, one.time, {*(() if again else user.taken), taken}))
        if not len(others):
            continue
        rows = np.append(chance.choice(others, min(NEGATIVES, len(others)), replace=False), taken)
        features = market.features(user.recent, one.time, rows)
        differences.append(features[-1] - features[:-1])
        known += [share_known(len(user.recent))] * (len(rows) - 1)
    if not differences:
        raise DataError("the ranker finds nothing to learn from: nobody took anything that was there; check the dates")
    given = np.concatenate(differences).astype(float)
    given = np.concatenate([given, given * np.array(known)[:, None]], axis=1)
    scale = np.maximum(given.std(axis=0), 1e-6)
    signs = chance.choice([-1.0, 1.0], len(given))  # which of a pair comes first
    model = LogisticRegression(fit_intercept=False, max_iter=1000)
    weights = model.fit(given / scale * signs[:, None], signs).coef_[0] / scale
    return Ranker(*np.split(weights, 2))


def judge(
    rankers: dict[str, Ranker], market: Market, log: Sequence[Interaction], since: float, again: bool = False
) -> dict[str, float]:
    """ndcg@10 of each ranker on the interactions of ``log`` from ``since`` on: of all items that were there, the one
    that was taken is the right one."""
    gains: dict[str, list[float]] = {name: [] for name in rankers}
    for one, user in market.replay(log, since, again):
        features, number = market.features(user.recent, one.time), market.numbers[one.item]
        may = allowed(market, one.time, () if again else user.taken)
        for name, ranker in rankers.items():
            gains[name].append(gain(ranker.scores(features, len(user.recent)), may, number))
    return {name: float(np.mean(each)) if each else 0.0 for name, each in gains.items()}


def gain(scores: np.ndarray, may: np.ndarray, number: int) -> float:
    """ndcg@10 where item ``number`` is the right one among those that ``may`` be ranked; equal scores share ranks."""
    others = scores[may]
    rank = 1 + (others > scores[number]).sum() + ((others == scores[number]).sum() - 1) / 2
    return 1 / np.log2(rank + 1) if rank <= TOP else 0.0


def best(ranker: Ranker, market: Market, user: User, time: float, may: np.ndarray, count: int, wish: Any = None) -> Any:
    """Numbers of the best ``count`` items that ``may`` be ranked, and their scores, the best first."""
    size = len(user.recent) + (wish is not None)
    scores = ranker.scores(market.features(user.recent, time, wish=wish), size)
    scores[~may] = -np.inf
    count = min(count, int(may.sum()))
    top = np.argpartition(-scores, count - 1)[:count] if count else np.empty(0, dtype=int)
    top = top[np.argsort(-scores[top], kind="stable")]
    return top, scores[top]

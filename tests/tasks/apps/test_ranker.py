"""Features of a moment and the ranker that learns from them."""

import json
import math

import numpy as np
import pytest

from hf_efficient.errors import ConfigError, DataError
from hf_efficient.tasks.apps.catalogue import Item
from hf_efficient.tasks.apps.interactions import Interaction
from hf_efficient.tasks.apps.market import DAY, FEATURES, Market, User, allowed, half_life_of
from hf_efficient.tasks.apps.ranker import BASELINES, Ranker, best, fit, gain, judge, learn

ITEMS = [
    Item("a", "a", "x", 10.0, 0.0),
    Item("b", "b", "x", 40.0, 0.0),
    Item("c", "c", "y", 10.0, 5 * DAY),
    Item("d", "d"),
]
VECTORS = np.array([[1, 0], [0.6, 0.8], [0, 1], [-1, 0]], dtype=np.float32)


def market(half_life: float = DAY) -> Market:
    return Market(ITEMS, VECTORS, half_life)


def seen(found: Market, recent: list[int], time: float) -> dict[str, list[float]]:
    told = found.features(recent, time)
    return {name: told[:, index].tolist() for index, name in enumerate(FEATURES)}


def test_features_by_hand() -> None:
    found = market()
    for user, item, time in (("u", "a", 0.0), ("v", "a", DAY), ("v", "b", 2 * DAY)):
        found.observe(Interaction(user, item, time))
    told = seen(found, [0], 3 * DAY)
    assert told["similar"] == told["nearest"] == pytest.approx([1, 0.6, 0, -1])
    assert told["popular"] == pytest.approx([math.log1p(1 / 8 + 1 / 4), math.log1p(1 / 2), 0, 0])
    assert told["trend"] == pytest.approx([math.log1p(2**-12 + 2**-8), math.log1p(2**-4), 0, 0], rel=1e-5)
    assert told["ever"] == pytest.approx([math.log(3), math.log(2), 0, 0])
    assert told["new"] == pytest.approx([1 / 8, 1 / 8, 1, 0]), "what is to come is new, what nobody dates is not"
    assert told["untried"] == pytest.approx([1 / 3, 1 / 2, 1, 1])
    usual = np.array([4, 1, 1]) / 6  # categories x, y and none, each with one more than were taken
    assert told["category"][:3:2] == pytest.approx(
        [math.log((1 + 2 * usual[0]) / 3 / usual[0]), math.log(2 / 3)], rel=1e-5
    )
    assert told["price"][0] == pytest.approx(-math.log(2) / 2, rel=1e-5), "half of the way to what he paid"
    assert told["price"][1] == pytest.approx(-3 * math.log(2) / 2, rel=1e-5)


def test_nothing_is_known_of_a_new_user() -> None:
    told = seen(market(), [], DAY)
    for name in ("similar", "nearest", "category", "price", "popular"):
        assert told[name] == pytest.approx([0] * 4), name


def test_the_newest_counts_most_and_a_wish_is_the_newest() -> None:
    found = market()
    told = seen(found, [0, 3, 2], DAY)
    assert np.argmax(told["similar"]) == 2
    wished = found.features([2], DAY, wish=VECTORS[3])
    assert wished[:, 0].argmax() == 3
    assert wished[2, 1] == pytest.approx(1)


def test_features_of_rows_are_those_of_all() -> None:
    found = market()
    for number, item in enumerate("abcab"):
        found.observe(Interaction("u", item, number * DAY))
    rows = np.array([2, 0])
    assert found.features([0, 1], 9 * DAY, rows) == pytest.approx(found.features([0, 1], 9 * DAY)[rows], abs=1e-6)


def test_counts_last_for_years() -> None:
    found = market(half_life=60.0)
    for year in range(20):
        found.observe(Interaction("u", "a", 365.0 * DAY * year))
    told = seen(found, [], found.now)
    assert told["popular"][0] == pytest.approx(math.log(2))
    assert told["ever"][0] == pytest.approx(math.log(21), rel=1e-6)


def test_items_come_and_change() -> None:
    found = market()
    found.observe(Interaction("u", "b", DAY))
    found.observe(Interaction("u", "unknown", DAY))
    added = [Item("e", "e", "z", 5.0, 2 * DAY), Item("b", "other", "y", 30.0, 0.0)]
    found.add(added, np.array([[0, -1], [1, 0]], dtype=np.float32))
    assert [item.item for item in found.items] == ["a", "b", "c", "d", "e"]
    assert found.items[1].text == "other"
    told = seen(found, [0], 2 * DAY)
    assert told["similar"] == pytest.approx([1, 1, 0, -1, 0])
    assert told["ever"] == pytest.approx([0, math.log(2), 0, 0, 0], rel=1e-6)
    assert allowed(found, DAY, {0}).tolist() == [False, True, False, True, False]
    assert allowed(found, 9 * DAY, {0}, again=True).all()


def test_a_replay_tells_nothing_of_its_own_moment() -> None:
    found = market()
    log = [Interaction("u", "a", DAY), Interaction("v", "a", DAY), Interaction("u", "b", 2 * DAY)]
    counts = [
        (one.item, list(user.recent), float(np.expm1(found.features([], one.time)[:, 6])[0].round()))
        for one, user in found.replay(log, 0.0)
    ]
    assert counts == [("a", [], 0.0), ("a", [], 0.0), ("b", [0], 2.0)]


def test_a_replay_leaves_out_what_could_not_be_ranked() -> None:
    log = [Interaction("u", "a", DAY), Interaction("u", "a", 2 * DAY), Interaction("u", "c", 3 * DAY)]
    assert [one.time for one, _ in market().replay(log, 0.0)] == [DAY]
    assert [one.time for one, _ in market().replay(log, 0.0, again=True)] == [DAY, 2 * DAY]


def test_gain() -> None:
    scores, may = np.array([3.0, 1.0, 2.0, 2.0, 9.0]), np.array([True, True, True, True, False])
    assert gain(scores, may, 0) == 1
    assert gain(scores, may, 2) == pytest.approx(1 / math.log2(3.5)), "equal scores share their ranks"
    assert gain(np.arange(12.0), np.ones(12, dtype=bool), 0) == 0


def simulated(seed: int = 0) -> tuple[list[Item], np.ndarray, list[Interaction]]:
    """Users of two tastes, whose first is told by the vectors; within it, what is new is taken."""
    chance = np.random.default_rng(seed)
    items = [Item(str(number), str(number), date=number * DAY) for number in range(60)]
    vectors = np.eye(2, dtype=np.float32)[np.arange(60) % 2]
    log = []
    for time in np.sort(chance.uniform(10, 60, 900)) * DAY:
        user = int(chance.integers(20))
        there = [number for number in range(60) if number * DAY <= time and number % 2 == user % 2][-6:]
        log.append(Interaction(f"u{user}", str(chance.choice(there)), float(time)))
    return items, vectors, log


def test_the_ranker_learns_what_counts() -> None:
    items, vectors, log = simulated()

    def made() -> Market:
        return Market(items, vectors, 5 * DAY)

    found = learn(made, log, 30 * DAY, again=True)
    assert set(found.judged) == {"learnt", "popularity", "similarity"}
    assert found.judged["learnt"] > 0.4 > max(found.judged["popularity"], found.judged["similarity"])
    again = Ranker.from_dict(json.loads(json.dumps(found.to_dict())))
    both = judge({"found": found, "again": again}, made(), log, 50 * DAY, again=True)
    assert both["found"] == both["again"] > 0.4


def test_weights_depend_on_how_much_is_known() -> None:
    found = Ranker(np.eye(9)[4], np.eye(9)[0])
    features = np.eye(9, dtype=np.float32)[[0, 4]]
    assert found.scores(features, 0).tolist() == [0, 1]
    assert found.scores(features, 9).tolist() == pytest.approx([0.75, 1])


def test_the_best_are_allowed_and_in_order() -> None:
    found = market()
    may = np.array([True, False, True, True])
    user = User()
    user.take(0)
    top, scores = best(BASELINES["similarity"], found, user, DAY, may, 10)
    assert top.tolist() == [0, 2, 3]
    assert scores.tolist() == pytest.approx([1, 0, -1])
    assert best(BASELINES["similarity"], found, user, DAY, may & False, 10)[0].tolist() == []


def test_too_little_to_learn_from() -> None:
    log = [Interaction("u", "a", float(number)) for number in range(19)]
    with pytest.raises(DataError, match=r"has 19 interactions to learn from and needs 20; raise app.newest"):
        learn(market, log, 0.0)
    with pytest.raises(DataError, match="nobody took anything that was there; check the dates"):
        fit(market(), [Interaction("u", "c", 1.0)] * 3, 0.0)


def test_other_features_are_refused() -> None:
    values = {**BASELINES["popularity"].to_dict(), "features": ["similar"]}
    with pytest.raises(ConfigError, match=r"the ranker weighs similar, and this version has similar, nearest"):
        Ranker.from_dict(values)


def test_half_life_is_a_tenth_of_the_log() -> None:
    log = [Interaction("u", "a", 0.0), Interaction("u", "a", 100 * DAY)]
    assert half_life_of(log) == 10 * DAY
    assert half_life_of(log, 2) == 2 * DAY

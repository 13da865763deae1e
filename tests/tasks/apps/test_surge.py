import numpy as np
import pytest
from river.drift import PageHinkley

from hf_efficient.tasks.apps import surge
from hf_efficient.tasks.apps.surge import FIRST, LEVELS, Surge, Surges, peaks, threshold


def flips(share: float, count: int, seed: int) -> list[bool]:
    return (np.random.default_rng(seed).random(count) < share).tolist()


def alarms(watch: Surge, stream: list[bool]) -> list[int]:
    return [place for place, negative in enumerate(stream) if watch.update(negative, float(place)) is not None]


@pytest.fixture(autouse=True)
def fewer_streams(monkeypatch: pytest.MonkeyPatch) -> None:
    """A part of what a threshold is calibrated by."""
    monkeypatch.setattr(surge, "STREAMS", 500)
    monkeypatch.setattr(surge, "HORIZON", 5_000)
    threshold.cache_clear()


def test_simulated_streams_are_those_of_river() -> None:
    """The peak of each is just what a detector of river with that threshold, and with a lower one, tells from it."""
    count, level, delta = 1500, 0.3, 0.05
    chance = np.random.default_rng(0)
    streams = np.stack([chance.random(6, dtype=np.float32) < level for _ in range(count)], axis=1)
    for stream, peak in zip(streams, peaks(level, delta, 6, count), strict=True):
        for limit, is_reached in ((peak + 1e-6, False), (peak - 1e-6, True)):
            detector = PageHinkley(min_instances=FIRST, delta=delta, threshold=limit, alpha=1.0, mode="up")
            found = False
            for value in stream:
                detector.update(float(value))
                found = found or detector.drift_detected
            assert found == is_reached


@pytest.mark.parametrize("share", [0.08, 0.28, 0.6])
def test_false_alarms_are_as_many_as_chosen(share: float) -> None:
    """Also where the share lies between two levels. Of 30 expected ones, 14 to 48 come in 998 of 1,000 tries."""
    found = 0
    for number in range(15):
        found += len(alarms(Surge(f"{share}/{number}", 0.1, 5_000), flips(share, 10_000, number)))
    assert 14 <= found <= 48


def test_a_rarer_false_alarm_has_a_higher_threshold() -> None:
    limits = [threshold(0.3, 0.1, every) for every in (2_000, 20_000, 200_000, 2_000_000, 2e12)]
    assert limits == sorted(limits)
    assert len(set(limits)) == 5
    # One in ten as often costs as much more each time: the tail is exponential
    assert limits[3] - limits[2] == pytest.approx((limits[4] - limits[3]) / 6, rel=0.02)
    assert all(
        np.isfinite(threshold(level, smallest, 1e12)) for level in (LEVELS[0], LEVELS[-1]) for smallest in (0.1, 0.5)
    )


def test_a_surge_is_found_and_described() -> None:
    watch = Surge("east", 0.1, 1_000_000)
    before = flips(0.25, 3000, 0)
    assert not alarms(watch, before)
    rise = None
    for number, negative in enumerate(flips(0.6, 400, 1)):
        rise = watch.update(negative, 10_000.0 + number)
        if rise is not None:
            break
    assert rise is not None
    assert number < 150
    assert abs(rise.began - 10_000) < 8000
    assert rise.share > 0.45
    assert rise.before == pytest.approx(0.25, abs=0.03)
    assert rise.items + rise.of == 3000 + number + 1


def test_after_an_alarm_the_new_share_is_the_rule() -> None:
    watch = Surge("east", 0.1, 1_000_000)
    stream = flips(0.2, 2000, 0) + flips(0.7, 5000, 1) + flips(0.2, 3000, 2)
    found = alarms(watch, stream)
    assert len(found) == 1
    assert 2000 < found[0] < 2150


def test_falls_give_no_alarm() -> None:
    assert not alarms(Surge("east", 0.1, 100_000), flips(0.6, 2000, 0) + flips(0.1, 4000, 1))


def test_what_is_going_on_is_a_matter_of_rank_not_of_ties() -> None:
    for stream in ([False] * 3000, [True] * 3000):
        assert not alarms(Surge("east", 0.1, 1_000_000), stream)


def test_a_restart_changes_nothing() -> None:
    stream = flips(0.3, 1500, 0) + flips(0.75, 120, 1)
    whole = Surge("east", 0.1, 100_000)
    expected = [whole.update(negative, float(place)) for place, negative in enumerate(stream)]
    assert any(expected)
    parts, state = [], Surge("east", 0.1, 100_000).state()
    for place, negative in enumerate(stream):
        if place % 37 == 0 or place > 1400:
            again = Surge("east", 0.1, 100_000)
            again.load(state)
        parts.append(again.update(negative, float(place)))
        state = again.state()
    assert parts == expected
    assert state == whole.state()


def test_each_topic_and_all_together_are_watched() -> None:
    watched = Surges(0.1, 1_000_000, {}, "none")
    found = []
    for place, negative in enumerate(flips(0.2, 4000, 0)):
        found += watched.update(("east", "west")[place % 2], negative, float(place))
    assert not found
    for place in range(80):
        found += watched.update(("east", "west")[place % 2], place % 2 == 0, 4000.0 + place)
    assert "east" in [topic for topic, _ in found]
    assert "west" not in [topic for topic, _ in found]
    watched.update("none", True, 5000.0)
    again = Surges(0.1, 1_000_000, watched.states(), "none")
    assert again.states() == watched.states()
    assert set(again.states()) == {"", "east", "west"}

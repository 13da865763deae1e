from pathlib import Path
from typing import Any

import pytest

from hf_efficient import ConfigError
from hf_efficient.tasks.apps.monitor_store import Marked, Store, sqlite_url
from hf_efficient.tasks.apps.stream import Item, Refused
from hf_efficient.tasks.apps.surge import Rise, Surges

HOUR = 3600


class Eager(Surges):
    """Gives alarm at every second negative of a topic; its state is how many there were."""

    def __init__(self, states: Any):
        self.seen = {topic: state["seen"] for topic, state in states.items()}

    def update(self, topic: str, negative: bool, time: float) -> list[tuple[str, Rise]]:
        self.seen[topic] = self.seen.get(topic, 0) + negative
        is_second = negative and self.seen[topic] % 2 == 0
        return [(topic, Rise(time, 2, 1.0, 0.5, 8))] if is_second else []

    def states(self) -> dict[str, dict[str, Any]]:
        return {topic: {"seen": number} for topic, number in self.seen.items()}


def marked(text: str, label: str = "neutral", when: float = 0, id: str | None = None, **more: Any) -> Marked:
    return Marked(Item(text, when, id), label, 0.9, more.get("topic", "east"), more.get("entity"))


def record(
    store: Store, items: list[Marked], was: Any = None, now: Any = None, **changes: Any
) -> tuple[int, list[Any]]:
    given = {"source": "a", "refused": [], "surges": Eager, "negative": "negative", "due": True, **changes}
    return store.record(marked=items, was=was or {}, now=now or {}, **given)


@pytest.fixture
def store(tmp_path: Path) -> Any:
    made = Store(sqlite_url(tmp_path / "monitor.db"))
    yield made
    made.close()


def test_items_position_and_detectors_are_one_transaction(store: Store, tmp_path: Path) -> None:
    assert store.position("a") == {}
    count, alarms = record(store, [marked("x", "negative", 1), marked("y", "negative", 2)], now={"offset": 9})
    assert (count, store.count(), store.position("a")) == (2, 2, {"offset": 9})
    assert str(alarms[0]) == "surge of negatives in east: 100% of the last 2 items are negative, 50% before"
    other = Store(sqlite_url(tmp_path / "monitor.db"))

    class Fails(Eager):
        def states(self) -> Any:
            raise RuntimeError

    with pytest.raises(RuntimeError):  # after items and alarms were written
        record(other, [marked("z", "negative"), marked("z", "negative")], {"offset": 9}, {"offset": 20}, surges=Fails)
    assert (store.count(), len(store.newest_alarms()), store.position("a")) == (2, 1, {"offset": 9})
    _, alarms = record(other, [marked("z", "negative")], {"offset": 9}, {"offset": 20})
    assert not alarms  # the third one
    assert [alarm.time for alarm in record(store, [marked("z", "negative", 4)], {"offset": 20})[1]] == [4]
    other.close()


def test_two_readers_of_a_source_are_refused(store: Store) -> None:
    record(store, [marked("x")], now={"offset": 9})
    with pytest.raises(ConfigError, match="another process has read from a"):
        record(store, [marked("x")], now={"offset": 9})
    assert store.count() == 1


def test_an_id_is_counted_once(store: Store) -> None:
    some = [marked("x", id="1"), marked("x", id="1"), marked("x"), marked("x"), marked("x", id="2")]
    assert record(store, some)[0] == 4
    assert record(store, [*some[:2], *(marked("y", id=str(number)) for number in range(1200))])[0] == 1198
    assert record(store, some[:2], source="b")[0] == 1  # of another source
    assert store.count() == 4 + 1198 + 1


def test_what_was_refused_is_kept(store: Store) -> None:
    record(store, [], now={"offset": 5}, refused=[Refused("{", "not a line of JSON")])
    assert (store.count_refused(), store.position("a")) == (1, {"offset": 5})


def test_counts_by_hour(store: Store) -> None:
    items = [marked("x", "negative", 5), marked("x", "neutral", 6), marked("x", "neutral", HOUR - 1)]
    record(store, [*items, marked("y", "negative", 30 * HOUR, topic="west", entity="ACME")])
    assert store.hourly() == [
        (0, "east", "negative", 1),
        (0, "east", "neutral", 2),
        (30, "west", "negative", 1),
    ]
    assert store.hourly(30) == [(30, "west", "negative", 1)]
    assert store.hourly(31)[0][0] == 0
    assert store.entities(1, 5) == [("ACME", "negative", 1)]


def test_an_alarm_is_claimed_by_one_sender_until_it_is_due_again(store: Store) -> None:
    record(store, [marked("x", "negative"), marked("x", "negative")])
    (alarm,) = store.claim(100.0, lambda tries: 10.0 * (tries + 1))
    assert store.claim(105.0, lambda tries: 10.0) == []
    assert store.claim(110.0, lambda tries: 10.0 * (tries + 1)) == [alarm]
    assert store.claim(129.0, lambda tries: 10.0) == []
    store.mark_sent(alarm)
    assert store.claim(1e9, lambda tries: 10.0) == []
    record(store, [marked("x", "negative"), marked("x", "negative")], due=False)  # there is no receiver
    assert store.claim(1e9, lambda tries: 10.0) == []
    assert len(store.newest_alarms()) == 2


def test_a_database_that_cannot_be_opened() -> None:
    with pytest.raises(ConfigError, match=r"app.database: cannot open 'nonsense'.*give a URL"):
        Store("nonsense")
    with pytest.raises(ConfigError) as told:
        Store("sqlite:////no/such/folder/x.db")
    assert "give a URL" in str(told.value)
    with pytest.raises(ConfigError) as told:
        Store("nosuch://me:secret@host/db")
    assert "secret" not in str(told.value)

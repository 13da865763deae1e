"""Logs and the pairs that an encoder learns from."""

from pathlib import Path

import pandas as pd
import pytest

from hf_efficient.data import DataSettings, load
from hf_efficient.errors import ConfigError, DataError
from hf_efficient.tasks.apps.catalogue import Columns, Item, to_seconds
from hf_efficient.tasks.apps.interactions import (
    Interaction,
    cutoff,
    known_only,
    moments,
    pairs,
    read_log,
    write_pairs,
)
from tests.tasks.apps.shop import write
from tests.test_mind import folder as mind

ITEMS = {name: Item(name, f"text {name}") for name in "abcd"}


def told(*rows: tuple[str, str, float]) -> list[Interaction]:
    return [Interaction(*row) for row in rows]


def test_a_log_is_in_the_order_of_its_times(tmp_path: Path) -> None:
    lines = "who,item,when\nu2,b,2026-01-02\nu1,a,2026-01-01T05:00:00\n"
    (tmp_path / "log.csv").write_text(lines)
    found = read_log(tmp_path, Columns(user="who", time="when"))
    assert [(one.user, one.item) for one in found] == [("u1", "a"), ("u2", "b")]
    assert found[1].time == to_seconds("2026-01-02")
    (tmp_path / "log.csv").write_text(lines + "u1,a,soon\n")
    with pytest.raises(DataError, match=r"log.csv: row 3: the time 'soon' is neither like"):
        read_log(tmp_path, Columns(user="who", time="when"))


def test_mind_histories_come_before_all_impressions(tmp_path: Path) -> None:
    behaviors = [
        "1\tU1\t11/11/2019 9:05:58 AM\tN1 N2\tN3-1 N1-0",
        "2\tU1\t11/13/2019 6:00:00 PM\tN1 N2\tN1-1",
        "3\tU2\t11/10/2019 6:00:00 PM\t\tN2-1 N3-1",
    ]
    found = read_log(mind(tmp_path / "mind", behaviors))
    first = to_seconds("2019-11-10T18:00:00")
    assert found == told(
        ("U1", "N1", first - 2),
        ("U1", "N2", first - 1),
        ("U2", "N2", first),
        ("U2", "N3", first),
        ("U1", "N3", to_seconds("2019-11-11T09:05:58")),
        ("U1", "N1", to_seconds("2019-11-13T18:00:00")),
    )
    with pytest.raises(DataError, match=r"line 1: the time 'noon' is not like 11/15/2019 9:05:58 AM; write it so"):
        read_log(mind(tmp_path / "odd", ["1\tU1\tnoon\tN1\tN3-1"]))


def test_items_that_left_the_catalogue() -> None:
    log = told(("u", "a", 1), ("u", "gone", 2))
    assert known_only(log, ITEMS, "log.csv") == log[:1]
    with pytest.raises(DataError, match=r"log.csv: no item of the log is in the catalogue, such as 'gone'"):
        known_only(log[1:], ITEMS, "log.csv")


def test_pairs_go_on_from_what_was_taken() -> None:
    log = told(("u", "a", 1), ("v", "d", 2), ("u", "b", 3), ("u", "c", 4), ("u", "c", 5))
    found = [(row["question"][-1], row["answer"][-1]) for row in pairs(ITEMS, log).to_list()]
    assert found == [("a", "b"), ("a", "c"), ("b", "c"), ("b", "c")]
    assert [row["answer"][-1] for row in pairs(ITEMS, log, since=3, until=4).to_list()] == ["b"]
    assert len(pairs(ITEMS, log, window=1)) == 2


def test_what_happens_at_once_does_not_tell_of_itself() -> None:
    log = told(("u", "a", 1), ("u", "b", 1), ("u", "c", 2))
    assert [len(some) for _, some in moments(log)] == [2, 1]
    assert [row["answer"][-1] for row in pairs(ITEMS, log).to_list()] == ["c", "c"]


def test_parts_follow_each_other_in_time(tmp_path: Path) -> None:
    write(tmp_path)
    log = read_log(tmp_path)
    write_pairs(tmp_path, tmp_path, tmp_path / "pairs", newest=0.5, test=0.2)
    found = {name: len(pd.read_parquet(tmp_path / "pairs" / f"{name}.parquet")) for name in ("train", "validation")}
    assert found == {"train": 18 + 2 * 7, "validation": 2 * 43}, "18 users took a first thing, then a second"
    files = {name: str(tmp_path / "pairs" / f"{name}.parquet") for name in ("train", "validation", "test")}
    assert len(load(DataSettings(**files))["test"]) == 2 * 22
    end = cutoff(log, 0.2)
    assert sum(one.time < end for one in log) == 86


def test_bad_shares(tmp_path: Path) -> None:
    write(tmp_path)
    with pytest.raises(ConfigError, match=r"newest and test must be shares below 1, window 1 or more; got 1.5, 0.0, 2"):
        write_pairs(tmp_path, tmp_path, tmp_path, newest=1.5)
    with pytest.raises(DataError, match=r"nobody took two items in the part for train; give a longer log"):
        write_pairs(tmp_path, tmp_path, tmp_path, newest=0.9)

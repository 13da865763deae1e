"""Catalogues: files, folders, samples; what is wrong in them is named."""

from pathlib import Path
from typing import Any

import pytest

from hf_efficient.errors import DataError
from hf_efficient.tasks.apps.catalogue import Columns, Item, item_of, plain, read_catalogue, to_seconds
from tests.tasks.apps.shop import START, catalogue, write
from tests.test_mind import folder as mind


def test_a_folder_has_a_catalogue(tmp_path: Path) -> None:
    found = read_catalogue(write(tmp_path))
    assert len(found) == 24
    assert found["card0"] == Item("card0", "my card is lost a", "card", 10.0, START - 86400)
    assert found["card0"].written == "card | my card is lost a"
    assert found == read_catalogue(tmp_path / "catalogue.jsonl")


def test_columns_have_other_names_or_are_not_there(tmp_path: Path) -> None:
    (tmp_path / "c.csv").write_text("sku,title\n007,A pen\n8,=1+1\n")
    found = read_catalogue(tmp_path / "c.csv", Columns(item="sku", text="title"))
    assert list(found.values()) == [Item("007", "A pen"), Item("8", "=1+1")]


def test_mind(tmp_path: Path) -> None:
    found = read_catalogue(mind(tmp_path / "mind"))
    assert found["N2"] == Item("N2", "Soup of the day", "food")


def test_the_sample() -> None:
    found = read_catalogue("sample:purchases")
    assert len(found) == 500
    assert all(item.price and item.date and item.category for item in found.values())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"item": "card0"}, r"row 25 has the item 'card0' again; give each item once"),
        ({"price": -1.0}, r"row 25: the price '-1.0' is no number above 0; write it like 12.50"),
        ({"date": "soon"}, r"row 25: the time 'soon' is neither like 2026-03-01T12:00:00 nor in seconds"),
        ({"text": " "}, r"column 'text' is empty in 1 of 25 rows \(row 25\)"),
    ],
)
def test_bad_rows(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    row = {"item": "x", "text": "y", "category": "z", "price": 1.0, "date": "2026-01-01", **change}
    with pytest.raises(DataError, match=message):
        read_catalogue(write(tmp_path, [*catalogue(), row]))


def test_bad_sources(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"unknown sample with a catalogue 'purchase'; did you mean 'purchases'"):
        read_catalogue("sample:purchase")
    with pytest.raises(DataError, match=r"has no file catalogue \(.csv, .*; add it, or name the file"):
        read_catalogue(tmp_path)


def test_times() -> None:
    expected = 1_772_366_400.0
    for given in ("2026-03-01T12:00:00", "2026-03-01T13:00:00+01:00", "1772366400", expected):
        assert to_seconds(given) == expected
    for given in ("", "yesterday", "nan", "1e300", None):
        with pytest.raises(ValueError, match="is neither like 2026-03-01T12:00:00 nor in seconds since 1970"):
            to_seconds(given)


def test_items_are_what_they_were() -> None:
    for item in (Item("a", "b"), Item("a", "b", "c", 1.5, START)):
        assert item_of(plain(item)) == item

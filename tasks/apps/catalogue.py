"""What can be recommended: items with their texts and, where they are known, category, price and date."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import resources
from pathlib import Path
from typing import Any

from datasets import Dataset
from pydantic import BaseModel, ConfigDict

from hf_efficient.data import SAMPLE, check_columns
from hf_efficient.errors import DataError, unknown
from hf_efficient.mind import is_mind, read_news
from hf_efficient.reading import FORMATS, read_file

CATALOGUE = "catalogue"
"""Name of its file in a folder."""


class Columns(BaseModel):
    """What columns of catalogue and log are called."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    item: str = "item"
    """Of both: the item's id."""

    text: str = "text"
    """Of the catalogue: title or description."""

    category: str = "category"
    """Of the catalogue, where it has one."""

    price: str = "price"
    """Of the catalogue, where it has one: a number above 0."""

    date: str = "date"
    """Of the catalogue, where it has one: since when there is the item."""

    user: str = "user"
    """Of the log: the user's id."""

    time: str = "time"
    """Of the log: when he took the item."""


@dataclass(frozen=True)
class Item:
    """Something that a user can take.

    Attributes:
        item: its id.
        category: empty where it has none.
        price: None where it is not known.
        date: since when there is the item, in seconds since 1970; None where it is not known.
    """

    item: str
    text: str
    category: str = ""
    price: float | None = None
    date: float | None = None

    @property
    def written(self) -> str:
        """As the model reads it."""
        return f"{self.category} | {self.text}" if self.category else self.text


def read_catalogue(source: str | Path, columns: Columns | None = None) -> dict[str, Item]:
    """Id -> item, of a csv, tsv, json, jsonl or parquet file; of a folder's ``catalogue`` or, in the format of MIND,
    ``news.tsv``; or of the bundled sample ``sample:<name>``.

    Raises:
        DataError: no such file, or one that lacks columns or values, or has a value that is not as it should be.
    """
    columns, path = columns or Columns(), located(source, CATALOGUE)
    if path.is_dir():
        news = read_news(path)
        return {name: Item(name, article.title, article.category) for name, article in news.items()}
    rows = read_file(path)
    check_columns(rows, [columns.item, columns.text], str(path))
    values = {name: _column(rows, getattr(columns, name)) for name in ("item", "text", "category", "price", "date")}
    found: dict[str, Item] = {}
    for number, (item, text, category, price, date) in enumerate(zip(*values.values(), strict=True), start=1):
        where = f"{path}: row {number}"
        if str(item) in found:
            raise DataError(f"{where} has the item '{item}' again; give each item once")
        cost, since = _read(price, to_price, where), _read(date, to_seconds, where)
        found[str(item)] = Item(str(item), str(text), str(category or ""), cost, since)
    return found


def located(source: str | Path, name: str) -> Path:
    """The file that ``source`` means: itself, or ``name`` with one of `FORMATS` in a folder or bundled sample; the
    folder where it is in the format of MIND.

    Raises:
        DataError: there is none.
    """
    path = Path(source).expanduser()
    if str(source).startswith(SAMPLE):
        root, sample = Path(str(resources.files("hf_efficient.tasks") / "data")), str(source).removeprefix(SAMPLE)
        samples = [folder.name for folder in root.iterdir() if _files(folder, name)]
        if sample not in samples:
            raise DataError(unknown(f"sample with a {name}", sample, samples))
        path = root / sample
    if not path.is_dir() or is_mind(path):
        return path
    if not _files(path, name):
        raise DataError(f"{path} has no file {name} ({', '.join(FORMATS)}); add it, or name the file")
    return _files(path, name)[0]


def _files(folder: Path, name: str) -> list[Path]:
    return [path for suffix in FORMATS if (path := folder / f"{name}{suffix}").is_file()]


def _column(rows: Dataset, name: str) -> Sequence[Any]:
    return list(rows[name]) if name in rows.column_names else [None] * len(rows)


def _read(value: Any, read: Callable[[Any], float], where: str) -> float | None:
    if value is None or value == "":
        return None
    try:
        return read(value)
    except ValueError as error:
        raise DataError(f"{where}: {error}") from None


def to_price(value: Any) -> float:
    """A price as a number.

    Raises:
        ValueError: none, or not above 0.
    """
    try:
        price = float(value)
    except (TypeError, ValueError):
        price = math.nan
    if not 0 < price < math.inf:
        raise ValueError(f"the price '{value}' is no number above 0; write it like 12.50, or leave it empty")
    return price


def to_seconds(value: Any) -> float:
    """Seconds since 1970 of a time: such a number, or ISO 8601, in UTC where it names no zone.

    Raises:
        ValueError: it is neither.
    """
    try:
        if isinstance(value, datetime):
            at = value
        else:
            try:
                seconds = float(value)
            except (TypeError, ValueError):
                at = datetime.fromisoformat(str(value).strip())
            else:
                at = datetime.fromtimestamp(seconds, UTC)  # refuses what is out of range
        return (at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp()
    except (ValueError, OverflowError, OSError):
        raise ValueError(
            f"the time '{value}' is neither like 2026-03-01T12:00:00 nor in seconds since 1970; write it so"
        ) from None


def shown_time(seconds: float) -> str:
    """ISO 8601, in UTC."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")


def plain(item: Item) -> dict[str, Any]:
    """As a row of a file."""
    return {**vars(item), "date": None if item.date is None else shown_time(item.date)}


def item_of(values: Mapping[str, Any]) -> Item:
    """The item that `plain` gave."""
    return Item(**{**values, "date": None if values["date"] is None else to_seconds(values["date"])})

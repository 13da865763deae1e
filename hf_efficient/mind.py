"""Folders in the format of MIND (Wu et al. 2020, ACL): `behaviors.tsv` and `news.tsv`, fields between tabs, no header.

All is held in memory, each title once for each time it was shown.
"""

from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

from datasets import Dataset

from hf_efficient.errors import DataError

BEHAVIORS, NEWS = "behaviors.tsv", "news.tsv"
TIME = "%m/%d/%Y %I:%M:%S %p"
"""How times are written."""

_BEHAVIORS = ("impression", "user", "time", "history", "candidates")
_NEWS = ("news ID", "category", "subcategory", "title")


class Article(NamedTuple):
    """A line of `news.tsv`; abstract, address and entities are not read."""

    category: str
    subcategory: str
    title: str


def is_mind(folder: Path) -> bool:
    """Whether ``folder`` holds either file."""
    return (folder / BEHAVIORS).is_file() or (folder / NEWS).is_file()


def read_mind(folder: Path) -> Dataset:
    """A row for each impression: ``impression``, ``user``, ``time``; ``history``: titles of what was clicked before,
    the newest last; and a list with an entry for each candidate: ``items`` (their IDs), ``candidates`` (titles),
    ``categories``, ``subcategories``, ``clicks`` (1 or 0).

    Raises:
        DataError: a file that is missing, or a line that is not as it should be; names both.
    """
    news = read_news(folder)
    rows = [_row(fields, news, where) for where, fields in _lines(folder / BEHAVIORS, _BEHAVIORS)]
    if not rows:
        raise DataError(f"{folder / BEHAVIORS} is empty; it needs an impression")
    return Dataset.from_dict({name: [row[name] for row in rows] for name in rows[0]})


def read_news(folder: Path) -> dict[str, Article]:
    """ID of each article -> what `news.tsv` says of it.

    Raises:
        DataError: as for `read_mind`.
    """
    found = {}
    for where, (identifier, *told) in _lines(folder / NEWS, _NEWS):
        article = Article(*told[:3])
        if not article.title.strip():
            raise DataError(f"{where}: the title of '{identifier}' is empty; fill it in")
        found[identifier] = article
    return found


def read_clicks(folder: Path) -> Iterator[tuple[str, datetime, list[str], list[str]]]:
    """Of each impression the user, its time, and the IDs of what he had clicked before (the newest last) and clicked.

    Raises:
        DataError: as for `read_mind`, or a time that is none.
    """
    for where, (_, user, time, history, shown, *_) in _lines(folder / BEHAVIORS, _BEHAVIORS):
        try:
            at = datetime.strptime(time, TIME)
        except ValueError:
            raise DataError(f"{where}: the time '{time}' is not like 11/15/2019 9:05:58 AM; write it so") from None
        pairs = [_candidate(entry, where) for entry in shown.split()]
        yield user, at, history.split(), [identifier for identifier, click in pairs if click]


def _row(fields: list[str], news: dict[str, Article], where: str) -> dict[str, Any]:
    impression, user, time, history, shown = fields[:5]
    pairs = [_candidate(entry, where) for entry in shown.split()]
    if not pairs:
        raise DataError(f"{where}: no candidates; delete the line")
    articles = [_article(identifier, news, where) for identifier, _ in pairs]
    return {
        "impression": impression,
        "user": user,
        "time": time,
        "history": [_article(identifier, news, where).title for identifier in history.split()],
        "items": [identifier for identifier, _ in pairs],
        "candidates": [article.title for article in articles],
        "categories": [article.category for article in articles],
        "subcategories": [article.subcategory for article in articles],
        "clicks": [click for _, click in pairs],
    }


def _candidate(entry: str, where: str) -> tuple[str, int]:
    identifier, _, click = entry.rpartition("-")
    if not identifier or click not in ("0", "1"):
        raise DataError(
            f"{where}: the candidate '{entry}' does not end in -1 (clicked) or -0; without clicks there is nothing to "
            "learn or judge by, so give impressions that have them"
        )
    return identifier, int(click)


def _article(identifier: str, news: dict[str, Article], where: str) -> Article:
    if identifier not in news:
        raise DataError(f"{where}: {NEWS} has no article '{identifier}'; add it, or delete it here")
    return news[identifier]


def _lines(path: Path, names: tuple[str, ...]) -> Iterator[tuple[str, list[str]]]:
    """Where each line is, and its fields: as many as ``names``, or more."""
    if not path.is_file():
        raise DataError(f"no file {path}; a folder in the format of MIND has {BEHAVIORS} and {NEWS}")
    with path.open("rb") as lines:
        for number, raw in enumerate(lines, start=1):
            where = f"cannot read {path}: line {number}"
            try:
                line = raw.decode().rstrip("\r\n")
            except UnicodeDecodeError:
                raise DataError(f"{where} is not UTF-8 text; save the file as UTF-8") from None
            fields = line.split("\t")
            if len(fields) < len(names):
                raise DataError(
                    f"{where} has {len(fields)} fields, separated by tabs, and needs {len(names)}: {', '.join(names)}"
                )
            yield where, fields

"""Logs of who took what when, and the pairs of texts that an encoder learns from.

    write_pairs("catalogue.csv", "log.csv", "pairs")        # or a folder in the format of MIND, twice
    hf-efficient run item-recommendation data.train=pairs/train.parquet data.validation=pairs/validation.parquet ...

A pair is the text of an item and that of one which the same user took soon after, so items that are taken by the same
people get vectors near each other, whatever their words. The newest part of the log is for validation and for the
ranker, which so learns from vectors of items whose next ones the encoder has not seen.
"""

from collections import defaultdict, deque
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from operator import attrgetter
from pathlib import Path
from typing import NamedTuple

from datasets import Dataset

from hf_efficient.data import check_columns
from hf_efficient.errors import ConfigError, DataError
from hf_efficient.files import atomic_path
from hf_efficient.mind import read_clicks
from hf_efficient.reading import quiet, read_file
from hf_efficient.tasks.apps.catalogue import Columns, Item, located, read_catalogue, to_seconds

LOG = "log"
"""Name of its file in a folder."""


class Interaction(NamedTuple):
    """Somebody took something; ``time`` in seconds since 1970."""

    user: str
    item: str
    time: float


def read_log(source: str | Path, columns: Columns | None = None) -> list[Interaction]:
    """Interactions in the order of their times, of a file, a folder with a ``log``, one in the format of MIND, or the
    bundled sample ``sample:<name>``.

    MIND tells no times of what was clicked before the first impression: these come, in their order, a second each
    before the first of the whole log.

    Raises:
        DataError: no such file, or one that lacks columns or values, or has a time that is none.
    """
    columns, path = columns or Columns(), located(source, LOG)
    found = _of_mind(path) if path.is_dir() else _of_file(path, columns)
    return sorted(found, key=attrgetter("time"))


def _of_file(path: Path, columns: Columns) -> list[Interaction]:
    rows, names = read_file(path), [columns.user, columns.item, columns.time]
    check_columns(rows, names, str(path))
    found = []
    for number, (user, item, time) in enumerate(zip(*(rows[name] for name in names), strict=True), start=1):
        try:
            found.append(Interaction(str(user), str(item), to_seconds(time)))
        except ValueError as error:
            raise DataError(f"{path}: row {number}: {error}") from None
    return found


def _of_mind(folder: Path) -> list[Interaction]:
    impressions = sorted(read_clicks(folder), key=lambda one: one[1])
    found: list[Interaction] = []
    before: dict[str, list[str]] = {}
    for user, at, history, clicked in impressions:
        before.setdefault(user, history)
        found += [Interaction(user, item, to_seconds(at)) for item in clicked]
    if not impressions:
        raise DataError(f"{folder / 'behaviors.tsv'} is empty; it needs an impression")
    start = to_seconds(impressions[0][1])
    for user, history in before.items():
        found += [Interaction(user, item, start - len(history) + place) for place, item in enumerate(history)]
    return found


def known_only(log: Sequence[Interaction], items: Mapping[str, Item], source: str) -> list[Interaction]:
    """Those of ``log`` whose items are in the catalogue: shops drop articles, and logs keep them.

    Raises:
        DataError: none is.
    """
    kept = [one for one in log if one.item in items]
    if not kept:
        given = f"such as '{log[0].item}'" if log else "and it is empty"
        raise DataError(f"{source}: no item of the log is in the catalogue, {given}; give the log of this catalogue")
    return kept


def moments(log: Sequence[Interaction]) -> Iterator[tuple[float, list[Interaction]]]:
    """Each time of ``log`` with what happened then: none of it was known before any other of it."""
    for time, some in groupby(log, key=attrgetter("time")):
        yield time, list(some)


def cutoff(log: Sequence[Interaction], newest: float) -> float:
    """The time at which the newest share of ``log`` begins."""
    return log[min(len(log) - 1, round(len(log) * (1 - newest)))].time


def pairs(
    items: Mapping[str, Item],
    log: Sequence[Interaction],
    *,
    since: float = -float("inf"),
    until: float = float("inf"),
    window: int = 2,
) -> Dataset:
    """``question``: text of an item; ``answer``: that of one that its user took within the ``window`` next ones, at a
    time from ``since`` on and before ``until``."""
    last: defaultdict[str, deque[str]] = defaultdict(lambda: deque(maxlen=window))
    found: list[tuple[str, str]] = []
    for time, some in moments(log):
        if since <= time < until:
            found += [(before, one.item) for one in some for before in last[one.user] if before != one.item]
        for one in some:
            last[one.user].append(one.item)
    texts = [(items[first].written, items[then].written) for first, then in found]
    return Dataset.from_dict({"question": [text for text, _ in texts], "answer": [text for _, text in texts]})


def write_pairs(
    catalogue: str | Path,
    log: str | Path,
    folder: str | Path,
    *,
    newest: float = 0.3,
    test: float = 0.0,
    window: int = 2,
    columns: Columns | None = None,
) -> None:
    """Write the `pairs` of a log to ``folder``: ``train.parquet``, ``validation.parquet`` and, of what is newest of
    all, ``test.parquet``.

    Args:
        newest: share of the log, less the test part, that is for validation: `newest` of the app, too.
        test: share of the log that is for test; the app is not to see it.
        window: how many of the next items go with each.

    Raises:
        ConfigError: shares that leave nothing.
        DataError: as for `read_catalogue` and `read_log`, or a log without pairs in one of the parts.
    """
    if not (0 < newest < 1 and 0 <= test < 1 and window >= 1):
        raise ConfigError(f"newest and test must be shares below 1, window 1 or more; got {newest}, {test}, {window}")
    items = read_catalogue(catalogue, columns)
    known = known_only(read_log(log, columns), items, str(log))
    end = cutoff(known, test) if test else float("inf")
    start = cutoff([one for one in known if one.time < end] or known, newest)
    parts = {"train": (-float("inf"), start), "validation": (start, end), "test": (end, float("inf"))}
    for name, (since, until) in parts.items():
        if name == "test" and not test:
            continue
        made = pairs(items, known, since=since, until=until, window=window)
        if not len(made):
            raise DataError(f"{log}: nobody took two items in the part for {name}; give a longer log")
        with atomic_path(Path(folder) / f"{name}.parquet") as path, quiet():
            made.to_parquet(path)

"""The monitor on a dated file: what it would have shown, and when it would have given alarm."""

import csv
import io
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from hf_efficient.errors import DataError, RequestError
from hf_efficient.files import atomic_path, write_json, write_text
from hf_efficient.reading import read_file
from hf_efficient.tasks.apps.finance_monitor import FinanceMonitor
from hf_efficient.tasks.apps.monitor_page import stamp
from hf_efficient.tasks.apps.monitor_store import Alarm
from hf_efficient.tasks.apps.stream import Chunk, Item, make_item
from hf_efficient.tasks.apps.timeline import png, timeline

RESULT, SHARES, PICTURE, DATABASE = "backtest.json", "shares.csv", "timeline.png", "backtest.db"
_CHUNK = 512
_SHOWN = 3
_DATES = ("time", "date", "datetime", "timestamp", "published")


def dated_items(path: Path, text: str = "text", when: str | None = None) -> tuple[list[Item], int]:
    """The items of a file in the order of their dates, and the number of rows that were left out.

    Args:
        text: column of the text.
        when: column of the date; None takes the first of `_DATES` that is there.

    Raises:
        DataError: no such column, or no row that can be used.
    """
    rows = read_file(path)
    date = when or next((name for name in _DATES if name in rows.column_names), _DATES[0])
    for column in (text, date):
        if column not in rows.column_names:
            raise DataError(
                f"{path} has no column '{column}', only {', '.join(rows.column_names)}; name the columns with "
                "--text-column and --time-column"
            )
    items, wrong = [], []
    for number, row in enumerate(rows, start=1):
        topic = row.get("topic")
        try:
            if not isinstance(row[text], str) or row[date] in (None, ""):
                raise RequestError("no text or no date")
            items.append(make_item(row[text], _number_or_text(row[date]), topic=topic or None))
        except RequestError as error:
            wrong.append(f"row {number}: {error}")
    if not items:
        raise DataError(f"{path} has no row with a text and a date; {'; '.join(wrong[:_SHOWN])}")
    return sorted(items, key=lambda item: item.time), len(wrong)


def _number_or_text(value: Any) -> Any:
    """Files of text hold seconds as text, and some readers make times of dates."""
    if hasattr(value, "isoformat"):
        return value.isoformat()
    try:
        return float(value)
    except (TypeError, ValueError):
        return value


def backtest(app: FinanceMonitor, items: list[Item], tell: Callable[[int], Any] = lambda count: None) -> dict[str, Any]:
    """Count ``items`` with the database of ``app``, which is empty: figures as plain values.

    Args:
        tell: is called with the number of items of each batch behind it.
    """
    began = time.perf_counter()
    was: dict[str, Any] = {}
    for start in range(0, len(items), _CHUNK):
        some = items[start : start + _CHUNK]
        now = {"row": start + len(some)}
        app.take("backtest", Chunk(now, some), was)
        was = now
        tell(len(some))
    seconds = time.perf_counter() - began
    alarms = app.store.newest_alarms(1000)[::-1]
    settings = {name: getattr(app.settings, name) for name in ("negative", "false_alarm_every", "smallest_surge")}
    return {
        "items": len(items),
        "from": stamp(items[0].time),
        "to": stamp(items[-1].time),
        "topics": app.by_name([(topic, label, number) for _, topic, label, number in app.store.hourly()]),
        "alarms": [{**asdict(alarm), "at": stamp(alarm.time), "text": str(alarm)} for alarm in alarms],
        "settings": settings,
        "seconds": round(seconds, 2),
        "items_per_second": round(len(items) / seconds, 1),
    }


def save(app: FinanceMonitor, result: dict[str, Any], folder: Path) -> None:
    """Write `RESULT`, `SHARES` by day and topic, and `PICTURE`."""
    counts, labels = app.store.hourly(), app.predictor.labels
    days: defaultdict[tuple[int, str], dict[str, int]] = defaultdict(lambda: dict.fromkeys(labels, 0))
    for hour, topic, label, number in counts:
        days[hour // 24, topic][label] += number
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(["day", "topic", "items", *labels])
    for (day, topic), found in sorted(days.items()):
        total = sum(found.values())
        rows.writerow([stamp(day * 86400)[:10], topic, total, *(f"{found[label] / total:.4f}" for label in labels)])
    write_text(folder / SHARES, text.getvalue())
    alarms = [Alarm(**{key: alarm[key] for key in Alarm.__dataclass_fields__}) for alarm in result["alarms"]]
    with atomic_path(folder / PICTURE) as path:
        path.write_bytes(png(timeline(counts, alarms, labels, app.settings.negative)))
    write_json(folder / RESULT, result)


def told(result: dict[str, Any]) -> str:
    """``result`` as a table, and a line for each alarm."""
    labels = list(result["topics"][0]["shares"])
    table = Table(title=f"{result['items']:,} items, {result['from']} to {result['to']} (UTC)", title_justify="left")
    for column in ("topic", "items", *labels, "alarms"):
        table.add_column(column, justify="left" if column == "topic" else "right")
    for row in result["topics"]:
        shares = (f"{100 * row['shares'][label]:.1f} %" for label in labels)
        alarms = sum(alarm["topic"] == row["name"] for alarm in result["alarms"])
        table.add_row(row["name"], f"{row['items']:,}", *shares, str(alarms))
    console = Console(file=io.StringIO(), record=True, width=120, color_system=None, legacy_windows=False, markup=False)
    console.print(table)
    lines = [f"{alarm['at']}  {alarm['text']}" for alarm in result["alarms"]] or ["no alarm"]
    return "\n".join([console.export_text().rstrip(), *lines])

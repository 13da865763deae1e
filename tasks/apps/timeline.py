"""The picture of the monitor: shares of the labels over time, for each topic, with alarms."""

import io
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime

import numpy as np
from matplotlib.axes import Axes
from matplotlib.dates import AutoDateLocator, ConciseDateFormatter
from matplotlib.figure import Figure

from hf_efficient.picture import MUTED_COLOUR, PART_COLOURS, TEXT_COLOUR, blank
from hf_efficient.tasks.apps.monitor_store import HOUR, Alarm

MOST_TOPICS = 8
"""Topics that are shown: those with most items."""

MOST_STEPS = 120
"""Points in time, at most."""

FEWEST = 40
"""Items that a share is of, on average: where there are fewer in a step, those before it count as well."""

TITLE = "Share of each sentiment, %"
_USUAL = {"negative": "#D55E00", "neutral": "#E3E6EA", "positive": "#0072B2"}
_ALARM = "#1F2328"
Counts = Sequence[tuple[int, str, str, int]]


def order(labels: Sequence[str], negative: str) -> list[str]:
    """``labels`` from bottom to top: the negative one first, then as the model has them."""
    return [negative, *(label for label in labels if label != negative)]


def rows(counts: Counts, labels: Sequence[str]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Of each topic, the one with most items first: hours, and items by label in each of equal steps between them.

    Args:
        counts: (hour, topic, label, items).

    Returns:
        topic -> starts of the steps in hours, shape (steps,), and items, shape (steps, labels).
    """
    if not counts:
        return {}
    hours = [hour for hour, *_ in counts]
    first, last = min(hours), max(hours)
    width = -(-(last - first + 1) // MOST_STEPS)
    steps = (last - first) // width + 1
    place = {label: index for index, label in enumerate(labels)}
    found: dict[str, np.ndarray] = {}
    for hour, topic, label, number in counts:
        if label in place:
            items = found.setdefault(topic, np.zeros((steps, len(labels)), dtype=int))
            items[(hour - first) // width, place[label]] += number
    most = sorted(found, key=lambda topic: (-found[topic].sum(), topic))
    return {topic: (first + width * np.arange(steps), found[topic]) for topic in most}


def rolling(items: np.ndarray) -> np.ndarray:
    """Of each step, the sum over as many steps up to it as hold `FEWEST` items on average; shape (steps, labels)."""
    steps = len(items)
    wide = min(int(np.ceil(FEWEST * steps / max(items.sum(), 1))), max(steps // 4, 1))
    total = np.concatenate([np.zeros((1, items.shape[1]), dtype=items.dtype), items.cumsum(0)])
    return total[1:] - total[np.maximum(np.arange(1, steps + 1) - wide, 0)]


def timeline(
    counts: Counts, alarms: Sequence[Alarm], labels: Sequence[str], negative: str, title: str = TITLE
) -> Figure:
    """A figure with a row for each topic; alarms as lines, those of all topics together in each."""
    names = order(labels, negative)
    shown = dict(list(rows(counts, names).items())[:MOST_TOPICS])
    figure = blank(8.0, 1.4 + 1.25 * max(len(shown), 1), title)
    if not shown:
        figure.text(0.5, 0.4, "no items yet", ha="center", fontsize=11, color=MUTED_COLOUR)
        return figure
    axes = figure.subplots(len(shown), 1, sharex=True, squeeze=False)[:, 0]
    for each, (topic, (starts, items)) in zip(axes, shown.items(), strict=True):
        _draw(each, topic, starts, items, _colours(names))
        times = [alarm.time for alarm in alarms if alarm.topic in ("", topic)]
        for when in times:
            each.axvline(_date(when), color=_ALARM, linewidth=1.4, linestyle=(0, (3, 1.5)), label="alarm")
    handles = {label: handle for each in axes for handle, label in zip(*each.get_legend_handles_labels(), strict=True)}
    figure.legend(
        list(handles.values()), list(handles), loc="outside lower center", ncols=len(handles), fontsize=9, frameon=False
    )
    locator = AutoDateLocator()
    axes[-1].xaxis.set_major_locator(locator)
    axes[-1].xaxis.set_major_formatter(ConciseDateFormatter(locator))
    return figure


def _draw(axes: Axes, topic: str, starts: np.ndarray, items: np.ndarray, colours: Mapping[str, str]) -> None:
    recent = rolling(items)
    total = recent.sum(-1, keepdims=True)
    kept = total[:, 0] > 0  # steps without an item have no shares: the last ones hold
    shares = 100 * recent[kept] / total[kept]
    times = [_date(HOUR * int(hour)) for hour in starts[kept]]
    if len(times) > 1:
        axes.stackplot(times, shares.T, colors=list(colours.values()), labels=list(colours), step="post", linewidth=0)
    else:
        bottom = 0.0
        for label, share in zip(colours, shares[0], strict=True):
            axes.bar(times, [share], width=1 / 24, bottom=bottom, color=colours[label], label=label)
            bottom += share
    name = topic if len(topic) <= 28 else f"{topic[:27]}…"
    axes.set_title(f"{name}  ({int(items.sum()):,})", loc="left", fontsize=10, color=TEXT_COLOUR, parse_math=False)
    axes.set_ylim(0, 100)
    axes.set_yticks([0, 50, 100])
    axes.margins(x=0)
    axes.tick_params(labelsize=8.5, labelcolor=MUTED_COLOUR, color=MUTED_COLOUR)
    axes.spines[["top", "right"]].set_visible(False)


def _colours(names: Sequence[str]) -> dict[str, str]:
    """Colour of each label."""
    if set(names) <= set(_USUAL):
        return {name: _USUAL[name] for name in names}
    return {name: PART_COLOURS[index % len(PART_COLOURS)] for index, name in enumerate(names)}


def _date(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)


def png(figure: Figure) -> bytes:
    """``figure`` as a file."""
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=130)
    return content.getvalue()

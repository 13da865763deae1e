"""The picture of a report: one small chart per quantity, its sides beside each other."""

import base64
import io
import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

BEFORE_COLOUR, AFTER_COLOUR, EXPORTED_COLOUR = "#A6AEB8", "#0072B2", "#0B2A4A"  # told apart by lightness alone
TEXT_COLOUR, MUTED_COLOUR = "#1F2328", "#57606A"
PART_COLOURS = ("#E69F00", "#0072B2", "#56B4E9", "#009E73", "#A6AEB8", "#CC79A7", "#F0E442")
"""Okabe and Ito: told apart by the colour-blind too."""
PANEL_INCHES = {2: 2.5, 3: 3.0}
"""Width of a panel by its number of bars."""

LONG = 11
"""Characters on a bar that just leave a gap to those on the next one."""


@dataclass(frozen=True)
class Panel:
    """One chart.

    Attributes:
        label: the quantity.
        change: e.g. "2.1x faster".
        texts: what is written on the bars: before, after and, where there is one, exported.
        values: their heights; None where not measured.
    """

    label: str
    change: str
    texts: tuple[str, ...]
    values: tuple[float | None, ...]


def draw(figure: Figure, target: Path | IO[bytes]) -> None:
    """Write ``figure`` as a PNG."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font")  # a box for a letter: no reason to stop
        figure.savefig(target, format="png", dpi=150)


def inline(figure: Figure) -> str:
    """The link of an image that holds ``figure`` itself, as Markdown in a notebook shows it."""
    written = io.BytesIO()
    draw(figure, written)
    return f"data:image/png;base64,{base64.b64encode(written.getvalue()).decode()}"


def blank(width: float, height: float, title: str = "") -> Figure:
    """A figure of so many inches, to be drawn on without pyplot: no window and no global state."""
    figure = Figure(figsize=(width, height), facecolor="white")
    figure.set_layout_engine("constrained", w_pad=0.12, h_pad=0.08)
    FigureCanvasAgg(figure)
    if title:
        figure.suptitle(title, x=0.012, ha="left", fontsize=14, fontweight="bold", color=TEXT_COLOUR, parse_math=False)
    return figure


def before_after(
    title: str, panels: Sequence[Panel], sides: Sequence[str] = ("Before", "After"), footer: str = ""
) -> Figure:
    """A figure of all ``panels`` in a row.

    Args:
        sides: names of the bars of each panel.
    """
    figure = blank(PANEL_INCHES[len(sides)] * max(len(panels), 2), 4.0, title)
    figure.supxlabel(footer, x=0.012, ha="left", fontsize=9, color=MUTED_COLOUR, parse_math=False)
    for axes, panel in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        _draw(axes, panel, sides)
    return figure


def _draw(axes: Axes, panel: Panel, sides: Sequence[str]) -> None:
    heights = [value if value is not None and math.isfinite(value) else 0 for value in panel.values]
    bars = axes.bar(list(sides), heights, width=0.62, color=[BEFORE_COLOUR, AFTER_COLOUR, EXPORTED_COLOUR])
    longest = max(map(len, panel.texts))
    labels = [text.replace(" ", "\n", 1) if longest > LONG else text for text in panel.texts]
    size = 10.5 if max(len(line) for label in labels for line in label.split("\n")) <= LONG else 8.5
    axes.bar_label(bars, labels=labels, padding=3, fontsize=size, color=TEXT_COLOUR, parse_math=False)
    axes.set_title(panel.label, fontsize=11, color=MUTED_COLOUR, pad=26, parse_math=False)
    axes.text(
        0.5, 1.04, panel.change, transform=axes.transAxes, ha="center", fontsize=12.5, fontweight="bold",
        color=TEXT_COLOUR, parse_math=False,
    )  # fmt: skip
    axes.margins(x=0.12 if len(sides) == 2 else 0.05, y=0.26)  # room for two lines on a bar
    axes.set_yticks([])
    axes.tick_params(axis="x", length=0, labelsize=11, labelcolor=TEXT_COLOUR)
    axes.spines[["top", "left", "right"]].set_visible(False)
    axes.spines["bottom"].set_color(MUTED_COLOUR)


def training_time(shares: Mapping[str, Mapping[str, float]]) -> Figure:
    """Where each training's time went: training -> part -> share of 1."""
    figure = blank(8.0, 1.6 + 0.5 * len(shares))
    stacked(figure.subplots(), shares, "Share of the training's time, %", columns=4)
    return figure


def stacked(axes: Axes, shares: Mapping[str, Mapping[str, float]], title: str, columns: int = 3) -> None:
    """Lying bars of parts that add up to 100 %, the first on top: bar -> part -> share of 1, the same parts in each."""
    start = dict.fromkeys(shares, 0.0)
    for part, colour in zip(next(iter(shares.values())), PART_COLOURS, strict=False):
        widths = [100 * bar[part] for bar in shares.values()]
        bars = axes.barh(list(shares), widths, left=list(start.values()), color=colour, label=part, height=0.6)
        texts = [f"{width:.0f}" if width >= 5 else "" for width in widths]
        axes.bar_label(bars, labels=texts, label_type="center", fontsize=9, color=TEXT_COLOUR)
        start = {name: start[name] + width for name, width in zip(shares, widths, strict=True)}
    axes.set_title(title, fontsize=11, color=MUTED_COLOUR, parse_math=False)
    axes.legend(ncols=columns, fontsize=9, frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.06))
    lying(axes)


def lying(axes: Axes) -> None:
    """``axes`` of lying bars without what says nothing: the first bar on top, names at the left."""
    axes.invert_yaxis()
    axes.set_xticks([])
    axes.tick_params(axis="y", length=0, labelsize=10, labelcolor=TEXT_COLOUR)
    axes.spines[["top", "right", "bottom"]].set_visible(False)

"""The picture of a profile: where time and bytes go, and what each technique can give."""

from collections.abc import Mapping, Sequence

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from hf_efficient.picture import AFTER_COLOUR, MUTED_COLOUR, TEXT_COLOUR

COLOURS = ("#E69F00", "#0072B2", "#56B4E9", "#009E73", "#A6AEB8")  # Okabe and Ito: told apart by the colour-blind too


def profile_figure(
    title: str, shares: Mapping[str, Mapping[str, float]], speedups: Sequence[tuple[str, float]], unit: str
) -> Figure:
    """Shares of each bar's parts on the left, speed-ups of techniques on the right.

    Args:
        shares: bar -> part -> share of 1.
        speedups: technique and its ratio, the first on top.
        unit: what the ratios are.
    """
    figure = Figure(figsize=(11.0, max(3.6, 1.4 + 0.34 * len(speedups))), facecolor="white")
    figure.set_layout_engine("constrained", w_pad=0.12, h_pad=0.08)
    FigureCanvasAgg(figure)
    figure.suptitle(title, x=0.012, ha="left", fontsize=14, fontweight="bold", color=TEXT_COLOUR, parse_math=False)
    left, right = figure.subplots(1, 2)
    start = dict.fromkeys(shares, 0.0)
    for part, colour in zip(next(iter(shares.values())), COLOURS, strict=True):
        widths = [100 * bar[part] for bar in shares.values()]
        bars = left.barh(list(shares), widths, left=list(start.values()), color=colour, label=part, height=0.6)
        texts = [f"{width:.0f}" if width >= 5 else "" for width in widths]
        left.bar_label(bars, labels=texts, label_type="center", fontsize=9, color=TEXT_COLOUR)
        start = {name: start[name] + width for name, width in zip(shares, widths, strict=True)}
    left.invert_yaxis()
    left.set_title("Share of time and bytes, %", fontsize=11, color=MUTED_COLOUR)
    left.legend(ncols=3, fontsize=9, frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.06))
    names = [name for name, _ in speedups]
    bars = right.barh(names, [ratio for _, ratio in speedups], color=AFTER_COLOUR, height=0.6)
    right.bar_label(bars, labels=[f"{ratio:.1f}x" for _, ratio in speedups], padding=3, fontsize=9)
    right.invert_yaxis()
    right.margins(x=0.15)
    right.set_title(unit, fontsize=11, color=MUTED_COLOUR)
    for axes in (left, right):
        axes.set_xticks([])
        axes.tick_params(axis="y", length=0, labelsize=10, labelcolor=TEXT_COLOUR)
        axes.spines[["top", "right", "bottom"]].set_visible(False)
    return figure

"""The picture of a profile: where time and bytes go, and what each technique can give."""

from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure

from hf_efficient.picture import AFTER_COLOUR, MUTED_COLOUR, blank, lying, stacked


def profile_figure(
    title: str, shares: Mapping[str, Mapping[str, float]], speedups: Sequence[tuple[str, float]], unit: str
) -> Figure:
    """Shares of each bar's parts on the left, speed-ups of techniques on the right.

    Args:
        shares: bar -> part -> share of 1.
        speedups: technique and its ratio, the first on top.
        unit: what the ratios are.
    """
    figure = blank(11.0, max(3.6, 1.4 + 0.34 * len(speedups)), title)
    left, right = figure.subplots(1, 2)
    stacked(left, shares, "Share of time and bytes, %")
    names = [name for name, _ in speedups]
    bars = right.barh(names, [ratio for _, ratio in speedups], color=AFTER_COLOUR, height=0.6)
    right.bar_label(bars, labels=[f"{ratio:.1f}x" for _, ratio in speedups], padding=3, fontsize=9)
    right.margins(x=0.15)
    right.set_title(unit, fontsize=11, color=MUTED_COLOUR)
    lying(right)
    return figure

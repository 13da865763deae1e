"""Pictures of a profile: where time and bytes go, what each technique can give, and what more devices can."""

from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure

from hf_efficient.picture import AFTER_COLOUR, BEFORE_COLOUR, EXPORTED_COLOUR, MUTED_COLOUR, blank, lying, stacked
from hf_efficient.profiling.scaling import Scaling
from hf_efficient.profiling.steps import DDP, FSDP


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


def scaling_figure(scaling: Scaling) -> Figure:
    """Examples a second over those of one device, by number of devices."""
    figure = blank(7.0, 4.4, "A training on more devices")
    axes = figure.subplots()
    devices = list(scaling.steps)
    axes.plot(devices, devices, color=BEFORE_COLOUR, linestyle="--", label="ideal")
    for way, colour, marker in ((DDP, AFTER_COLOUR, "o"), (FSDP, EXPORTED_COLOUR, "s")):
        times = [each * scaling.efficiency(way, each) for each in devices]
        axes.plot(devices, times, color=colour, marker=marker, markersize=4, label=way.upper())
    axes.set_xscale("log", base=2)
    axes.set_yscale("log", base=2)
    axes.set_xlabel("devices", color=MUTED_COLOUR)
    axes.set_ylabel("times the examples a second of one", color=MUTED_COLOUR)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter("{x:g}")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    return figure

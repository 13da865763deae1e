"""Rewards of a training as a picture."""

import io

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

CURVES = {"reward": "training", "eval_reward": "validation"}
"""Key in a Trainer's log -> what it is."""


def rewards_png(history: dict[str, list[dict[str, float]]]) -> bytes:
    """A PNG file: mean rewards by step, the stages one after the other.

    Args:
        history: name of each stage -> what its Trainer logged.
    """
    figure = Figure(figsize=(7, 4), facecolor="white")
    figure.set_layout_engine("constrained")
    FigureCanvasAgg(figure)
    axes, begin = figure.subplots(), 0.0
    for name, logs in history.items():
        if begin:
            axes.axvline(begin, color="grey", linewidth=0.8)
        for index, (key, label) in enumerate(CURVES.items()):
            points = [(begin + one["step"], one[key]) for one in logs if one.get(key) is not None]
            axes.plot(*zip(*points, strict=True), color=f"C{index}", marker=".", label=label) if points else None
        axes.text(begin, 1.02, f" {name}", transform=axes.get_xaxis_transform(), fontsize=9, parse_math=False)
        begin += max((one["step"] for one in logs), default=0)
    axes.set_xlabel("step")
    axes.set_ylabel("mean reward")
    named = dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
    if named:
        axes.legend(named.values(), named.keys())
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=110)
    return file.getvalue()

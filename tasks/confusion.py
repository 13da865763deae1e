"""A confusion matrix as a picture."""

import io
from collections.abc import Sequence

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from sklearn.metrics import confusion_matrix

MOST = 25
"""Classes shown at most: of more, those that are mistaken most often."""


def confusion_png(truth: np.ndarray, said: np.ndarray, names: Sequence[str]) -> bytes:
    """A PNG file. Rows: the class given; columns: the class predicted; colours: shares of a row; numbers: examples.

    Args:
        truth, said: indices of classes, shape (examples,).
        names: of all classes.
    """
    file = io.BytesIO()
    _figure(truth, said, names).savefig(file, format="png", dpi=110)
    return file.getvalue()


def _figure(truth: np.ndarray, said: np.ndarray, names: Sequence[str]) -> Figure:
    counts = confusion_matrix(truth, said, labels=range(len(names)))
    shown = _most_mistaken(counts)
    counts, labels = counts[np.ix_(shown, shown)], [names[index] for index in shown]
    shares = counts / np.maximum(np.bincount(truth, minlength=len(names))[shown][:, None], 1)
    side = max(4.0, 0.42 * len(labels) + 2.2)
    figure = Figure(figsize=(side + 0.6, side), facecolor="white")
    figure.set_layout_engine("constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    ticks = range(len(labels))
    axes.set_xticks(ticks, labels, rotation=90, parse_math=False)
    axes.set_yticks(ticks, labels, parse_math=False)
    axes.set_xlabel("predicted")
    axes.set_ylabel("given")
    for row, column in zip(*np.nonzero(counts), strict=True):
        colour = "white" if shares[row, column] > 0.5 else "black"
        axes.text(column, row, str(counts[row, column]), ha="center", va="center", fontsize=7, color=colour)
    figure.colorbar(image, ax=axes, label="share of the class given")
    few = "" if len(labels) == len(names) else f": the {len(labels)} of {len(names)} classes that are mistaken most"
    axes.set_title(f"Confusion matrix{few}", loc="left", fontsize=11)
    return figure


def _most_mistaken(counts: np.ndarray) -> list[int]:
    """Indices, in their order, of at most `MOST` classes: mistaken for others, or others for them."""
    wrong = counts.sum(0) + counts.sum(1) - 2 * np.diag(counts)
    return sorted(np.argsort(-wrong, kind="stable")[:MOST].tolist())

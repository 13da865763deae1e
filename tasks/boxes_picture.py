"""Boxes on images as a picture."""

import io
import math
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL import Image

ACROSS = 4
"""Images in a row."""


def boxes_png(
    images: Sequence[Image.Image], said: Sequence[np.ndarray], given: Sequence[np.ndarray], names: Sequence[str]
) -> bytes:
    """A PNG file: each image twice, with the boxes given, and below with those predicted and their scores.

    Args:
        said: for each image (boxes, 6): score, class, left, top, right, bottom in pixels.
        given: for each image (objects, 5): the same without score.
        names: of all classes.
    """
    across = min(ACROSS, len(images))
    down = 2 * math.ceil(len(images) / across)
    figure = Figure(figsize=(2.6 * across, 2.6 * down), facecolor="white")
    figure.set_layout_engine("constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(down, across, squeeze=False)
    for axes in grid.flat:
        axes.axis("off")
    for index, image in enumerate(images):
        row, column = 2 * (index // across), index % across
        _draw(grid[row, column], image, f"{index + 1}: given", given[index], names)
        _draw(grid[row + 1, column], image, f"{index + 1}: predicted", said[index], names)
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=110)
    return file.getvalue()


def _draw(axes: Axes, image: Image.Image, title: str, rows: np.ndarray, names: Sequence[str]) -> None:
    axes.imshow(image, cmap="gray" if image.mode == "L" else None)
    axes.set_title(title, fontsize=8)
    for *score, number, left, top, right, bottom in rows.tolist():
        colour = f"C{int(number) % 10}"
        box = Rectangle((left - 0.5, top - 0.5), right - left, bottom - top, fill=False, edgecolor=colour)
        axes.add_patch(box)
        told = " ".join([names[int(number)], *(f"{one:.2f}" for one in score)])
        style = {"facecolor": "white", "alpha": 0.7, "edgecolor": "none", "pad": 0.5}
        axes.text(left, top - 1, told, fontsize=6, color=colour, bbox=style, parse_math=False)

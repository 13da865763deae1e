"""Draws the sample: `python make.py` in this folder writes the three files anew, the same each time."""

import io
import math

import numpy as np
from datasets import ClassLabel, Dataset, Features, Image
from PIL import Image as Pictures
from PIL import ImageDraw

CLASSES = ("circle", "cross", "square", "star", "triangle")
SPLITS = {"train": 120, "validation": 20, "test": 30}
"""Rows of each class."""
SIZE, FINE = 48, 4  # pixels of a side; drawn so many times larger


def corners(kind: str) -> list[tuple[float, float]]:
    """Of a figure in the unit circle."""
    if kind == "cross":
        arm = 0.32
        quarter = [(arm, arm), (arm, 0.95), (-arm, 0.95)]
        return [turned(x, y, 90 * turn) for turn in range(4) for x, y in quarter]
    points, inner = {"square": (4, 1.0), "triangle": (3, 1.0), "star": (10, 0.45), "circle": (60, 1.0)}[kind]
    return [turned(0, 1 if index % 2 == 0 else inner, 360 * index / points) for index in range(points)]


def turned(x: float, y: float, degrees: float) -> tuple[float, float]:
    angle = math.radians(degrees)
    return x * math.cos(angle) - y * math.sin(angle), x * math.sin(angle) + y * math.cos(angle)


def drawn(kind: str, chance: np.random.Generator) -> bytes:
    """A dark figure on light paper, of any size and place, turned a little: a PNG file."""
    side = SIZE * FINE
    paper = tuple(int(value) for value in chance.integers(190, 256, 3))
    ink = tuple(int(value) for value in chance.integers(0, 100, 3))
    picture = Pictures.new("RGB", (side, side), paper)
    radius = chance.uniform(0.26, 0.4) * side
    across, down = chance.uniform(radius, side - radius, 2)
    turn = chance.uniform(-15, 15)
    found = [turned(radius * x, radius * y, turn) for x, y in corners(kind)]
    ImageDraw.Draw(picture).polygon([(across + x, down + y) for x, y in found], fill=ink)
    file = io.BytesIO()
    picture.resize((SIZE, SIZE), Pictures.Resampling.BOX).save(file, format="PNG", optimize=True)
    return file.getvalue()


if __name__ == "__main__":
    chance = np.random.default_rng(0)
    features = Features({"image": Image(), "label": ClassLabel(names=list(CLASSES))})
    for split, count in SPLITS.items():
        labels = chance.permutation(np.repeat(np.arange(len(CLASSES)), count)).tolist()
        images = [{"bytes": drawn(CLASSES[label], chance), "path": None} for label in labels]
        Dataset.from_dict({"image": images, "label": labels}, features=features).to_parquet(f"{split}.parquet")

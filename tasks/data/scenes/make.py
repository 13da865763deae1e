"""Draws the sample: `python make.py` in this folder writes the three files anew, the same each time."""

import io
import math

import numpy as np
from datasets import ClassLabel, Dataset, Features, Image, List, Value
from PIL import Image as Pictures
from PIL import ImageDraw

CLASSES = ("circle", "square", "triangle")
SPLITS = {"train": 800, "validation": 100, "test": 150}
SIZE, FINE = 64, 4  # pixels of a side; drawn so many times larger
MOST = 4  # figures in a picture; some have none

Corners = list[tuple[float, float]]


def corners(kind: str, chance: np.random.Generator) -> Corners:
    """Of a figure of any size and place, turned a little, within the picture."""
    points = {"circle": 40, "square": 4, "triangle": 3}[kind]
    radius = chance.uniform(7, 14)
    across, down = chance.uniform(radius + 1, SIZE - radius - 1, 2)
    turn = math.radians(chance.uniform(-15, 15) + (45 if kind == "square" else -90))
    angles = [turn + 2 * math.pi * index / points for index in range(points)]
    return [(across + radius * math.cos(angle), down + radius * math.sin(angle)) for angle in angles]


def box(found: Corners) -> list[float]:
    """Left, top, width and height."""
    left, top = (min(corner[axis] for corner in found) for axis in (0, 1))
    right, bottom = (max(corner[axis] for corner in found) for axis in (0, 1))
    return [round(value, 1) for value in (left, top, right - left, bottom - top)]


def apart(one: list[float], other: list[float]) -> bool:
    return any(a[axis] + a[axis + 2] < b[axis] for a, b in ((one, other), (other, one)) for axis in (0, 1))


def drawn(chance: np.random.Generator) -> dict[str, object]:
    """Dark figures on light paper that do not touch each other: a PNG file, and what is where."""
    side = SIZE * FINE
    picture = Pictures.new("RGB", (side, side), tuple(int(value) for value in chance.integers(190, 256, 3)))
    boxes: list[list[float]] = []
    classes: list[int] = []
    for _ in range(int(chance.integers(0, MOST + 1))):
        number = int(chance.integers(len(CLASSES)))
        found = corners(CLASSES[number], chance)
        if all(apart(box(found), other) for other in boxes):
            ink = tuple(int(value) for value in chance.integers(0, 120, 3))
            ImageDraw.Draw(picture).polygon([(FINE * x, FINE * y) for x, y in found], fill=ink)
            boxes.append(box(found))
            classes.append(number)
    file = io.BytesIO()
    small = picture.resize((SIZE, SIZE), Pictures.Resampling.BOX)
    small.convert("P", palette=Pictures.Palette.ADAPTIVE, colors=16).save(file, format="PNG", optimize=True)
    return {"image": {"bytes": file.getvalue(), "path": None}, "objects": {"bbox": boxes, "category": classes}}


if __name__ == "__main__":
    chance = np.random.default_rng(0)
    objects = {"bbox": List(List(Value("float32"))), "category": List(ClassLabel(names=list(CLASSES)))}
    features = Features({"image": Image(), "objects": objects})
    for split, count in SPLITS.items():
        Dataset.from_list([drawn(chance) for _ in range(count)], features=features).to_parquet(f"{split}.parquet")

"""Draws the sample: `python make.py` in this folder writes the three files anew, the same each time."""

import io
import math

import numpy as np
from datasets import ClassLabel, Dataset, Features, Image, List, Value
from PIL import Image as Pictures
from PIL import ImageDraw

CLASSES = ("circle", "square", "triangle")
SPLITS = {"train": 1600, "validation": 120, "test": 200}
SIZE = 64  # pixels of a side
MOST, TRIES = 3, 7  # figures in a picture, and tries at placing one; some pictures have none

Box = tuple[int, int, int, int]


def figure(kind: str, chance: np.random.Generator) -> Pictures.Image:
    """What a figure of any size and place, turned a little, covers of a picture."""
    points = {"circle": 40, "square": 4, "triangle": 3}[kind]
    radius = chance.uniform(8, 16)
    across, down = chance.uniform(radius + 1, SIZE - radius - 1, 2)
    turn = math.radians(chance.uniform(-15, 15) + (45 if kind == "square" else -90))
    angles = [turn + 2 * math.pi * index / points for index in range(points)]
    made = Pictures.new("1", (SIZE, SIZE))
    corners = [(across + radius * math.cos(angle), down + radius * math.sin(angle)) for angle in angles]
    ImageDraw.Draw(made).polygon(corners, fill=1)
    return made


def apart(one: Box, other: Box) -> bool:
    return any(a[axis + 2] < b[axis] for axis in (0, 1) for a, b in ((one, other), (other, one)))


def drawn(chance: np.random.Generator) -> dict[str, object]:
    """Dark figures on light paper that do not touch each other: a PNG file, and what is where."""
    palette = [chance.integers(190, 256, 3)]
    picture = Pictures.new("P", (SIZE, SIZE))
    boxes: list[Box] = []
    classes: list[int] = []
    for _ in range(int(chance.integers(TRIES + 1))):
        number = int(chance.integers(len(CLASSES)))
        mask = figure(CLASSES[number], chance)
        box = mask.getbbox()
        if len(boxes) < MOST and all(apart(box, other) for other in boxes):
            palette.append(chance.integers(0, 120, 3))
            picture.paste(len(boxes) + 1, mask=mask)
            boxes.append(box)
            classes.append(number)
    picture.putpalette([int(value) for colour in palette for value in colour])
    file = io.BytesIO()
    picture.save(file, format="PNG", optimize=True)
    given = [[left, top, right - left, bottom - top] for left, top, right, bottom in boxes]
    return {"image": {"bytes": file.getvalue(), "path": None}, "objects": {"bbox": given, "category": classes}}


if __name__ == "__main__":
    chance = np.random.default_rng(0)
    objects = {"bbox": List(List(Value("float32"))), "category": List(ClassLabel(names=list(CLASSES)))}
    features = Features({"image": Image(), "objects": objects})
    for split, count in SPLITS.items():
        Dataset.from_list([drawn(chance) for _ in range(count)], features=features).to_parquet(f"{split}.parquet")

"""Boxes around objects: read as data sets have them, and judged as COCO does."""

import contextlib
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from hf_efficient.errors import DataError, unknown

BoxFormat = Literal["coco", "voc"]
FORMATS: dict[BoxFormat, str] = {"coco": "[left, top, width, height]", "voc": "[left, top, right, bottom]"}
"""What the four numbers of a box are, in pixels."""

SLACK = 1.0
"""Pixels by which a box may reach beyond its image, as rounding makes some do; it is cut to the image."""

MOST = 100
"""Boxes of an image that are judged, the most certain ones (COCO's own limit)."""


@dataclass(frozen=True)
class ObjectReader:
    """Reads the objects of a row: lists of boxes and of classes, or a list of pairs of them.

    Attributes:
        bbox, category: what boxes and classes are called there.
        format: of the boxes.
        declared: names of the classes where their numbers stand for them; else empty.
    """

    bbox: str
    category: str
    format: BoxFormat
    declared: tuple[str, ...]

    def names(self, value: Any, row: int) -> list[str]:
        """The class of each object.

        Args:
            row: its number, from 0.

        Raises:
            DataError: as many classes as boxes are not there, or one is not declared.
        """
        boxes, given = self._field(value, self.bbox), self._field(value, self.category)
        if len(boxes) != len(given):
            raise DataError(
                f"row {row + 1}: {len(boxes)} boxes ('{self.bbox}') and {len(given)} classes ('{self.category}'); "
                "give one class for each box"
            )
        return [self._name(one, f"row {row + 1}: object {number}") for number, one in enumerate(given, 1)]

    def corners(self, value: Any, row: int, width: int, height: int) -> np.ndarray:
        """Left, top, right and bottom of each object in pixels: float64, (objects, 4).

        Args:
            row: its number, from 0.
            width, height: of the image.

        Raises:
            DataError: what is no box, or an empty one, or lies outside the image.
        """
        made = np.zeros((len(self._field(value, self.bbox)), 4))
        for number, given in enumerate(self._field(value, self.bbox), 1):
            where = f"row {row + 1}: object {number}"
            remedy = (
                f"boxes are {FORMATS[self.format]} in pixels (data.bbox_format={self.format}); correct or delete it"
            )
            try:
                box = np.asarray(given, dtype=np.float64)
            except (TypeError, ValueError):
                box = np.zeros(0)
            if box.shape != (4,) or not np.isfinite(box).all():
                raise DataError(f"{where} has no box of four numbers, but {given}; {remedy}")
            if self.format == "coco":
                box[2:] += box[:2]
            if not (box[2:] > box[:2]).all():
                raise DataError(f"{where} has an empty or inverted box, {_shown(given)}; {remedy}")
            limits = np.array([width, height, width, height])
            is_near = (box >= -SLACK).all() and (box <= limits + SLACK).all()
            if not (is_near and (box[:2] < limits[:2]).all() and (box[2:] > 0).all()):
                raise DataError(
                    f"{where} has a box outside its image of {width}x{height} pixels, {_shown(given)}; {remedy}"
                )
            made[number - 1] = box.clip(0, limits)
        return made

    def _field(self, value: Any, name: str) -> list[Any]:
        return list(value[name] or []) if isinstance(value, Mapping) else [one[name] for one in value]

    def _name(self, given: Any, where: str) -> str:
        if given is None or given == "":
            raise DataError(f"{where} has no class; give it one or delete it")
        if not self.declared:
            return str(given)
        if not 0 <= int(given) < len(self.declared):
            raise DataError(f"{where} is of {unknown('class', str(given), map(str, range(len(self.declared))))}")
        return self.declared[int(given)]


def average_precisions(said: Sequence[np.ndarray], given: Sequence[np.ndarray], classes: int) -> np.ndarray:
    """Average precision of each class at an IoU of .50, .55, ..., .95: (10, classes); NaN where no object has it.

    By pycocotools, as COCO judges: area below the interpolated curve at 101 recalls, objects of all sizes.

    Args:
        said: for each image (boxes, 6): score, class, left, top, right, bottom.
        given: for each image (objects, 5): the same without score.
    """
    with contextlib.redirect_stdout(io.StringIO()):
        judged = COCOeval(_coco(given, classes), _coco(said, classes, is_scored=True), "bbox")
        judged.params.maxDets = [MOST]
        judged.params.areaRng, judged.params.areaRngLbl = [[0, 1e10]], ["all"]
        judged.evaluate()
        judged.accumulate()
    found = judged.eval["precision"][:, :, :, 0, 0].mean(axis=1)
    return np.where(found < 0, np.nan, found)


def _coco(images: Sequence[np.ndarray], classes: int, is_scored: bool = False) -> COCO:
    made, annotations = COCO(), []
    for image, rows in enumerate(images):
        for row in rows.tolist():
            left, top, right, bottom = row[-4:]
            values = {"bbox": [left, top, right - left, bottom - top], "area": (right - left) * (bottom - top)}
            values |= {"id": len(annotations) + 1, "image_id": image, "category_id": int(row[-5]), "iscrowd": 0}
            annotations.append({**values, "score": row[0]} if is_scored else values)
    made.dataset = {
        "images": [{"id": image} for image in range(len(images))],
        "categories": [{"id": index} for index in range(classes)],
        "annotations": annotations,
    }
    made.createIndex()
    return made


def _shown(box: Sequence[float]) -> str:
    return f"[{', '.join(f'{value:g}' for value in box)}]"

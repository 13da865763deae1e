"""Average precision against cases computed by hand, and boxes as data sets have them."""

from typing import Any

import numpy as np
import pytest

from hf_efficient.errors import DataError
from hf_efficient.tasks.boxes import ObjectReader, average_precisions

FIRST, SECOND = [0, 0, 100, 100], [200, 200, 260, 240]
NONE = np.zeros((0, 6))


def given(*boxes: list[float], number: int = 0) -> np.ndarray:
    return np.array([[number, *box] for box in boxes], dtype=float).reshape(-1, 5)


def said(*boxes: tuple[float, list[float]], number: int = 0) -> np.ndarray:
    return np.array([[score, number, *box] for score, box in boxes], dtype=float).reshape(-1, 6)


def test_all_right() -> None:
    found = average_precisions([said((0.9, FIRST), (0.2, SECOND)), NONE], [given(FIRST, SECOND), given()], 1)
    assert found.shape == (10, 1)
    assert found == pytest.approx(1)


def test_half_of_the_objects() -> None:
    """Precision is 1 up to a recall of a half, which are 51 of 101 recalls, and 0 beyond."""
    assert average_precisions([said((0.9, FIRST))], [given(FIRST, SECOND)], 1) == pytest.approx(51 / 101)


def test_a_box_is_right_up_to_its_overlap() -> None:
    """62 of 100 columns: an IoU of 0.62."""
    found = average_precisions([said((0.9, [0, 0, 62, 100]))], [given(FIRST)], 1)[:, 0]
    assert found == pytest.approx([1, 1, 1, 0, 0, 0, 0, 0, 0, 0])


def test_what_is_wrong_with_a_higher_score_costs() -> None:
    """Once the object is found, one of two boxes is right."""
    boxes = said((0.9, SECOND), (0.8, FIRST))
    assert average_precisions([boxes], [given(FIRST)], 1) == pytest.approx(0.5)
    assert average_precisions([boxes[::-1]], [given(FIRST)], 1) == pytest.approx(0.5)
    assert average_precisions([said((0.7, SECOND), (0.8, FIRST))], [given(FIRST)], 1) == pytest.approx(1)


def test_an_object_is_found_once() -> None:
    """The second box for it is wrong, and precision at a recall of 1 is 2 of 3."""
    boxes = said((0.9, FIRST), (0.8, FIRST), (0.7, SECOND))
    expected = (51 * 1 + 50 * 2 / 3) / 101
    assert average_precisions([boxes], [given(FIRST, SECOND)], 1) == pytest.approx(expected)


def test_classes_are_counted_apart() -> None:
    """A box of the wrong class finds nothing; a class that no object has does not count."""
    found = average_precisions([said((0.9, FIRST), number=1)], [given(FIRST)], 3)
    assert found[:, 0] == pytest.approx(0)
    assert np.isnan(found[:, 1:]).all()


def test_nothing_said() -> None:
    assert average_precisions([NONE], [given(FIRST)], 1) == pytest.approx(0)


def reader(format: Any = "coco", declared: tuple[str, ...] = ()) -> ObjectReader:
    return ObjectReader("bbox", "category", format, declared)


def test_both_formats_and_both_structures() -> None:
    expected = [[10, 20, 40, 60], [0, 0, 5, 5]]
    coco, voc = [[10, 20, 30, 40], [0, 0, 5, 5]], expected
    for format, boxes in (("coco", coco), ("voc", voc)):
        lists = {"bbox": boxes, "category": ["a", "b"]}
        pairs = [{"bbox": box, "category": name} for box, name in zip(boxes, "ab", strict=True)]
        for value in (lists, pairs):
            assert reader(format).corners(value, 0, 100, 80).tolist() == expected
            assert reader(format).names(value, 0) == ["a", "b"]
    assert reader().corners([], 0, 9, 9).shape == (0, 4)


def test_rounding_at_the_edge_is_cut() -> None:
    value = {"bbox": [[-0.5, 0, 20.9, 10]], "category": ["a"]}
    assert reader().corners(value, 0, 20, 10).tolist() == [[0, 0, 20, 10]]


@pytest.mark.parametrize(
    ("format", "box", "message"),
    [
        ("coco", [50, 10, 60, 10], r"row 3: object 2 has a box outside its image of 100x80 pixels, \[50, 10, 60, 10\]"),
        ("coco", [-5, 10, 10, 10], "outside its image"),
        ("coco", [-0.9, 10, 0.8, 10], "outside its image"),
        ("coco", [100, 10, 0.5, 10], "outside its image"),
        ("coco", [10, 10, 0, 10], r"empty or inverted box, \[10, 10, 0, 10\]; boxes are \[left, top, width, h"),
        ("coco", [10, 10, 5, -1], "empty or inverted"),
        ("voc", [50, 10, 40, 20], r"empty or inverted box, .*are \[left, top, right, bottom\] in"),
        ("coco", [10, 10, 5], r"no box of four numbers, but \[10, 10, 5\]"),
        ("coco", [10, 10, float("nan"), 5], "no box of four numbers"),
        ("coco", "box", "no box of four numbers, but box"),
        ("coco", None, "no box of four numbers, but None"),
    ],
)
def test_bad_box(format: str, box: Any, message: str) -> None:
    value = {"bbox": [[0, 0, 5, 5], box], "category": ["a", "a"]}
    with pytest.raises(DataError, match=f"{message}.*correct or delete it"):
        reader(format).corners(value, 2, 100, 80)


@pytest.mark.parametrize(
    ("declared", "names", "message"),
    [
        ((), ["a"], r"row 3: 2 boxes \('bbox'\) and 1 classes \('category'\); give one class for each box"),
        ((), ["a", None], "row 3: object 2 has no class; give it one or delete it"),
        (("a", "b"), [0, 2], "row 3: object 2 is of unknown class '2'. Allowed: 0, 1"),
    ],
)
def test_bad_class(declared: tuple[str, ...], names: list[Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        reader(declared=declared).names({"bbox": [[0, 0, 5, 5]] * 2, "category": names}, 2)

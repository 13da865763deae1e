"""Calibration error against values worked out by hand."""

import numpy as np
import pytest

from hf_efficient.functional.confidence import calibration_error, probabilities


def logits(*shares: float) -> np.ndarray:
    """Of two classes, the first with these probabilities."""
    first = np.array(shares)
    return np.log(np.stack([first, 1 - first], axis=-1))


def test_probabilities_do_not_overflow() -> None:
    found = probabilities(np.array([[1000.0, 0.0], [0.0, 0.0]]))
    assert found.tolist() == [[1.0, 0.0], [0.5, 0.5]]


def test_perfect_confidence() -> None:
    said = logits(*[0.75] * 8)
    assert calibration_error(said, np.array([0] * 6 + [1] * 2)) == pytest.approx(0)


def test_overconfidence_is_the_gap() -> None:
    assert calibration_error(logits(*[0.9] * 10), np.array([0] * 5 + [1] * 5)) == pytest.approx(0.4)


def test_bins_do_not_cancel_out() -> None:
    said = logits(0.95, 0.95, 0.65, 0.65)
    labels = np.array([0, 1, 0, 0])  # 0.45 too sure in one bin, 0.35 too unsure in another
    assert calibration_error(said, labels) == pytest.approx(0.4)

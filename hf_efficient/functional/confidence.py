"""How far a classifier's confidence can be believed."""

import numpy as np

BINS = 15


def probabilities(logits: np.ndarray) -> np.ndarray:
    """Softmax over the last axis."""
    shifted = np.exp(logits - logits.max(-1, keepdims=True))
    return shifted / shifted.sum(-1, keepdims=True)


def calibration_error(logits: np.ndarray, labels: np.ndarray) -> float:
    """Expected calibration error: mean gap between confidence and accuracy over `BINS` equal bins of confidence.

    Guo et al. 2017 (arXiv 1706.04599). 0 is perfect; 1 the worst.

    Args:
        logits: shape (examples, classes).
        labels: class indices, shape (examples,).
    """
    shares = probabilities(np.asarray(logits, dtype=np.float64))
    confidence, right = shares.max(-1), shares.argmax(-1) == labels
    bins = np.minimum((confidence * BINS).astype(int), BINS - 1)
    gaps = np.bincount(bins, weights=confidence - right, minlength=BINS)
    return float(np.abs(gaps).sum() / len(labels))

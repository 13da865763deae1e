"""How sure a classifier is, and whether a message is one of those it knows."""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import logsumexp

from hf_efficient.functional.confidence import probabilities

NEIGHBOURS = 3
"""Known messages whose mean similarity tells how near a message is to them."""

Array = np.ndarray


def temperature(logits: Array, labels: Array) -> float:
    """What logits are divided by so that the mean negative log-likelihood is least.

    Temperature scaling (Guo et al. 2017, arXiv 1706.04599): the order of classes stays, their probabilities become
    believable.

    Args:
        logits: of data that the model was not trained on, shape (examples, classes).
        labels: class indices, shape (examples,).
    """

    def loss(log_scale: float) -> float:
        scaled = logits / np.exp(log_scale)
        return float(np.mean(logsumexp(scaled, axis=-1) - scaled[np.arange(len(labels)), labels]))

    return float(np.exp(minimize_scalar(loss, bounds=(-3, 3), method="bounded").x))


def energy(logits: Array) -> Array:
    """Log-sum-exp of each row: high for what a classifier knows. Liu et al. 2020 (arXiv 2010.03759)."""
    return logsumexp(logits, axis=-1)


def nearness(vectors: Array, known: Array) -> Array:
    """Mean cosine of each of ``vectors`` (messages, width) with the `NEIGHBOURS` nearest of ``known``; (messages,)."""
    similar = vectors @ known.T
    count = min(NEIGHBOURS, similar.shape[1])
    return np.partition(similar, similar.shape[1] - count, axis=1)[:, -count:].mean(axis=1)


@dataclass(frozen=True)
class Scope:
    """What was learnt from validation data.

    A message whose `energy` is above ``sure`` is one that the classifier knows; of any other it is asked how near
    its vector is to those of known messages. So most need no vector.

    Attributes:
        temperature: of the probabilities.
        sure: energy above which no vector is needed.
        near: `nearness` from which on the others are known.
        margin: by how much more similar than `nearness` a passage must be for a message to be about that.
    """

    temperature: float
    sure: float
    near: float
    margin: float = 0.0

    @classmethod
    def fit(
        cls,
        logits: Array,
        labels: Array,
        near: Array,
        *,
        strange: tuple[Array, Array] | None = None,
        pages: tuple[Array, Array] | None = None,
        keep: float = 0.95,
    ) -> "Scope":
        """From messages of validation, and whatever is known of others.

        Args:
            logits, labels, near: of known messages: shape (messages, classes), (messages,), and their `nearness`.
            strange: logits and `nearness` of messages that are none of the classifier's.
            pages: logits of what a knowledge base is about, and the cosine of each known message and the passage
                nearest to it.
            keep: share of the known messages that must be taken for such; where strange ones are given, the bound at
                which most of both are taken for what they are decides instead.
        """
        others = [given[0] for given in (strange, pages) if given is not None]
        sure = max(
            float(np.median(energy(logits))), *(float(np.quantile(energy(other), keep)) for other in others), -np.inf
        )
        return cls(
            temperature=temperature(logits, labels),
            sure=sure,
            near=float(np.quantile(near, 1 - keep)) if strange is None else best_bound(near, strange[1]),
            margin=0.0 if pages is None else float(np.quantile(pages[1] - near, keep)),
        )

    def confidence(self, logits: Array) -> Array:
        """Calibrated probabilities; shape as of ``logits``."""
        return probabilities(logits / self.temperature)

    def is_sure(self, logits: Array) -> Array:
        """Which messages are known without a look at their vectors; shape (messages,)."""
        return energy(logits) > self.sure

    def plain(self) -> dict[str, Any]:
        return asdict(self)


def best_bound(inside: Array, outside: Array) -> float:
    """Where the share of ``inside`` at or above it and that of ``outside`` below it are greatest together."""
    bounds = np.unique(np.concatenate([inside, outside]))
    right = [(inside >= bound).mean() + (outside < bound).mean() for bound in bounds]
    return float(bounds[int(np.argmax(right))])

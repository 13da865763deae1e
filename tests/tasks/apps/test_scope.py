"""Confidence that can be believed, and what is known, on made-up logits."""

import numpy as np
import pytest

from hf_efficient.functional.confidence import calibration_error
from hf_efficient.tasks.apps.scope import Scope, best_bound, energy, nearness, temperature


def overconfident(seed: int = 0, count: int = 2000, scale: float = 3.0) -> tuple[np.ndarray, np.ndarray]:
    """Logits of a classifier that is `scale` times as sure as it should be, and true labels."""
    rng = np.random.default_rng(seed)
    honest = rng.normal(size=(count, 5)) * 2
    shares = np.exp(honest) / np.exp(honest).sum(-1, keepdims=True)
    labels = np.array([rng.choice(5, p=row) for row in shares])
    return honest * scale, labels


def test_temperature_undoes_overconfidence() -> None:
    logits, labels = overconfident()
    found = temperature(logits, labels)
    assert found == pytest.approx(3, rel=0.1)
    assert calibration_error(logits / found, labels) < 0.05 < calibration_error(logits, labels)


def test_energy_and_nearness() -> None:
    assert energy(np.array([[0.0, 0.0], [3.0, 0.0]])) == pytest.approx([np.log(2), np.log(np.e**3 + 1)])
    known = np.eye(4, dtype=np.float32)
    assert nearness(known[:1], known) == pytest.approx([1 / 3])  # itself, and two that are square to it
    assert nearness(known[:1], known[:2]) == pytest.approx([0.5])


def test_bound_between_two_kinds() -> None:
    inside, outside = np.array([0.6, 0.7, 0.9]), np.array([0.1, 0.2, 0.65])
    bound = best_bound(inside, outside)
    assert 0.2 < bound <= 0.6 or 0.65 < bound <= 0.7


def test_fit_keeps_the_share_that_is_asked_for() -> None:
    logits, labels = overconfident()
    near = np.linspace(0, 1, len(labels))
    scope = Scope.fit(logits, labels, near, keep=0.9)
    assert (near >= scope.near).mean() == pytest.approx(0.9, abs=0.01)
    assert scope.is_sure(logits).mean() == pytest.approx(0.5, abs=0.01)
    assert scope.margin == 0
    pages = np.full((10, 5), 20.0), near + np.linspace(-1, 0, len(near))
    about = Scope.fit(logits, labels, near, pages=pages, keep=0.9)
    assert not about.is_sure(pages[0] - 1).any()
    assert ((np.linspace(-1, 0, len(near)) > about.margin).mean()) == pytest.approx(0.1, abs=0.01)


def test_strange_messages_set_the_bounds() -> None:
    logits, labels = overconfident()
    strange = np.zeros((50, 5))
    scope = Scope.fit(logits, labels, np.full(len(labels), 0.8), strange=(strange, np.full(50, 0.3)))
    assert 0.3 < scope.near <= 0.8
    assert not scope.is_sure(strange).any()
    assert Scope(**scope.plain()) == scope
    assert scope.confidence(logits).sum(-1) == pytest.approx(np.ones(len(labels)))

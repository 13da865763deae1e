"""What is found among texts whose likeness is known."""

import itertools

import numpy as np
import pytest

from hf_efficient.functional.duplicates import find_duplicates


def texts(*rows: tuple[list[int], int]) -> list[tuple[bytes, int, list[int]]]:
    return [(np.array(tokens).tobytes(), label, tokens) for tokens, label in rows]


LONG = list(range(100, 160))


def test_exact_and_near_duplicates_with_the_same_label_go() -> None:
    near = [*LONG[:-1], 7]
    rows = texts((LONG, 0), ([1, 2, 3], 0), (LONG, 0), (near, 0), (LONG, 1), ([1, 2, 3], 0), (LONG[:30], 0))
    found = find_duplicates(rows, near=0.9, ngram=3, permutations=128)
    assert found.kept == [0, 1, 4, 6]
    assert (found.exact, found.near, found.conflicting) == (2, 1, 1)


def test_exact_only() -> None:
    found = find_duplicates(texts((LONG, 0), ([*LONG[:-1], 7], 0), (LONG, 0)), near=1.0, ngram=3, permutations=128)
    assert found.kept == [0, 1]
    assert (found.exact, found.near) == (1, 0)


def test_inputs_that_are_no_texts() -> None:
    images = [(bytes([value]) * 12, 0, None) for value in (1, 2, 1)]
    assert find_duplicates(images, near=0.9, ngram=3, permutations=128).kept == [0, 1]


@pytest.mark.parametrize("near", [0.5, 0.8])
def test_as_if_all_pairs_were_compared(near: float) -> None:
    """Exact comparison of all pairs finds next to nothing more."""
    generator = np.random.default_rng(0)
    rows: list[list[int]] = []
    for changed in (0, 1, 2, 4) * 20:
        base = generator.integers(0, 50, 60).tolist()
        other = list(base)
        other[:changed] = generator.integers(50, 99, changed).tolist()
        rows += [base, other]
    sets = [frozenset(itertools.pairwise(row)) for row in rows]
    kept: list[int] = []
    for index, one in enumerate(sets):
        if all(len(one & sets[other]) / len(one | sets[other]) < near for other in kept):
            kept.append(index)
    found = find_duplicates(texts(*((row, 0) for row in rows)), near, ngram=2, permutations=128)
    assert len(rows) - len(kept) >= 60
    assert set(kept) <= set(found.kept)
    assert len(found.kept) - len(kept) <= 2

"""Which examples say again what others say."""

from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

SEED = 1
"""Of MinHash's permutations: the same duplicates are found each time."""


@dataclass
class Duplicates:
    """What was found among examples.

    Attributes:
        kept: indices of the examples that stay, ascending: the first of each group.
        exact, near: how many go because their inputs are another's, or nearly.
        conflicting: how many stay though their inputs are another's, or nearly, because their labels are not.
    """

    kept: list[int] = field(default_factory=list)
    exact: int = 0
    near: int = 0
    conflicting: int = 0


def find_duplicates(
    examples: Iterable[tuple[bytes, Hashable, Sequence[int] | None]], near: float, ngram: int, permutations: int
) -> Duplicates:
    """Go through ``examples`` once and keep those that are unlike all before them, or labelled otherwise.

    Args:
        examples: inputs as bytes, labels, and tokens, or None where inputs are no texts.
        near: Jaccard similarity of the sets of ``ngram`` tokens in a row from which on texts are the same; candidates
            come from MinHash (Broder 1997, doi 10.1109/SEQUEN.1997.666900) by datasketch, which overlooks few, and
            are then compared exactly. 1: only exact duplicates are looked for.
        permutations: of MinHash.
    """
    found = Duplicates()
    seen: dict[bytes, set[Hashable]] = {}
    texts = _Texts(near, permutations) if near < 1 else None
    for index, (inputs, labels, tokens) in enumerate(examples):
        known = seen.setdefault(inputs, set())
        if labels in known:
            found.exact += 1
            continue
        conflict = bool(known)
        known.add(labels)
        if texts is not None and tokens is not None:
            shingles = frozenset(_shingles(np.asarray(tokens, dtype=np.int64), ngram))
            similar = {texts.labels[other] for other in texts.like(shingles)}
            if labels in similar:
                found.near += 1
                continue
            conflict = conflict or bool(similar)
            texts.add(index, shingles, labels)
        found.conflicting += conflict
        found.kept.append(index)
    return found


class _Texts:
    """Texts that stay, to be asked for those like another."""

    def __init__(self, near: float, permutations: int):
        from datasketch import MinHashLSH

        self.near, self.permutations = near, permutations
        # Candidates too many are compared and forgotten; one overlooked stays
        self.index = MinHashLSH(threshold=near, num_perm=permutations, weights=(0.05, 0.95))
        self.shingles: dict[int, frozenset[bytes]] = {}
        self.labels: dict[int, Hashable] = {}

    def like(self, shingles: frozenset[bytes]) -> list[int]:
        self._hashed = self._hash(shingles)
        candidates = self.index.query(self._hashed)
        return [other for other in candidates if _jaccard(shingles, self.shingles[other]) >= self.near]

    def add(self, index: int, shingles: frozenset[bytes], labels: Hashable) -> None:
        """The text that `like` was asked about last."""
        self.index.insert(index, self._hashed)
        self.shingles[index], self.labels[index] = shingles, labels

    def _hash(self, shingles: frozenset[bytes]) -> Any:
        from datasketch import MinHash

        hashed = MinHash(num_perm=self.permutations, seed=SEED)
        hashed.update_batch(list(shingles))
        return hashed


def _shingles(tokens: np.ndarray, ngram: int) -> Iterator[bytes]:
    """Each ``ngram`` tokens in a row; a shorter text is one."""
    for start in range(max(1, len(tokens) - ngram + 1)):
        yield tokens[start : start + ngram].tobytes()


def _jaccard(left: frozenset[bytes], right: frozenset[bytes]) -> float:
    return len(left & right) / len(left | right)

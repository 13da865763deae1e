"""Documents that are longer than a model: cut into windows that overlap, and put together again."""

from collections.abc import Sequence

import numpy as np

Words = Sequence[int | None]
"""For each piece of a window the word that it is of; None for special ones and padding."""


def owners(windows: Sequence[Words]) -> dict[int, int]:
    """Each word of a document -> the window that sees most on both sides of it; of equal ones the first."""
    found: dict[int, tuple[int, int]] = {}
    for number, words in enumerate(windows):
        for place in first_pieces(words):
            before = place if number else len(words)  # a document's ends are no edges
            after = len(words) - 1 - place if number < len(windows) - 1 else len(words)
            word, margin = words[place], min(before, after)
            if word not in found or margin > found[word][0]:
                found[word] = (margin, number)  # type: ignore[index]
    return {word: number for word, (_, number) in found.items()}


def first_pieces(words: Words) -> list[int]:
    """Where a word begins, or is first seen."""
    return [place for place, word in enumerate(words) if word is not None and (not place or words[place - 1] != word)]


def documents(rows: Sequence[int]) -> list[list[int]]:
    """Indices of the windows of each document, from the document that each window is of."""
    ends = np.flatnonzero(np.diff(rows)) + 1
    return [list(map(int, each)) for each in np.split(np.arange(len(rows)), ends)] if len(rows) else []

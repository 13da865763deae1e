"""Entities marked in texts as they are written: words, tags and places put together."""

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import torch

from hf_efficient.functional.confidence import probabilities
from hf_efficient.functional.tags import OUTSIDE, split_tag, to_bio
from hf_efficient.tasks.windows import documents, first_pieces, owners
from hf_efficient.timing import Runtime

ROWS = 32
"""Windows that are computed at once: a long text has many."""


class WindowSettings(Protocol):
    """Of `TokenClassificationData`."""

    max_length: int
    stride: int | None


def mark(
    tokenizer: Any, runtime: Runtime, texts: Sequence[str], names: Sequence[str], settings: WindowSettings
) -> list[list[dict[str, Any]]]:
    """The entities of each of ``texts``, in their order: ``entity``, ``start``, ``end``, ``text``, ``score``.

    Args:
        names: the tags, by their index.
        settings: ``max_length`` of a window; ``stride`` by which windows overlap, an eighth of it where that is None.
    """
    encoded = tokenizer(
        list(texts),
        truncation=True,
        max_length=settings.max_length,
        return_overflowing_tokens=True,
        stride=settings.max_length // 8 if settings.stride is None else settings.stride,
        return_offsets_mapping=True,
    )
    places, of = encoded.pop("offset_mapping"), encoded.pop("overflow_to_sample_mapping")
    words = [encoded.word_ids(row) for row in range(len(of))]
    shares = _shares(tokenizer, runtime, dict(encoded))
    return [
        _entities(texts[of[rows[0]]], *([each[row] for row in rows] for each in (words, places, shares)), names)
        for rows in documents(of)
    ]


def _shares(tokenizer: Any, runtime: Runtime, encoded: dict[str, Any]) -> list[np.ndarray]:
    """Probabilities of the tags of each window's pieces; shape (pieces, tags) each, padding included."""
    found: list[np.ndarray] = []
    for start in range(0, len(encoded["input_ids"]), ROWS):
        rows = {name: values[start : start + ROWS] for name, values in encoded.items()}
        with torch.inference_mode():
            output = runtime.predict(tokenizer.pad(rows, return_tensors="pt"))
        found += list(probabilities(np.asarray(output.logits, dtype=np.float64)))
    return found


def _entities(
    text: str, words: list[Any], places: list[Any], shares: list[np.ndarray], names: Sequence[str]
) -> list[dict[str, Any]]:
    """Entities of one text, from its windows."""
    owner = owners(words)
    spans: dict[int, list[int]] = {}  # of each word, where it begins and ends
    told: dict[int, np.ndarray] = {}
    for number, window in enumerate(words):
        for place in first_pieces(window):
            if owner[window[place]] == number:
                told[window[place]] = shares[number][place]
        for word, (start, end) in zip(window, places[number], strict=True):
            if word is not None:
                span = spans.setdefault(word, [start, end])
                span[:] = min(span[0], start), max(span[1], end)
    order = sorted(told)
    tags = to_bio([names[int(told[word].argmax())] for word in order])
    found: list[dict[str, Any]] = []
    for word, tag in zip(order, tags, strict=True):
        if tag == OUTSIDE:
            continue
        prefix, kind = split_tag(tag)
        score = round(float(told[word].max()), 4)
        if prefix == "B":
            found.append({"entity": kind, "start": spans[word][0], "end": spans[word][1], "score": score})
        else:
            found[-1].update(end=spans[word][1], score=min(found[-1]["score"], score))
    return [{**each, "text": text[each["start"] : each["end"]]} for each in found]

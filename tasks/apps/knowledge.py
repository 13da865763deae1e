"""A knowledge base: documents cut into passages, found by meaning (FAISS through `datasets`)."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset

from hf_efficient.data import check_columns, named_file
from hf_efficient.errors import ConfigError, DataError, MissingDependencyError, unknown
from hf_efficient.reading import quiet, read_file
from hf_efficient.tasks.apps.encoder import Encoder

PASSAGE_WORDS = 100
"""Words of a passage, about: whole sentences."""

TOPICS = 1000
"""Passages of which a topic is told."""

_SENTENCE = re.compile(r"(?<=[.!?])\s+(?=\S)|(?<=[\u3002\uff01\uff1f])\s*(?=\S)|\n+")
_ROWS, _INDEX, _VECTORS = "passages", "passages.faiss", "vectors"
_SENTENCES = "sentences.npy"


@dataclass(frozen=True)
class Passage:
    """A piece of a document that was found.

    Attributes:
        similarity: cosine of its vector with that of what was asked.
        number: of the passage, from 0; document: of the row of the file that it is from, from 0.
        first: number of its first sentence among those of all passages.
    """

    text: str
    title: str
    source: str
    similarity: float
    number: int
    document: int
    first: int


def sentences(text: str) -> list[str]:
    """The sentences of ``text``, by what ends them."""
    return [part for piece in _SENTENCE.split(text) if (part := piece.strip())]


def passages(text: str, words: int = PASSAGE_WORDS) -> list[str]:
    """``text`` cut between sentences into pieces of about as many ``words``."""
    found: list[list[str]] = [[]]
    for sentence in sentences(text):
        if found[-1] and len(" ".join([*found[-1], sentence]).split()) > words:
            found.append([])
        found[-1].append(sentence)
    return [" ".join(piece) for piece in found if piece]


class KnowledgeBase:
    """Passages with their vectors.

    Args:
        folder: what `build` wrote.
    """

    def __init__(self, folder: Path):
        require_faiss()
        try:
            self._rows = Dataset.load_from_disk(str(folder / _ROWS))
            self._rows.load_faiss_index(_VECTORS, str(folder / _INDEX))
            self._sentences = np.load(folder / _SENTENCES, mmap_mode="r")
        except Exception as error:  # of datasets, FAISS and Arrow
            words = " ".join(str(error).split())[:150]
            raise ConfigError(
                f"the knowledge base in {folder} cannot be read ({words}); run the recipe again"
            ) from error

    @staticmethod
    def documents(file: str | Path, *, text: str, title: str | None, source: str | None) -> Dataset:
        """The rows of ``file``.

        Args:
            file: a path, or ``sample:<name>/<file>``.
            text, title, source: its columns: of the documents, of what they are called, and of where they are from.

        Raises:
            DataError: a file that cannot be read, or lacks a column.
        """
        rows = read_file(named_file(str(file), "app.knowledge"))
        check_columns(rows, [text], f"app.knowledge '{file}'")
        for column in filter(None, (title, source)):
            if column not in rows.column_names:
                raise DataError(f"app.knowledge '{file}': {unknown('column', column, rows.column_names)}")
        return rows

    @staticmethod
    def build(
        file: str | Path, folder: Path, encoder: Encoder, *, text: str, title: str | None, source: str | None
    ) -> None:
        """Embed the passages of `documents` and write them to ``folder``.

        Raises:
            DataError: as for `documents`.
            MissingDependencyError: FAISS is not installed.
        """
        require_faiss()
        rows = KnowledgeBase.documents(file, text=text, title=title, source=source)
        made: dict[str, list[Any]] = {name: [] for name in ("text", "title", "source", "document", "first")}
        told: list[str] = []
        for number, row in enumerate(rows):
            for piece in passages(str(row[text])):
                made["text"].append(piece)
                made["title"].append(str(row[title] or "") if title else "")
                made["source"].append(str(row[source] or "") if source else "")
                made["document"].append(number)
                made["first"].append(len(told))
                told.extend(sentences(piece))
        embedded = [
            f"{name}. {piece}" if name else piece for name, piece in zip(made["title"], made["text"], strict=True)
        ]
        with quiet():
            found = Dataset.from_dict(made)
            found.save_to_disk(str(folder / _ROWS))
            found.add_faiss_index_from_external_arrays(encoder(embedded), _VECTORS, metric_type=_inner_product())
            found.save_faiss_index(_VECTORS, str(folder / _INDEX))
        np.save(folder / _SENTENCES, encoder(told).astype(np.float16))

    def __len__(self) -> int:
        return len(self._rows)

    def topics(self) -> list[str]:
        """What it is about: titles, or first sentences where there are none; `TOPICS` of them at most."""
        rows = self._rows[:TOPICS]
        named = zip(rows["title"], rows["text"], strict=True)
        return list(dict.fromkeys(title or sentences(text)[0] for title, text in named))

    def search(self, vectors: np.ndarray, count: int) -> list[list[Passage]]:
        """For each of ``vectors`` (questions, width) the nearest passages, the most similar first."""
        scores, numbers = self._rows.search_batch(_VECTORS, vectors.astype(np.float32), k=min(count, len(self._rows)))
        return [
            [self._passage(int(number), float(score)) for number, score in zip(row, told, strict=True) if number >= 0]
            for row, told in zip(numbers, scores, strict=True)
        ]

    def _passage(self, number: int, similarity: float) -> Passage:
        row = self._rows[number]
        return Passage(**{**row, "similarity": similarity, "number": number})

    def composed(self, question: np.ndarray, found: Sequence[Passage], count: int = 3) -> tuple[str, list[Passage]]:
        """An answer put together of the ``count`` sentences of ``found`` that are nearest to the question's vector
        (width,), in the order of the passages.

        Returns:
            the answer, each sentence with the number of its source; and the sources, counted from 1.
        """
        read = [sentences(passage.text) for passage in found]
        told = [(passage, sentence) for passage, some in zip(found, read, strict=True) for sentence in some]
        vectors = [self._sentences[one.first : one.first + len(some)] for one, some in zip(found, read, strict=True)]
        likeness = np.concatenate(vectors).astype(np.float32) @ question
        chosen = [told[index] for index in sorted(np.argsort(-likeness, kind="stable")[:count].tolist())]
        used = list({passage.number: passage for passage, _ in chosen}.values())
        return " ".join(f"{sentence} [{used.index(passage) + 1}]" for passage, sentence in chosen), used


def require_faiss() -> None:
    """Refuse what takes FAISS where it is not installed.

    Raises:
        MissingDependencyError: it is not.
    """
    try:
        import faiss  # noqa: F401
    except ImportError as error:
        raise MissingDependencyError("a knowledge base", "faiss-cpu", "apps") from error


def _inner_product() -> int:
    import faiss

    return int(faiss.METRIC_INNER_PRODUCT)

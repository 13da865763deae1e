"""Documents cut into passages, and found by meaning."""

import json
from pathlib import Path

import numpy as np
import pytest

from hf_efficient import ConfigError, DataError
from hf_efficient.data import named_file
from hf_efficient.tasks.apps.encoder import Encoder
from hf_efficient.tasks.apps.knowledge import KnowledgeBase, passages, sentences

SAMPLE = "sample:customer_service/knowledge.jsonl"


@pytest.fixture(scope="module")
def encoder(encoder_folder: Path) -> Encoder:
    return Encoder(encoder_folder)


def test_sentences_and_passages() -> None:
    text = "One is here. Is two? 三在这里。四也在。\nFive costs 3.50 a piece."
    assert sentences(text) == ["One is here.", "Is two?", "三在这里。", "四也在。", "Five costs 3.50 a piece."]
    long = " ".join(f"Sentence number {number} has some words." for number in range(60))
    found = passages(long, 50)
    assert " ".join(found) == long
    assert all(len(piece.split()) <= 50 for piece in found)
    assert passages("word " * 300) == [("word " * 300).strip()]


def test_vectors_do_not_depend_on_their_batch(encoder: Encoder) -> None:
    texts = ["a short one", "a text that is a good deal longer than the short one, so that it is padded", "third"] * 20
    vectors = encoder(texts)
    assert vectors.shape == (60, 384)
    assert np.linalg.norm(vectors, axis=1) == pytest.approx(np.ones(60), abs=1e-5)
    assert np.abs(vectors[:3] - vectors[57:]).max() < 1e-5
    assert np.abs(encoder(texts[:1]) - vectors[:1]).max() < 1e-5


def test_the_right_page_is_found(encoder: Encoder, tmp_path: Path) -> None:
    KnowledgeBase.build(SAMPLE, tmp_path, encoder, text="text", title="title", source="source")
    base = KnowledgeBase(tmp_path)
    file = named_file("sample:customer_service/knowledge_questions.jsonl", "test")
    asked = [json.loads(line) for line in file.read_text().splitlines()]
    vectors = encoder([row["text"] for row in asked])
    found = base.search(vectors, 3)
    right = [row["source"] in {passage.source for passage in three} for row, three in zip(asked, found, strict=True)]
    assert np.mean(right) >= 0.9
    assert all(three[0].similarity >= three[1].similarity >= three[2].similarity for three in found)
    number = next(index for index, row in enumerate(asked) if row["source"] == "care/upholstery")
    answer, sources = base.composed(vectors[number], found[number], 2)
    assert answer.count("[") == 2
    assert [f"[{index}]" in answer for index in range(1, len(sources) + 2)] == [True] * len(sources) + [False]
    first, cited = answer.split(" [")[0], int(answer.split(" [")[1][0])
    assert first in sources[cited - 1].text


def test_bad_files(encoder: Encoder, tmp_path: Path) -> None:
    columns = {"text": "text", "title": None, "source": None}
    with pytest.raises(
        DataError, match=r"unknown file of a sample .*; did you mean 'customer_service/knowledge\.jsonl"
    ):
        KnowledgeBase.build("sample:customer_service/knowlege.jsonl", tmp_path, encoder, **columns)
    with pytest.raises(DataError, match="unknown column 'body'"):
        KnowledgeBase.build(SAMPLE, tmp_path, encoder, **{**columns, "text": "body"})
    with pytest.raises(DataError, match="unknown column 'titel'; did you mean 'title'"):
        KnowledgeBase.build(SAMPLE, tmp_path, encoder, **{**columns, "title": "titel"})
    with pytest.raises(DataError, match="no file"):
        KnowledgeBase.build(str(tmp_path / "none.csv"), tmp_path, encoder, **columns)
    with pytest.raises(ConfigError, match="run the recipe again"):
        KnowledgeBase(tmp_path / "none")

"""Summarization: ROUGE of words in any script, the first sentence as what every model should beat."""

from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset, DatasetDict
from rouge_score.rouge_scorer import RougeScorer
from rouge_score.tokenizers import DefaultTokenizer

from hf_efficient.data import load
from hf_efficient.errors import DataError
from hf_efficient.tasks.metrics import Words
from hf_efficient.tasks.summarization import Summarization, SummarizationData, lead

SAID = ["the lost card", "no money in the app today", "pay"]
GIVEN = ["the card is lost", "no money in the app", "a new card"]


def task(**settings: Any) -> Summarization:
    return Summarization(SummarizationData(train="unused", **settings))


def test_metrics_are_those_of_rouge_score() -> None:
    names = ["rouge1", "rouge2", "rougeL"]
    exact = [RougeScorer(names).score(given, said) for said, given in zip(SAID, GIVEN, strict=True)]
    found = task().scores(SAID, GIVEN)
    assert found == pytest.approx({name: sum(one[name].fmeasure for one in exact) / 3 for name in names})
    assert next(iter(found)) == Summarization.main_metric
    assert task().scores(GIVEN, GIVEN) == pytest.approx(dict.fromkeys(names, 1.0))


def test_words_of_any_script() -> None:
    text = "The card_2 isn't lost: 3.5 EUR!"
    assert Words().tokenize(text) == DefaultTokenizer().tokenize(text)
    assert Words().tokenize("Größe: zwölf") == ["größe", "zwölf"]
    assert Words().tokenize("国名 is 2") == ["国", "名", "is", "2"]


@pytest.mark.parametrize(
    ("text", "first"),
    [
        ("My card is lost. What now?", "My card is lost."),
        ("It costs 3.50 here! Why?", "It costs 3.50 here!"),
        ("no end", "no end"),
        ("卡丢了。请帮我。", "卡丢了。"),
    ],
)
def test_lead(text: str, first: str) -> None:
    assert lead(text) == first


def test_baseline_is_the_first_sentence() -> None:
    documents = [f"{said}. And more words." for said in SAID]
    rows = Dataset.from_dict({"document": documents, "summary": GIVEN})
    name, found = task().baseline(DatasetDict({"test": rows}), "test")
    assert name == "the first sentence"
    assert found == pytest.approx(task().scores(SAID, GIVEN))


def test_other_columns_are_refused() -> None:
    rows = Dataset.from_dict({"document": ["a"], "summary": [1]})
    with pytest.raises(DataError, match=r"data.train: column 'summary' must hold text, got int64"):
        task().check(DatasetDict({"train": rows}))


def test_the_sample() -> None:
    settings = SummarizationData(train="sample:deliveries", max_source_length=192)
    data = load(settings)
    assert not set(data["train"]["document"]) & {*data["validation"]["document"], *data["test"]["document"]}
    built = Summarization(settings)
    built.check(data)
    built.load_processor("new:bart-tiny")
    assert max(map(len, built.encode(data["test"])["input_ids"])) < 192
    assert built.baseline(data, "test")[1]["rougeL"] < 0.5


@pytest.mark.data
def test_public_data(data_folder: Path) -> None:
    files = {split: str(data_folder / "scitldr" / f"{split}.jsonl") for split in ("train", "validation", "test")}
    settings = SummarizationData(**files)
    data = load(settings)
    built = Summarization(settings)
    built.check(data)
    assert 0.1 < built.baseline(data, "test")[1]["rougeL"] < 0.4

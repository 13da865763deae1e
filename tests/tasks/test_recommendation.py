"""Recommendation: texts of user and candidate, sampling, metrics by impression, rankings, a run."""

import itertools
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset, DatasetDict
from transformers import EvalPrediction, pipeline

from hf_efficient.data import load
from hf_efficient.errors import ConfigError, DataError
from hf_efficient.run import run
from hf_efficient.tasks.metrics import RankingMetrics
from hf_efficient.tasks.recommendation import Recommendation, RecommendationData, written
from tests.tasks.conftest import tiny_checkpoint

ROW = {
    "history": ["my card is lost", "how do i pay"],
    "candidates": ["a new card", "the app", "money", "no"],
    "clicks": [1, 0, 0, 0],
    "items": ["A", "B", "C", "D"],
    "categories": ["card", "app", "money", "no"],
    "moment": "new",
    "age": [1.0, 2.5, 3.0, 4.0],
}
NAMED = {"items": "items", "categories": "categories", "features": ["moment", "age"]}


def rows(count: int = 8) -> list[dict[str, Any]]:
    """Users who paid click the second candidate, the others the first."""
    histories = (["my card is lost"], ["how do i pay"])
    return [{**ROW, "history": histories[n % 2], "clicks": [int(n % 2 == 0), n % 2, 0, 0]} for n in range(count)]


def splits(train: list[dict[str, Any]] | None = None, test: list[dict[str, Any]] | None = None) -> DatasetDict:
    made = {"train": train or rows(), "validation": rows(4), "test": test or rows(4)}
    return DatasetDict({name: Dataset.from_list(some) for name, some in made.items()})


def ready(model: str, data: DatasetDict, **settings: Any) -> Recommendation:
    built = Recommendation(RecommendationData(train="unused", max_length=32, **{**NAMED, **settings}))
    built.check(data)
    built.load_processor(model)
    return built


# Data


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"clicks": [1, 0]}, r"data.train: row 9 has 2 entries in 'clicks' and 4 in 'candidates'; give one of each"),
        ({"items": ["A"]}, r"row 9 has 4 entries in 'clicks' and 1 in 'items'"),
        ({"age": [1.0]}, r"row 9 has 4 entries in 'clicks' and 1 in 'age'"),
        ({"clicks": [1, 0, 0, 7]}, r"row 9 has 7 in 'clicks'; allowed: 1 and 0"),
        ({"candidates": ["a", " ", "b", "c"]}, r"row 9 has an empty entry in 'candidates'; fill it in"),
        ({"candidates": [], "clicks": []}, r"row 9 has 0 entries in 'clicks' and 0 in 'candidates'"),
    ],
)
def test_bad_rows(change: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        Recommendation(RecommendationData(train="unused", **NAMED)).check(splits([*rows(), {**ROW, **change}]))


def test_bad_columns() -> None:
    built = Recommendation(RecommendationData(train="unused"))
    with pytest.raises(DataError, match=r"data.train: column 'candidates' must hold a list of texts, got string; name"):
        built.check(splits([{**ROW, "candidates": "a b"}]))
    with pytest.raises(DataError, match=r"column 'clicks' must hold a list of 1 and 0, got lists of string"):
        built.check(splits([{**ROW, "clicks": ["1", "0", "0", "0"]}]))
    with pytest.raises(DataError, match=r"data.test: no row has both a candidate that was clicked and one that was"):
        built.check(splits(test=[{**ROW, "clicks": [0] * 4}, {**ROW, "clicks": [1] * 4}]))


def test_users_of_whom_nothing_is_known() -> None:
    data = splits([{**row, "history": []} for row in rows()])
    Recommendation(RecommendationData(train="unused")).check(data)


def test_texts_of_user_and_candidate() -> None:
    pairs = written(ROW, RecommendationData(train="unused", **NAMED))
    assert pairs[1] == ("moment new | how do i pay | my card is lost", "app | age 2.5 | the app")
    assert len(pairs) == 4
    plain = written({**ROW, "history": []}, RecommendationData(train="unused"))
    assert plain[0] == ("no history", "a new card")
    assert written(ROW, RecommendationData(train="unused", max_history=1))[0][0] == "how do i pay"


def test_train_learns_from_a_few_that_were_not_clicked(checkpoint: str) -> None:
    data = splits([*rows(), {**ROW, "clicks": [0] * 4}])
    built = ready(checkpoint, data, negatives=2)
    some = built.sampled(data["train"])
    assert [len(row) for row in some["clicks"]] == [3] * 8 + [2]
    assert [sum(row) for row in some["clicks"]] == [1] * 8 + [0]
    for row in some:
        assert [ROW["candidates"][ROW["items"].index(item)] for item in row["items"]] == row["candidates"]
        assert len(row["age"]) == len(row["clicks"])
    assert some.to_list() == built.sampled(data["train"]).to_list()
    encoded = built.encode_all(data)
    assert (len(encoded["train"]), len(encoded["test"])) == (26, 16)
    assert list(itertools.chain(*encoded["test"]["labels"])) == [1, 0, 0, 0, 0, 1, 0, 0] * 2


def test_requests_are_what_the_pipeline_takes(checkpoint: str) -> None:
    data = splits()
    built = ready(checkpoint, data)
    asked = built.requests(data["test"])
    given = built.preprocess([built.raw(row) for row in data["test"]])
    assert len(asked) == 4
    assert built.collator()([{"input_ids": row["input_ids"]} for row in asked])["input_ids"].equal(given["input_ids"])


# Metrics


def test_metrics_by_hand() -> None:
    found = RankingMetrics().compute(
        predictions=[[0.9, 0.1, 0.5], [0.2, 0.3, 0.1, 0.4], [1.0, 2.0]],
        references=[[1, 0, 0], [1, 0, 1, 0], [1, 1]],
    )
    assert found["auc"] == pytest.approx((1 + 0.0) / 2)
    assert found["mrr"] == pytest.approx((1 + (1 / 3 + 1 / 4) / 2) / 2)
    second = (1 / math.log2(4) + 1 / math.log2(5)) / (1 + 1 / math.log2(3))
    assert found["ndcg@5"] == found["ndcg@10"] == pytest.approx((1 + second) / 2)


def test_equal_scores_earn_what_chance_does() -> None:
    found = RankingMetrics().compute(predictions=[[0.0] * 4] * 2, references=[[1, 0, 0, 0], [0, 0, 0, 1]])
    assert found["auc"] == pytest.approx(0.5)
    assert found["mrr"] == pytest.approx(1 / 2.5)


def prediction(built: Recommendation, data: DatasetDict, scores: list[float]) -> EvalPrediction:
    labels = np.array(list(built.encode(data["test"])["labels"]), dtype=np.float32)
    return EvalPrediction(np.array(scores, dtype=np.float32).reshape(-1, 1), labels)


def test_rankings_know_their_impressions(checkpoint: str) -> None:
    data = splits(test=[ROW, {**ROW, "clicks": [0, 1, 0, 0], "categories": ["a", "a", "b", "b"]}])
    built = ready(checkpoint, data)
    said = prediction(built, data, [4, 3, 2, 1, 1, 2, 3, 4])
    found = built.compute_metrics(said)
    assert found["auc"] == pytest.approx((1 + 1 / 3) / 2)
    assert (found["coverage"], found["diversity"]) == (1.0, pytest.approx((1 + 4 / 6) / 2))
    lines = [json.loads(line) for line in str(built.details(said)["rankings.jsonl"]).splitlines()]
    assert lines[1] == {
        "impression": 2,
        "items": ["D", "C", "B", "A"],
        "scores": [4.0, 3.0, 2.0, 1.0],
        "clicks": [0, 0, 1, 0],
    }
    with pytest.raises(ConfigError, match="these 3 candidates are of no split that was encoded"):
        built.compute_metrics(EvalPrediction(np.zeros((3, 1)), np.zeros((3, 1))))


def test_coverage_is_of_the_top() -> None:
    row = {"candidates": list("abcdefgh"), "items": list("ABCDEFGH"), "clicks": [1] + [0] * 7, "history": ["x"]}
    data = splits(train=[row], test=[row])
    built = Recommendation(RecommendationData(train="unused", items="items"))
    assert built.baseline(data, "test")[1]["coverage"] == 5 / 8


def test_baseline_is_popularity() -> None:
    data = splits(train=[ROW] * 3, test=[{**ROW, "clicks": [1, 0, 0, 0]}, {**ROW, "clicks": [0, 1, 0, 0]}])
    name, found = Recommendation(RecommendationData(train="unused", **NAMED)).baseline(data, "test")
    assert name == "popularity, by clicks in train"
    assert found["auc"] == pytest.approx((1 + 1 / 3) / 2)


# Training

RECIPE = """
task: recommendation
model: {model}
data: {{train: {folder}/train.jsonl, test: {folder}/test.jsonl, items: items, max_length: 32}}
stages:
  finetune:
    training: {{num_train_epochs: 50, learning_rate: 3.0e-3, per_device_train_batch_size: 8}}
    optimizations: {{length_batching: {{}}}}
  compress:
    training: {{num_train_epochs: 10, learning_rate: 3.0e-3, per_device_train_batch_size: 16}}
    optimizations: {{structured_pruning: {{keep_layers: 1, keep_ffn: 0.5}}, distillation: {{teacher: finetune}}}}
"""


def test_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hf_efficient.outcome.peak_memory_mb", lambda *args, **kwargs: None)
    monkeypatch.setattr("hf_efficient.outcome.SECONDS", 0.0)
    monkeypatch.setattr("hf_efficient.outcome.TURNS", 1)
    sizes = {"num_hidden_layers": 2, "hidden_size": 32, "intermediate_size": 32}
    dropout = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    model = tiny_checkpoint(tmp_path / "model", **sizes, **dropout)
    for split, count in (("train", 24), ("test", 8)):
        (tmp_path / f"{split}.jsonl").write_text("\n".join(map(json.dumps, rows(count))))
    file = tmp_path / "tiny.yaml"
    file.write_text(RECIPE.format(model=model, folder=tmp_path))
    result = run(file, runs=tmp_path / "runs")
    assert result is not None
    found = result.metrics["test"]
    assert found["after"]["auc"] > 0.95 > found["baseline"]["auc"]
    assert len((result.folder / "after" / "rankings.jsonl").read_text().splitlines()) == 8
    score = pipeline("text-classification", model=str(result.model), device="cpu")
    assert isinstance(result.sample, dict)
    (told,) = [score(result.sample)]
    assert told["label"] == "click"
    with torch.no_grad():
        logits = score.model(**score.tokenizer(**result.sample, return_tensors="pt")).logits
    assert told["score"] == pytest.approx(logits.sigmoid().item(), rel=1e-4), "a probability"
    for text, clicked, other in (
        ("my card is lost", *ROW["candidates"][:2]),
        ("how do i pay", *ROW["candidates"][1::-1]),
    ):
        said = [score({"text": text, "text_pair": each})["score"] for each in (clicked, other)]
        assert said[0] > said[1], text


def test_the_sample() -> None:
    names = {"items": "items", "categories": "categories", "features": ["moment", "age_days"]}
    settings = RecommendationData(train="sample:articles", **names)
    data = load(settings)
    built = Recommendation(settings)
    built.check(data)
    assert {name: len(split) for name, split in data.items()} == {"train": 480, "validation": 100, "test": 200}
    assert 0.4 < built.baseline(data, "test")[1]["auc"] < 0.65

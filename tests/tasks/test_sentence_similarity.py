"""Sentence similarity: batches of pairs, the loss, ranks, and models that sentence-transformers reads."""

import json
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset, DatasetDict
from transformers import AutoModel, BertConfig, BertModel, EvalPrediction, set_seed

from hf_efficient import EfficientTrainer
from hf_efficient.data import load
from hf_efficient.errors import ConfigError, DataError, MissingDependencyError
from hf_efficient.measure import measure
from hf_efficient.run import run
from hf_efficient.tasks.metrics import RetrievalMetrics
from hf_efficient.tasks.sentence_encoder import SCALE, in_batch_loss
from hf_efficient.tasks.sentence_similarity import SentenceSimilarity, SentenceSimilarityData, ranks
from tests.tasks.conftest import task_trainer, tiny_tokenizer

library = pytest.importorskip("sentence_transformers")

QUESTIONS = ["my card is lost", "how do i pay", "where is the money", "a new card", "no", "the app is lost"]
ANSWERS = ["lost card", "pay how", "money where", "card new", "not", "app lost"]


@pytest.fixture
def checkpoint(tmp_path: Path) -> str:
    set_seed(0)
    tokenizer = tiny_tokenizer()
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    dropout = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    config = BertConfig(vocab_size=len(tokenizer), max_position_embeddings=32, **sizes, **dropout)
    BertModel(config).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    return str(tmp_path / "model")


def splits(questions: list = QUESTIONS, answers: list = ANSWERS) -> DatasetDict:
    rows = Dataset.from_dict({"question": questions, "answer": answers})
    return DatasetDict({"train": rows, "validation": rows})


def ready(model: str, data: DatasetDict | None = None, **settings: Any) -> SentenceSimilarity:
    built = SentenceSimilarity(SentenceSimilarityData(train="unused", **{"max_length": 16, **settings}))
    built.check(data or splits())
    built.load_processor(model)
    return built


def trainer(
    built: SentenceSimilarity, model: str, folder: Path, data: DatasetDict | None = None, **settings: Any
) -> Any:
    options = {"learning_rate": 1e-3, "per_device_eval_batch_size": 4, **built.arguments(), **settings}
    return task_trainer(built, built.load_model(model), data or splits(), folder, **options)


# Data


def test_bad_data() -> None:
    built = SentenceSimilarity(SentenceSimilarityData(train="unused"))
    with pytest.raises(DataError, match=r"data.train: column 'answer' must hold text, got int64; name another"):
        built.check(splits(answers=[*range(6)]))
    with pytest.raises(DataError, match=r"data.train: all 6 rows have the same text in column 'answer'.* add rows"):
        built.check(splits(answers=["same"] * 6))


def test_a_batch_holds_questions_and_answers_in_turns(checkpoint: str, caplog: pytest.LogCaptureFixture) -> None:
    data = splits([*QUESTIONS[:4], QUESTIONS[0], "no"], [*ANSWERS[:4], "no", ANSWERS[1]])
    built = ready(checkpoint, question_prefix="a ", answer_prefix="the ", max_length=5)
    rows = built.encode(data["train"])
    batch = built.collator()(list(rows))
    words = built.processor.batch_decode(batch["input_ids"], skip_special_tokens=True)
    assert words[:2] == ["a my card", "the lost card"]
    assert batch["input_ids"].shape == batch["attention_mask"].shape == (12, 5)
    assert batch["labels"].tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 0, 4, 4, 1]
    assert batch["labels"].is_floating_point(), "no class scores are compared with them"
    assert "texts fill data.max_length=5 and may have been cut" in caplog.text


def test_requests_are_questions(checkpoint: str) -> None:
    built = ready(checkpoint, question_prefix="a ")
    rows = splits()["train"]
    batch = built.collator()(list(built.requests(rows)))
    given = built.preprocess([built.raw(row) for row in rows])
    assert batch.keys() == given.keys()
    assert all(torch.equal(batch[name], given[name]) for name in batch)
    timing = measure(
        built.runtime(built.load_model(checkpoint).eval()), list(built.requests(rows)), built.collator(), repeats=1,
        seconds=0, warmup=0, preprocess=built.preprocess, raw=[built.raw(row) for row in rows],
    )  # fmt: skip
    assert timing.input_lengths is not None
    assert timing.input_lengths["max"] == max(len(row) for row in built.requests(rows)["input_ids"])


# Loss and metrics


def embeddings(count: int, seed: int = 0) -> torch.Tensor:
    made = torch.randn(count, 8, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.normalize(made, dim=-1)


def test_loss_is_that_of_sentence_transformers() -> None:
    losses = pytest.importorskip("sentence_transformers.sentence_transformer.losses")
    given = embeddings(10)
    labels = torch.arange(5.0).repeat_interleave(2)
    stock = losses.MultipleNegativesRankingLoss(None, scale=SCALE)
    expected = stock.compute_loss_from_embeddings([given[0::2], given[1::2]], None)
    assert torch.allclose(in_batch_loss(given, labels), expected)
    with torch.autocast("cpu", dtype=torch.bfloat16):  # which tells cosines apart by hundredths only
        found = in_batch_loss(given, labels)
    assert torch.equal(found, in_batch_loss(given, labels))


@pytest.mark.parametrize("labels", [[0.0, 0.0, 1.0, 0.0], [0.0, 0.0, 0.0, 1.0]], ids=["answers", "questions"])
def test_equal_texts_are_no_negatives(labels: list[float]) -> None:
    pairs = embeddings(4)
    assert in_batch_loss(pairs, torch.tensor(labels)) == 0
    assert in_batch_loss(pairs, torch.tensor([0.0, 0.0, 1.0, 1.0])) > 0


def test_ranks() -> None:
    scores = np.array([[0.1, 0.9, 0.5], [0.3, 0.3, 0.3]])
    right = np.array([[True, False, True], [False, True, False]])
    assert ranks(scores, right) == [[2, 3], [3]], "equal scores earn nothing"


def test_metrics_by_hand() -> None:
    found = RetrievalMetrics().compute(predictions=[[1], [2, 11], [6]])
    assert found["mrr"] == pytest.approx((1 + 1 / 2 + 1 / 6) / 3)
    assert [found[f"recall@{k}"] for k in (1, 5, 10)] == pytest.approx([1 / 3, 1.5 / 3, 2.5 / 3])
    gains = [1, (1 / math.log2(3)) / (1 + 1 / math.log2(3)), 1 / math.log2(7)]
    assert found["ndcg@10"] == pytest.approx(sum(gains) / 3)
    assert next(iter(found)) == SentenceSimilarity.main_metric


def test_metrics_are_those_of_sentence_transformers() -> None:
    """Questions and answers that occur several times are one each, with all that they go with."""
    evaluation = pytest.importorskip("sentence_transformers.sentence_transformer.evaluation")
    chance = np.random.default_rng(0)
    labels = np.stack([chance.integers(0, 20, 60), chance.integers(0, 30, 60)], axis=1).astype(np.float32)
    texts = [
        {number: embeddings(1, seed=100 * side + int(number))[0].numpy() for number in set(labels[:, side])}
        for side in (0, 1)
    ]
    said = np.stack([[texts[0][q], texts[1][a]] for q, a in labels])
    found = SentenceSimilarity(SentenceSimilarityData(train="unused")).compute_metrics(EvalPrediction(said, labels))
    asked, answers = ({str(number): str(number) for number in side} for side in texts)
    relevant = {q: {str(a) for number, a in labels if str(number) == q} for q in asked}
    judge = evaluation.InformationRetrievalEvaluator(
        asked,
        answers,
        relevant,
        mrr_at_k=[30],
        ndcg_at_k=[10],
        precision_recall_at_k=[1, 5, 10],
        accuracy_at_k=[1],
        map_at_k=[1],
    )
    scores = np.stack(list(texts[0].values())) @ np.stack(list(texts[1].values())).T
    ranked = [
        [{"corpus_id": list(answers)[index], "score": float(row[index])} for index in np.argsort(-row)]
        for row in scores
    ]
    exact = judge.compute_metrics(ranked)
    assert found["mrr"] == pytest.approx(exact["mrr@k"][30])
    assert found["ndcg@10"] == pytest.approx(exact["ndcg@k"][10])
    assert [found[f"recall@{k}"] for k in (1, 5, 10)] == pytest.approx([exact["recall@k"][k] for k in (1, 5, 10)])


def test_baseline_shares_words() -> None:
    built = SentenceSimilarity(SentenceSimilarityData(train="unused"))
    name, found = built.baseline(splits(), "validation")
    assert name == "words shared, by tf-idf"
    assert found["mrr"] == pytest.approx((5 + 1 / 6) / 6), "of 'no' and 'not' neither is the other"


# Models


def test_embeddings_are_those_of_sentence_transformers(checkpoint: str, tmp_path: Path) -> None:
    built = ready(checkpoint, question_prefix="a ")
    model = built.load_model(checkpoint).eval()
    model.save_pretrained(tmp_path / "saved")
    built.processor.save_pretrained(tmp_path / "saved")
    loaded = library.SentenceTransformer(str(tmp_path / "saved"), device="cpu")
    with torch.no_grad():
        ours = model(**built.preprocess(QUESTIONS)).logits
    assert np.allclose(loaded.encode_query(QUESTIONS), ours.numpy() / math.sqrt(32), atol=1e-6)
    assert loaded.max_seq_length == 16
    assert type(AutoModel.from_pretrained(tmp_path / "saved")) is BertModel


def test_pooling_is_the_model_s_own(checkpoint: str, tmp_path: Path) -> None:
    model = library.SentenceTransformer(checkpoint, device="cpu")
    modules = pytest.importorskip("sentence_transformers.sentence_transformer.modules")
    first = library.SentenceTransformer(modules=[model[0], modules.Pooling(32, "cls")], device="cpu")
    first.save_pretrained(str(tmp_path / "first"))
    built = ready(str(tmp_path / "first"))
    encoder = built.load_model(str(tmp_path / "first")).eval()
    with torch.no_grad():
        ours = encoder(**built.preprocess(QUESTIONS)).logits.numpy()
    assert np.allclose(first.encode(QUESTIONS, normalize_embeddings=True), ours / math.sqrt(32), atol=1e-6)
    assert encoder.pooling.pooling_mode == "cls"


def test_other_modules_are_refused(checkpoint: str) -> None:
    kinds = ("Transformer", "Pooling", "Dense")
    told = [
        {"idx": n, "name": str(n), "path": "", "type": f"sentence_transformers.models.{k}"} for n, k in enumerate(kinds)
    ]
    (Path(checkpoint) / "modules.json").write_text(json.dumps(told))
    with pytest.raises(
        ConfigError, match=r"is made of Transformer, Pooling, Dense; sentence-similarity trains those of"
    ):
        ready(checkpoint).load_model(checkpoint)


def test_without_the_library(checkpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    built = ready(checkpoint)
    monkeypatch.setitem(sys.modules, "sentence_transformers.sentence_transformer.modules", None)
    with pytest.raises(
        MissingDependencyError, match=r"sentence-similarity needs .*hf-efficient\[sentence-transformers\]"
    ):
        built.load_model(checkpoint)


# Training


def test_trains_and_evaluates_pairs(checkpoint: str, tmp_path: Path) -> None:
    """Of a split whose last batch is not full, every pair is judged."""
    built = ready(checkpoint)
    made = trainer(built, checkpoint, tmp_path / "out", num_train_epochs=60)
    assert isinstance(made, EfficientTrainer)
    before = made.evaluate()
    made.train()
    after = made.evaluate()
    assert before["eval_mrr"] < after["eval_mrr"] == 1.0
    said = made.predict(built.encode(splits()["validation"]))
    assert said.predictions.shape == (6, 2, 32)
    assert said.label_ids.tolist() == [[n, n] for n in range(6)]


def test_batches_of_unequal_size_weigh_by_their_texts(checkpoint: str, tmp_path: Path) -> None:
    built = ready(checkpoint)
    made = trainer(built, checkpoint, tmp_path / "out", max_steps=2, optimizations={"length_batching": {}})
    made.train()
    assert made._items.total == 12
    assert made._items.from_labels


RECIPE = """
task: sentence-similarity
model: {model}
data: {{train: {folder}/train.jsonl, test: {folder}/test.jsonl, max_length: 16}}
stages:
  finetune:
    training: {{num_train_epochs: 20, learning_rate: 1.0e-3}}
  compress:
    training: {{num_train_epochs: 10, learning_rate: 1.0e-3}}
    optimizations: {{structured_pruning: {{keep_heads: 0.5, keep_ffn: 0.5}}, distillation: {{teacher: finetune}}}}
"""


@pytest.fixture
def recipe(checkpoint: str, tmp_path: Path) -> Path:
    pairs = [{"question": question, "answer": answer} for question, answer in zip(QUESTIONS, ANSWERS, strict=True)]
    for split, some in (("train", pairs * 4), ("test", pairs)):
        (tmp_path / f"{split}.jsonl").write_text("\n".join(map(json.dumps, some)))
    file = tmp_path / "tiny.yaml"
    file.write_text(RECIPE.format(model=checkpoint, folder=tmp_path))
    return file


def test_run_cuts_and_distils_embeddings(recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hf_efficient.outcome.SECONDS", 0.0)
    monkeypatch.setattr("hf_efficient.outcome.TURNS", 1)
    result = run(recipe, runs=tmp_path / "runs")
    assert result is not None
    found = result.metrics["test"]
    assert found["after"]["mrr"] > 0.9 > found["baseline"]["mrr"]
    assert result.report.before.parameters > result.report.after.parameters
    (told,) = [change for change in result.report.changes if change["name"] == "distillation"]
    assert told["teacher"] == ["finetune/final"]
    assert {"outputs", "hidden"} <= told["mean_loss_of_last_epoch"].keys()
    model = library.SentenceTransformer(str(result.model), device="cpu")
    scores = model.similarity(model.encode(QUESTIONS), model.encode(ANSWERS))
    assert scores.argmax(1).tolist() == [0, 1, 2, 3, 4, 5]
    assert AutoModel.from_pretrained(result.model).encoder.layer[0].intermediate.dense.out_features == 16
    card = (result.model / "README.md").read_text()
    assert 'model = SentenceTransformer("user/name")' in card
    assert "pipeline_tag: sentence-similarity" in card


def test_export_is_refused_before_training(recipe: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"unknown kind 'BertModel'"):
        run(recipe, ["export={format: onnx}"], runs=tmp_path / "runs")
    assert not (tmp_path / "runs").exists()


def test_the_sample() -> None:
    settings = SentenceSimilarityData(train="sample:questions")
    data = load(settings)
    built = SentenceSimilarity(settings)
    built.check(data)
    assert {name: len(split) for name, split in data.items()} == {"train": 480, "validation": 144, "test": 192}
    assert 0.1 < built.baseline(data, "test")[1]["mrr"] < 0.6


@pytest.mark.data
def test_public_data(data_folder: Path) -> None:
    files = {split: str(data_folder / "medquad_faq" / f"{split}.jsonl") for split in ("train", "validation", "test")}
    settings = SentenceSimilarityData(**files)
    data = load(settings)
    built = SentenceSimilarity(settings)
    built.check(data)
    assert {name: len(split) for name, split in data.items()} == {"train": 2436, "validation": 319, "test": 263}
    assert 0.3 < built.baseline(data, "test")[1]["mrr"] < 0.95

"""Translation, and what all tasks from text to text share: encoding, generated texts, metrics of them, refusals."""

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sacrebleu
import torch
from datasets import Dataset, DatasetDict
from transformers import BartConfig, BartForConditionalGeneration, EvalPrediction, set_seed

from hf_efficient.data import load
from hf_efficient.errors import ConfigError, DataError
from hf_efficient.measure import measure
from hf_efficient.recipe import Recipe
from hf_efficient.run import run
from hf_efficient.tasks.translation import Translation, TranslationData
from hf_efficient.trainer import EfficientSeq2SeqTrainer
from tests.tasks.conftest import tiny_tokenizer

SOURCES = ["my card is lost", "how do i pay", "where is the money", "a new card", "no", "do not pay the app"]
TARGETS = ["lost card", "pay how", "money where", "card new", "no", "app pay not"]


def tiny_bart(folder: Path, **changes: Any) -> str:
    set_seed(0)
    tokenizer = tiny_tokenizer()
    ids = {"bos_token_id": 2, "eos_token_id": 3, "pad_token_id": 0, "decoder_start_token_id": 2}
    sizes = {f"{side}_{size}": 2 for side in ("encoder", "decoder") for size in ("layers", "attention_heads")}
    widths = {"encoder_ffn_dim": 32, "decoder_ffn_dim": 32, "d_model": 32, "max_position_embeddings": 32}
    values = {
        "vocab_size": len(tokenizer),
        "forced_eos_token_id": 3,
        **ids,
        **sizes,
        **widths,
        "dropout": 0.0,
        **changes,
    }
    BartForConditionalGeneration(BartConfig(**values)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture
def checkpoint(tmp_path: Path) -> str:
    return tiny_bart(tmp_path / "model")


def splits(sources: list = SOURCES, targets: list = TARGETS) -> DatasetDict:
    rows = Dataset.from_dict({"source": sources, "target": targets})
    return DatasetDict({"train": rows, "validation": rows})


def ready(model: str, data: DatasetDict | None = None, **settings: Any) -> Translation:
    lengths = {"max_source_length": 16, "max_target_length": 8}
    built = Translation(TranslationData(train="unused", **{**lengths, **settings}))
    built.check(data or splits())
    built.load_processor(model)
    return built


def trained(built: Translation, model: str, folder: Path, **settings: Any) -> EfficientSeq2SeqTrainer:
    args = built.arguments_class(
        str(folder), report_to="none", disable_tqdm=True, use_cpu=True, dataloader_pin_memory=False, learning_rate=1e-2,
        num_train_epochs=60, measure_seconds=0, **built.arguments(), **settings,
    )  # fmt: skip
    encoded = built.encode_all(splits())
    made = built.trainer(
        model=built.load_model(model), args=args, train_dataset=encoded["train"],
        eval_dataset=encoded["validation"], processing_class=built.processor,
    )  # fmt: skip
    made.train()
    return made


# Data


BAD = {
    "numbers": (splits(targets=[*range(6)]), r"data.train: column 'target' must hold text, got int64; name another"),
    "lists": (splits(sources=[["a"]] * 6), r"data.train: column 'source' must hold text, got List"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_data(case: str) -> None:
    data, message = BAD[case]
    with pytest.raises(DataError, match=message):
        Translation(TranslationData(train="unused")).check(data)


def test_missing_target_is_named(tmp_path: Path) -> None:
    file = tmp_path / "train.jsonl"
    rows = [{"source": "my card", "target": "card"}, {"source": "the app", "target": " "}]
    file.write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(
        DataError, match=r"data.train '.*train.jsonl': column 'target' is empty in 1 of 2 rows \(row 2\)"
    ):
        load(TranslationData(train=str(file)))


def test_fields_of_a_column(tmp_path: Path) -> None:
    file = tmp_path / "train.jsonl"
    file.write_text("\n".join(json.dumps({"id": n, "translation": {"en": f"one {n}", "de": "eins"}}) for n in range(9)))
    settings = TranslationData(train=str(file), source="translation.en", target="translation.de")
    data = load(settings)
    Translation(settings).check(data)
    assert set(data["train"]["translation.de"]) == {"eins"}
    with pytest.raises(DataError, match=r"unknown column 'translation.fr'; did you mean 'translation\.[de][en]'"):
        load(TranslationData(train=str(file), source="translation.en", target="translation.fr"))


def test_encoding(checkpoint: str, caplog: pytest.LogCaptureFixture) -> None:
    built = ready(checkpoint, prefix="the ", max_target_length=4)
    with caplog.at_level(logging.WARNING):
        encoded = built.encode(splits()["train"])
    tokenizer = built.processor
    assert encoded[0]["input_ids"] == tokenizer("the my card is lost")["input_ids"]
    assert encoded[0]["labels"] == tokenizer("lost card")["input_ids"]
    assert len(encoded[5]["labels"]) == 4
    assert "of 6 texts fill data.max_target_length=4" in caplog.text
    batch = built.collator()(list(encoded))
    assert batch["labels"][4].tolist()[3:] == [-100]
    assert torch.isfinite(built.load_model(checkpoint)(**batch).loss)
    given = built.preprocess([built.raw(row) for row in splits()["train"]])
    assert torch.equal(given["input_ids"], batch["input_ids"])


def test_lengths_that_the_model_cannot_take(checkpoint: str) -> None:
    with pytest.raises(
        ConfigError, match=r"max_target_length is 64, but .* at most 32 tokens; set data.max_target_length=32"
    ):
        ready(checkpoint, max_target_length=64)


# Metrics


def prediction(built: Translation, said: list[str], given: list[str]) -> EvalPrediction:
    """Ids as evaluation has them: padded with -100 and with what comes before a text."""
    ids = [built.processor(texts, padding=True, return_tensors="np")["input_ids"] for texts in (said, given)]
    found, labels = (np.where(rows == built.processor.pad_token_id, -100, rows) for rows in ids)
    return EvalPrediction(predictions=np.pad(found, ((0, 0), (1, 0)), constant_values=2), label_ids=labels)


def test_metrics_are_those_of_sacrebleu(checkpoint: str) -> None:
    built = ready(checkpoint)
    said = ["lost card", "pay", "where money", "card new", "not", "app pay not a card"]
    metrics = built.compute_metrics(prediction(built, said, TARGETS))
    assert metrics["chrf"] == pytest.approx(sacrebleu.corpus_chrf(said, [TARGETS]).score)
    assert metrics["bleu"] == pytest.approx(sacrebleu.corpus_bleu(said, [TARGETS]).score)
    assert next(iter(metrics)) == built.main_metric
    lines = built.details(prediction(built, said, TARGETS))["texts.jsonl"]
    assert json.loads(str(lines).splitlines()[1]) == {"generated": "pay", "target": "pay how"}
    perfect = built.compute_metrics(prediction(built, TARGETS, TARGETS))
    assert perfect["chrf"] == pytest.approx(100)


def test_chinese_has_words_for_bleu(checkpoint: str) -> None:
    given, said = ["马其顿人将就国名变更进行公投"], ["马其顿人将就国名变更进行全民公投"]
    assert ready(checkpoint, bleu_tokenize="zh").scores(said, given)["bleu"] > 50
    assert ready(checkpoint).scores(said, given)["bleu"] < 1


def test_logits_are_refused(checkpoint: str) -> None:
    built = ready(checkpoint)
    with pytest.raises(ConfigError, match=r"translation is judged by generated texts, got logits; set predict_with"):
        built.compute_metrics(EvalPrediction(np.zeros((2, 3, 5)), np.zeros((2, 3), dtype=int)))


def test_baseline_copies(checkpoint: str) -> None:
    name, found = ready(checkpoint).baseline(splits(), "validation")
    assert name == "the source, copied"
    assert found["chrf"] == pytest.approx(sacrebleu.corpus_chrf(SOURCES, [TARGETS]).score)
    assert 0 < found["chrf"] < 100


# Training


def test_trains_and_generates(checkpoint: str, tmp_path: Path) -> None:
    built = ready(checkpoint)
    made = trained(built, checkpoint, tmp_path / "out", optimizations={"length_batching": {}})
    assert isinstance(made, EfficientSeq2SeqTrainer)
    found = made.evaluate()
    assert found["eval_chrf"] > 90
    batch = built.preprocess(SOURCES)
    ids = made.model.generate(**batch, max_new_tokens=8).tolist()
    assert built.processor.batch_decode(ids, skip_special_tokens=True)[:4] == TARGETS[:4]


def test_label_smoothing_teaches_the_decoder(checkpoint: str, tmp_path: Path) -> None:
    """Stock takes the labels out of the batch, from which the model would make its decoder's inputs."""
    made = trained(ready(checkpoint), checkpoint, tmp_path / "out", label_smoothing_factor=0.1)
    assert made.evaluate()["eval_chrf"] > 90


def test_what_is_timed_generates(checkpoint: str) -> None:
    built = ready(checkpoint)
    rows = splits()["train"]
    timing = measure(
        built.runtime(built.load_model(checkpoint).eval()), list(built.requests(rows)), built.collator(), repeats=1,
        seconds=0, warmup=0, preprocess=built.preprocess, raw=[built.raw(row) for row in rows],
    )  # fmt: skip
    assert timing.runtime == "PyTorch, generating"
    assert timing.new_tokens is not None
    assert 0 < timing.new_tokens <= 8


RECIPE = """
task: translation
model: {model}
data: {{train: {folder}/train.jsonl, test: {folder}/test.jsonl, max_source_length: 16, max_target_length: 8}}
stages:
  finetune:
    training: {{num_train_epochs: 30, learning_rate: 1.0e-2, generation_num_beams: 2}}
  compress:
    training: {{num_train_epochs: 30, learning_rate: 1.0e-2}}
    optimizations: {{structured_pruning: {{keep_layers: 1}}, distillation: {{teacher: finetune}}}}
"""


@pytest.fixture
def recipe(checkpoint: str, tmp_path: Path) -> Path:
    rows = [{"source": source, "target": target} for source, target in zip(SOURCES * 4, TARGETS * 4, strict=True)]
    for split, some in (("train", rows), ("test", rows[:6])):
        (tmp_path / f"{split}.jsonl").write_text("\n".join(map(json.dumps, some)))
    file = tmp_path / "tiny.yaml"
    file.write_text(RECIPE.format(model=checkpoint, folder=tmp_path))
    return file


def test_run_reports_generated_texts(recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hf_efficient.outcome.peak_memory_mb", lambda *args, **kwargs: None)
    monkeypatch.setattr("hf_efficient.outcome.SECONDS", 0.0)
    monkeypatch.setattr("hf_efficient.outcome.TURNS", 1)
    result = run(recipe, runs=tmp_path / "runs")
    assert result is not None
    found = result.metrics["test"]
    assert found["after"]["chrf"] > found["baseline"]["chrf"]
    assert result.report.main_metric == "chrf"
    assert any(note.startswith("Without any model (the source, copied): chrf ") for note in result.report.notes)
    assert BartForConditionalGeneration.from_pretrained(result.model).config.decoder_layers == 1
    assert "| New tokens" in (result.folder / "report.md").read_text()
    assert (result.folder / "after" / "texts.jsonl").read_text().count("\n") == 6


def test_export_is_refused_before_training(recipe: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none that generate: .*BartForConditionalGeneration.* without an export"):
        run(recipe, ["export={format: onnx}"], runs=tmp_path / "runs")
    assert not (tmp_path / "runs").exists()


def test_training_takes_fields_of_the_task_s_own_arguments() -> None:
    given = "stages.finetune.training.generation_num_beams=many"
    with pytest.raises(ConfigError, match="generation_num_beams: input should be a valid integer"):
        Recipe.load("translation", [given])
    with pytest.raises(ConfigError, match="unknown key 'generation_num_beams'"):
        Recipe.load("customer-service", [given])


def test_the_sample_and_its_model() -> None:
    settings = TranslationData(train="sample:announcements")
    data = load(settings)
    assert not set(data["train"]["source"]) & {*data["validation"]["source"], *data["test"]["source"]}
    built = Translation(settings)
    built.check(data)
    tokenizer = built.load_processor("new:bart-tiny")
    ids = built.encode(data["test"].select(range(1)))[0]["labels"]
    assert tokenizer.decode(ids, skip_special_tokens=True) == data["test"][0]["target"]
    assert built.load_model("new:bart-tiny").config.vocab_size == len(tokenizer)


@pytest.mark.data
def test_public_data(data_folder: Path) -> None:
    folder = data_folder / "ntrex"
    columns = {"source": "translation.en", "target": "translation.zh"}
    files = {split: str(folder / f"{split}.jsonl") for split in ("train", "validation", "test")}
    settings = TranslationData(**files, **columns, bleu_tokenize="zh")
    data = load(settings)
    built = Translation(settings)
    built.check(data)
    assert {name: len(split) for name, split in data.items()} == {"train": 1618, "validation": 114, "test": 265}
    assert built.baseline(data, "test")[1]["chrf"] < 10

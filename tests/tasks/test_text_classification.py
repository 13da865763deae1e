from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, DatasetDict
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer, EvalPrediction, pipeline

from hf_efficient.data import load
from hf_efficient.errors import ConfigError, DataError
from hf_efficient.functional.confidence import calibration_error
from hf_efficient.settings import parse
from hf_efficient.task import get_task
from hf_efficient.tasks.text_classification import TextClassification, TextClassificationData
from tests.tasks.conftest import tiny_checkpoint

TEXTS = ["my card is lost", "where is my money?", "do i pay the app", "a new card", "how do i pay", "no card"]
LABELS = ["card", "money", "app", "card", "money", "card"]


def splits(**columns: list) -> DatasetDict:
    rows = Dataset.from_dict(columns or {"text": TEXTS, "label": LABELS})
    return DatasetDict({"train": rows, "validation": rows})


def task(**settings: Any) -> TextClassification:
    return TextClassification(TextClassificationData(train="unused", **{"max_length": 16, **settings}))


def checked(data: DatasetDict, **settings: Any) -> TextClassification:
    built = task(**settings)
    built.check(data)
    return built


def test_from_a_recipe() -> None:
    values = {"train": "sample:customer_service", "text": "text", "label": "label", "max_length": "64"}
    cls = get_task("text-classification")
    settings = parse(cls.data_settings, values, "data")
    data = load(settings)
    built = cls(settings)
    built.check(data)
    assert settings.max_length == 64
    assert built.label_names == sorted(set(data["train"]["label"]))


def test_max_length_is_checked() -> None:
    with pytest.raises(ConfigError, match=r"data.max_length.*4"):
        parse(TextClassificationData, {"train": "a.csv", "max_length": 1}, "data")


# Labels


def test_names_are_sorted_and_numbers_go_by_value() -> None:
    assert checked(splits()).label_names == ["app", "card", "money"]
    numbers = [*range(11)]
    assert checked(splits(text=["a"] * 11, label=numbers)).label_names == [str(number) for number in numbers]
    as_text = splits(text=["a"] * 4, label=["10", "9", "-1", "other"])
    assert checked(as_text).label_names == ["-1", "9", "10", "other"]


def test_class_label_keeps_its_order() -> None:
    data = splits(text=["a", "b"], label=[0, 1]).cast_column("label", ClassLabel(names=["z", "a"]))
    assert checked(data).label_names == ["z", "a"]


def test_class_label_without_labels() -> None:
    data = splits(text=["a", "b", "c"], label=[0, 1, -1]).cast_column("label", ClassLabel(names=["z", "a"]))
    with pytest.raises(DataError, match=r"column 'label'.*without a label \(-1\)"):
        checked(data)


def test_label_that_train_does_not_have() -> None:
    data = splits()
    data["test"] = Dataset.from_dict({"text": ["a", "b", "c"], "label": ["card", "crad", "crad"]})
    with pytest.raises(DataError, match=r"data.test has 2 rows labelled 'crad', but data.train has none; add"):
        checked(data)


def test_a_single_class() -> None:
    with pytest.raises(DataError, match=r"one class only \(card\); classification needs two"):
        checked(splits(text=["a", "b"], label=["card", "card"]))


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"text": [1, 2], "label": ["a", "b"]}, r"data.train: column 'text' must hold text, got int64"),
        ({"text": [["a"], ["b"]], "label": ["a", "b"]}, r"'text' must hold text, got .*[Ll]ist"),
        ({"text": ["a", "b"], "label": [0.5, 1.5]}, r"'label' must hold one name or whole number per row, got float64"),
        ({"text": ["a", "b"], "label": [["a"], ["b"]]}, r"'label' must hold one name .*, got .*[Ll]ist"),
    ],
)
def test_columns_of_another_type(columns: dict[str, list], message: str) -> None:
    with pytest.raises(DataError, match=message):
        checked(splits(**columns))


def test_names_and_numbers_mixed_in_json(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    rows = ['{"text": "a", "label": 1}', '{"text": "b", "label": "x"}'] * 4
    (tmp_path / "train.jsonl").write_text("\n".join(rows))
    settings = TextClassificationData(train=str(tmp_path / "train.jsonl"), validation_fraction=0.5)
    built = TextClassification(settings)
    built.check(load(settings))
    assert built.label_names == ["1", "x"]


# Encoding


def test_encoded_rows_equal_a_direct_call_of_the_tokenizer(checkpoint: str) -> None:
    data = splits()
    built = checked(data, max_length=6)
    built.load_processor(checkpoint)
    encoded = built.encode(data["train"])
    direct = AutoTokenizer.from_pretrained(checkpoint)(TEXTS, truncation=True, max_length=6)
    assert set(encoded.column_names) == {"input_ids", "token_type_ids", "attention_mask", "labels"}
    for column, values in direct.items():
        assert list(encoded[column]) == values
    assert [["app", "card", "money"][index] for index in encoded["labels"]] == LABELS
    lengths = [len(ids) for ids in encoded["input_ids"]]
    assert max(lengths) == 6
    assert min(lengths) < 6, "rows are not padded"


def test_encoded_pairs_equal_a_direct_call_of_the_tokenizer(checkpoint: str) -> None:
    data = splits(question=TEXTS, answer=TEXTS[::-1], intent=LABELS, labels=["taken"] * 6)
    built = checked(data, text="question", text_pair="answer", label="intent")
    built.load_processor(checkpoint)
    encoded = built.encode(data["train"])
    direct = AutoTokenizer.from_pretrained(checkpoint)(TEXTS, TEXTS[::-1], truncation=True, max_length=16)
    assert list(encoded["input_ids"]) == direct["input_ids"]
    assert list(encoded["token_type_ids"]) == direct["token_type_ids"]
    assert encoded["labels"][0] == 1
    assert built.raw(data["train"][0]) == {"text": TEXTS[0], "text_pair": TEXTS[-1]}


def test_encoding_prints_nothing(checkpoint: str, capfd: pytest.CaptureFixture[str]) -> None:
    data = splits()
    built = checked(data)
    built.load_processor(checkpoint)
    built.encode(data["train"])
    assert capfd.readouterr() == ("", "")


def test_encoding_is_cached_by_what_it_depends_on(
    checkpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "train.csv").write_text("text,label\n" + "".join(f"{text},card\n{text},app\n" for text in TEXTS))

    def encode(max_length: int) -> Dataset:
        settings = TextClassificationData(train=str(tmp_path / "train.csv"), max_length=max_length)
        data = load(settings)
        built = TextClassification(settings)
        built.check(data)
        built.load_processor(checkpoint)
        return built.encode(data["train"])

    first, again, other = encode(6), encode(6), encode(5)
    assert first.cache_files == again.cache_files
    assert first.cache_files != other.cache_files
    assert max(len(ids) for ids in other["input_ids"]) == 5


def test_rows_without_label_and_unknown_label(checkpoint: str) -> None:
    built = checked(splits())
    built.load_processor(checkpoint)
    assert "labels" not in built.encode(Dataset.from_dict({"text": TEXTS})).column_names
    with pytest.raises(DataError, match="unknown label 'crad'; did you mean 'card'"):
        built.encode(Dataset.from_dict({"text": ["a"], "label": ["crad"]}))


def test_batches_are_padded_to_their_longest_row(checkpoint: str) -> None:
    data = splits()
    built = checked(data)
    built.load_processor(checkpoint)
    encoded = built.encode(data["train"])
    batch = built.collator()([encoded[3], encoded[5]])
    assert batch["input_ids"].shape == (2, max(len(encoded[i]["input_ids"]) for i in (3, 5)))
    assert batch["attention_mask"].sum().item() == sum(len(encoded[i]["input_ids"]) for i in (3, 5))
    assert batch["labels"].tolist() == [1, 1]
    model = built.load_model(checkpoint)
    assert torch.isfinite(model(**batch).loss)


# Models


def test_model_gets_the_labels(checkpoint: str) -> None:
    data = splits()
    built = checked(data)
    built.load_processor(checkpoint)
    model = built.load_model(checkpoint)
    assert model.config.id2label == {0: "app", 1: "card", 2: "money"}
    assert model.config.label2id == {"app": 0, "card": 1, "money": 2}
    assert model.classifier.out_features == model.num_labels == 3
    assert model.config.problem_type == "single_label_classification"


def test_max_length_beyond_the_model(checkpoint: str) -> None:
    built = checked(splits(), max_length=33)
    with pytest.raises(
        ConfigError, match=r"data.max_length is 33, but model .* at most 32 tokens; set data.max_length=32"
    ):
        built.load_processor(checkpoint)
    with pytest.raises(ConfigError, match=r"set data.max_length=32"):
        built.load_model(checkpoint)


def test_folder_without_tokenizer(tmp_path: Path) -> None:
    folder = Path(tiny_checkpoint(tmp_path / "model"))
    for file in folder.glob("*token*"):
        file.unlink()
    with pytest.raises(ConfigError, match="no tokenizer files"):
        checked(splits()).load_processor(str(folder))


def test_model_without_padding_token(tmp_path: Path) -> None:
    folder = tiny_checkpoint(tmp_path / "model", pad_token_id=None)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.pad_token, tokenizer.eos_token = None, "[SEP]"
    tokenizer.save_pretrained(folder)
    assert AutoConfig.from_pretrained(folder).pad_token_id is None
    built = checked(splits())
    assert built.load_processor(folder).pad_token == "[SEP]"
    assert built.load_model(folder).config.pad_token_id == built.processor.eos_token_id
    assert built.collator()([{"input_ids": [1, 2]}, {"input_ids": [1]}])["input_ids"].shape == (2, 2)


def test_metrics_from_logits() -> None:
    logits, references = np.array([[0.1, 0.9], [0.8, 0.2], [0.7, 0.3]]), np.array([1, 0, 1])
    for predictions in (logits, (logits, np.zeros((3, 8)))):
        metrics = task().compute_metrics(EvalPrediction(predictions=predictions, label_ids=references))
        assert metrics["accuracy"] == metrics["f1_macro"] == pytest.approx(2 / 3)
        assert metrics["calibration_error"] == pytest.approx(calibration_error(logits, references))
        assert TextClassification.main_metric in metrics


def test_recall_per_class() -> None:
    built = task()
    built.label_names = ["a", "b", "c"]
    logits = np.eye(3)[[0, 0, 1, 1]]
    found = built.per_class(EvalPrediction(predictions=logits, label_ids=np.array([0, 1, 1, 1])))
    assert found == {"a": 1.0, "b": pytest.approx(2 / 3)}, "c does not occur"


def test_baseline_is_the_most_frequent_class_of_train() -> None:
    data = splits()
    data["test"] = Dataset.from_dict({"text": ["a"] * 4, "label": ["card", "money", "money", "app"]})
    name, found = checked(data).baseline(data, "test")
    assert name == "always 'card'"
    assert found == pytest.approx({"accuracy": 0.25, "f1_macro": 0.4 / 3})


def test_pipeline_takes_raw_and_gives_label_names(checkpoint: str, tmp_path: Path) -> None:
    data = splits()
    built = checked(data)
    tokenizer = built.load_processor(checkpoint)
    built.load_model(checkpoint).save_pretrained(tmp_path / "final")
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "final")
    classify = pipeline(built.pipeline, model=model, tokenizer=tokenizer)
    assert classify(built.raw(data["train"][0]))[0]["label"] in built.label_names


@pytest.mark.data
def test_public_data(data_folder: Path) -> None:
    folder = data_folder / "banking77"
    settings = TextClassificationData(train=str(folder / "train.csv"), test=str(folder / "test.csv"))
    data = load(settings)
    built = TextClassification(settings)
    built.check(data)
    assert len(built.label_names) == 77
    assert len(data["train"]) + len(data["validation"]) == 10_003
    assert set(data["validation"]["label"]) == set(built.label_names)


def test_default_model(default_model: str) -> None:
    data = splits()
    built = checked(data)
    tokenizer = built.load_processor("sentence-transformers/all-MiniLM-L6-v2")
    assert built.encode(data["train"])[0]["input_ids"] == tokenizer(TEXTS[0])["input_ids"]
    assert built.load_model("sentence-transformers/all-MiniLM-L6-v2").config.id2label[2] == "money"


def test_preprocess_makes_the_batch_that_encoding_and_collation_make(default_model: str) -> None:
    task = TextClassification(TextClassificationData(train="x", max_length=8))
    task.load_processor(default_model)
    rows = Dataset.from_dict({"text": ["one two", "a much longer text than eight tokens can hold, really"]})
    encoded = task.collator()(list(task.encode(rows)))
    batch = task.preprocess([task.raw(row) for row in rows])
    assert {name: value.tolist() for name, value in batch.items()} == {n: v.tolist() for n, v in encoded.items()}

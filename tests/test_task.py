import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset, DatasetDict
from transformers import AutoModelForSequenceClassification

from hf_efficient.checkpoint import apply_shapes, record_shapes
from hf_efficient.errors import ConfigError
from hf_efficient.task import TASKS, Task, get_task
from hf_efficient.tasks.text_classification import TextClassification, TextClassificationData
from tests.tasks.conftest import tiny_checkpoint

AUTO = AutoModelForSequenceClassification


def task(labels: list[str] | None) -> TextClassification:
    built = TextClassification(TextClassificationData(train="unused", max_length=16))
    if labels is not None:
        rows = Dataset.from_dict({"text": ["a"] * len(labels), "label": labels})
        built.check(DatasetDict({"train": rows, "validation": rows}))
    return built


@pytest.fixture
def checkpoint(tmp_path: Path) -> str:
    return tiny_checkpoint(tmp_path / "model")


# Names


@pytest.mark.parametrize("name", TASKS)
def test_each_task_is_complete(name: str) -> None:
    cls = get_task(name)
    assert issubclass(cls, Task)
    assert cls.name == name
    assert not getattr(cls, "__abstractmethods__", None)


def test_unknown_task() -> None:
    with pytest.raises(ConfigError, match="unknown task 'text-clasification'; did you mean 'text-classification'"):
        get_task("text-clasification")


# Loading


def empty(folder: Path) -> None:
    for file in folder.iterdir():
        file.unlink()


def set_config(**changes: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        values = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**values, **changes}))

    return change


BREAK = {
    "empty folder": empty,
    "no weights": lambda folder: (folder / "model.safetensors").unlink(),
    "garbage weights": lambda folder: (folder / "model.safetensors").write_bytes(b"garbage" * 99),
    "cut weights": lambda folder: (folder / "model.safetensors").write_bytes(
        (folder / "model.safetensors").read_bytes()[:900]
    ),
    "garbage config": lambda folder: (folder / "config.json").write_bytes(bytes(range(256))),
    "cut config": lambda folder: (folder / "config.json").write_text('{"a":'),
    "no type": lambda folder: (folder / "config.json").write_text("{}"),
    "unknown type": set_config(model_type="nosuch"),
    "wrong type of value": set_config(hidden_size="large"),
    "impossible value": set_config(num_attention_heads=3),
}


@pytest.mark.parametrize("name", BREAK)
def test_broken_model_folder(name: str, checkpoint: str) -> None:
    BREAK[name](Path(checkpoint))
    with pytest.raises(ConfigError, match=r"cannot load '.*model' \(\w+: .*save_pretrained wrote"):
        task(["a", "b"]).load_model(checkpoint)


@pytest.mark.parametrize("content", ['{"garb', "{}", "[]"])
def test_broken_tokenizer(content: str, checkpoint: str) -> None:
    (Path(checkpoint) / "tokenizer.json").write_text(content)
    with pytest.raises(ConfigError, match="AutoTokenizer cannot load"):
        task(["a", "b"]).load_processor(checkpoint)


def test_backbone_that_does_not_fit_is_refused(checkpoint: str) -> None:
    set_config(intermediate_size=16)(Path(checkpoint))
    with pytest.raises(ConfigError, match=r"weights do not fit its config.json, e.g. bert\."):
        task(["a", "b"]).load_model(checkpoint)


def test_weights_of_another_architecture_are_refused(checkpoint: str) -> None:
    set_config(model_type="roberta")(Path(checkpoint))
    with pytest.raises(ConfigError, match="no weight is one of a RobertaForSequenceClassification"):
        task(["a", "b"]).load_model(checkpoint)


def test_weights_are_the_checkpoint_in_fp32(tmp_path: Path) -> None:
    folder = tiny_checkpoint(tmp_path / "model", ["a", "b"])
    half = AUTO.from_pretrained(folder).half()
    half.save_pretrained(folder)
    loaded = task(["a", "b"]).load_model(folder)
    assert loaded.dtype == torch.float32
    for name, value in half.state_dict().items():
        torch.testing.assert_close(loaded.state_dict()[name], value.float(), rtol=0, atol=0)
    assert task(["a", "b"]).load_model(folder, dtype="float16").dtype == torch.float16


def test_model_of_changed_shapes_loads_as_it_is(checkpoint: str, tmp_path: Path) -> None:
    model = AUTO.from_pretrained(checkpoint)
    layer = "encoder.layer.0"
    shapes = {f"{layer}.intermediate.dense": {"out_features": 4}, f"{layer}.output.dense": {"in_features": 4}}
    apply_shapes(model, shapes)
    record_shapes(model, shapes)
    model.save_pretrained(tmp_path / "small")
    loaded = task(["a", "b"]).load_model(str(tmp_path / "small"))
    assert loaded.config.id2label == {0: "a", 1: "b"}
    for name, value in model.state_dict().items():
        torch.testing.assert_close(loaded.state_dict()[name], value, rtol=0, atol=0)


# Labels


def test_same_labels_keep_the_order_of_the_model(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = tiny_checkpoint(tmp_path / "model", ["z", "a", "m"])
    built = task(["a", "m", "z"])
    built.load_processor(folder)
    assert built.label_names == ["z", "a", "m"]
    encoded = built.encode(Dataset.from_dict({"text": ["a", "a"], "label": ["z", "m"]}))
    assert list(encoded["labels"]) == [0, 2]
    assert built.load_model(folder).config.id2label == {0: "z", 1: "a", 2: "m"}
    assert not caplog.records


def test_another_order_after_encoding_is_refused(tmp_path: Path) -> None:
    first, second = tiny_checkpoint(tmp_path / "first"), tiny_checkpoint(tmp_path / "second", ["b", "a"])
    built = task(["a", "b"])
    built.load_processor(first)
    with pytest.raises(ConfigError, match=r"labels in the order b, a, but the data is encoded in the order a, b"):
        built.load_model(second)


def test_head_of_another_size_starts_anew_with_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = tiny_checkpoint(tmp_path / "model", ["x", "y"])
    built = task(["a", "b", "c"])
    built.load_processor(folder)
    model = built.load_model(folder)
    assert model.classifier.out_features == 3
    assert [record.levelno for record in caplog.records if record.name == "hf_efficient.task"] == [logging.WARNING]
    assert "classifier.bias, classifier.weight" in caplog.text


def test_head_of_the_same_size_for_other_labels_warns(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = tiny_checkpoint(tmp_path / "model", ["x", "y"])
    built = task(["a", "b"])
    built.load_processor(folder)
    assert built.load_model(folder).config.id2label == {0: "a", 1: "b"}
    assert "head for other labels (x, y)" in caplog.text


def test_unnamed_labels_are_named_without_a_warning(checkpoint: str, caplog: pytest.LogCaptureFixture) -> None:
    built = task(["a", "b"])
    built.load_processor(checkpoint)
    assert built.load_model(checkpoint).config.id2label == {0: "a", 1: "b"}
    assert not caplog.records


def test_finished_model_brings_its_labels(tmp_path: Path) -> None:
    folder = tiny_checkpoint(tmp_path / "model", ["z", "a", "m"])
    built = task(None)
    assert built.load_model(folder).num_labels == 3
    assert built.label_names == ["z", "a", "m"]

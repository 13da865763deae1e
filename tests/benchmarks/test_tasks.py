"""The benchmark compares what it says it compares; its figures are not judged here."""

from pathlib import Path

import pytest
from transformers import Seq2SeqTrainer, Trainer

from benchmarks.tasks import ROWS, Row, sides, with_stock_trainer
from hf_efficient.task import get_task
from hf_efficient.trainer import EfficientMixin


@pytest.mark.parametrize(
    ("name", "stock"),
    [("image-classification", Trainer), ("object-detection", Trainer), ("summarization", Seq2SeqTrainer)],
)
def test_stock_is_what_ours_extends(name: str, stock: type) -> None:
    task_class = get_task(name)
    task = task_class(task_class.data_settings(train="unused"))
    made = with_stock_trainer(task)
    assert made.trainer_class is stock
    assert isinstance(made, task_class)
    assert issubclass(task.trainer_class, EfficientMixin)


def test_ours_is_trained_where_the_recipe_has_optimizations() -> None:
    assert sides(Row("image-classification", dict, {})) == ("stock", "ours")
    assert sides(Row("speech-recognition", dict, {})) == ("stock",)


def test_rows_change_the_first_stage_alone(data_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_EFFICIENT_DATA", str(data_folder))
    recipe = ROWS["crossner"].load()
    assert recipe.data["test"] == str(data_folder / "crossner" / "validation.jsonl")
    assert [stage.training["num_train_epochs"] for stage in recipe.stages.values()] == [8, 8]
    assert [stage.training["learning_rate"] for stage in recipe.stages.values()] == [5e-4, 5e-4]
    assert [stage.training["per_device_train_batch_size"] for stage in recipe.stages.values()] == [32, 16]

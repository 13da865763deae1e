"""Banking77 (77 intents of bank customers, CC-BY-4.0) and all-MiniLM-L6-v2, as the benchmarks use them."""

import copy
import functools
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from datasets import Dataset, DatasetDict
from transformers import PrinterCallback, Trainer, set_seed

from hf_efficient import EfficientTrainer, EfficientTrainingArguments
from hf_efficient.data import load
from hf_efficient.pretrained import DEFAULT_MODEL
from hf_efficient.task import Task, get_task

MAX_LENGTH = 64
LEARNING_RATE = 3e-4
BATCH = 32
FAST = {"length_batching": {}, "precision": {"dtype": "bf16"}}
"""Optimizations of trainings that are not measured themselves."""


@functools.cache
def banking77() -> tuple[Task, DatasetDict]:
    """The task with its processor loaded, and the encoded splits."""
    task, data = _loaded()
    task.check(data)
    task.load_processor(DEFAULT_MODEL)
    return task, DatasetDict({name: task.encode(split) for name, split in data.items()})


def encoded_test(processor: Any) -> Dataset:
    """The test rows as another tokenizer encodes them, one with a trimmed vocabulary."""
    task = copy.copy(banking77()[0])
    task.processor = processor
    return task.encode(_loaded()[1]["test"])


def folder_of_data(name: str) -> Path:
    """Where a public data set is; without it the benchmark ends here."""
    folder = Path(os.environ.get("HF_EFFICIENT_DATA", Path(__file__).parents[2] / "shared" / "data")) / name
    if not folder.is_dir():
        sys.exit(f"no {name} at {folder}: see CONTRIBUTING.md, and set HF_EFFICIENT_DATA")
    return folder


def _loaded() -> tuple[Task, DatasetDict]:
    folder = folder_of_data("banking77")
    task_class = get_task("text-classification")
    settings = task_class.data_settings(
        train=str(folder / "train.csv"), test=str(folder / "test.csv"), max_length=MAX_LENGTH
    )
    return task_class(settings), load(settings)


@contextmanager
def trainer(
    seed: int = 0,
    train: Any = None,
    model: str = DEFAULT_MODEL,
    cls: type[Trainer] = EfficientTrainer,
    **arguments: Any,
) -> Iterator[Trainer]:
    """A trainer of ``model`` on Banking77, whose output folder goes when the block ends.

    Args:
        train: training set; the whole one when None.
        arguments: training arguments on top of the defaults here (learning rate, batch size, nothing saved or logged).
    """
    task, data = banking77()
    defaults = {
        "learning_rate": LEARNING_RATE,
        "warmup_steps": 0.1,
        "per_device_train_batch_size": BATCH,
        "per_device_eval_batch_size": 64,
        "num_train_epochs": 3,
        "save_strategy": "no",
        "logging_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
        "measure_seconds": 0,
        "seed": seed,
    }
    with TemporaryDirectory() as folder:
        set_seed(seed)
        made = cls(
            model=task.load_model(model),
            args=EfficientTrainingArguments(folder, **{**defaults, **arguments}),
            train_dataset=data["train"] if train is None else train,
            eval_dataset=data["validation"],
            data_collator=task.collator(),
            processing_class=task.processor,
            compute_metrics=task.compute_metrics,
        )
        made.remove_callback(PrinterCallback)
        yield made


def accuracy(made: Trainer, count: int | None = None) -> float:
    """Accuracy of the trainer's model on the test set, or on its first ``count`` rows."""
    test = banking77()[1]["test"]
    test = test if count is None else test.select(range(count))
    return made.evaluate(test, metric_key_prefix="test")["test_accuracy"]

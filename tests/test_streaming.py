"""Data sets larger than the memory that a training may take: streamed, or mapped from disk."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from transformers import TrainerCallback, set_seed

from hf_efficient import EfficientTrainer, EfficientTrainingArguments
from hf_efficient.reading import read_file
from tests.test_contract import StopMain
from tests.test_parity import assert_same_tensors, build
from tests.tiny import LENGTH, VOCABULARY

ALLOWED_MB = 40
ROWS, ROW_GROUP, TOKENS, BATCH = 12_800, 32, 4000, 64  # 8 bytes each: 1 MB a row group, 410 MB in all
ON = {"precision": {"dtype": "bf16"}, "sparse_embeddings": {"min_rows": 8}}


def row_groups() -> Iterator[dict[str, np.ndarray]]:
    """Made up: more than ten times the allowed memory. The first token tells the class."""
    assert ROWS * TOKENS * 8 >= 10 * ALLOWED_MB * 1e6
    generator = np.random.default_rng(0)
    for _ in range(ROWS // ROW_GROUP):
        tokens = generator.integers(4, VOCABULARY, (ROW_GROUP, TOKENS))
        yield {"input_ids": tokens, "labels": tokens[:, 0] % 2}


def rows() -> Iterator[dict[str, np.ndarray]]:
    for group in row_groups():
        for tokens, label in zip(group["input_ids"], group["labels"], strict=True):
            yield {"input_ids": tokens, "labels": label}


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    path = tmp_path_factory.mktemp("large") / "train.parquet"
    schema = pa.schema({"input_ids": pa.list_(pa.int64()), "labels": pa.int64()})
    with pq.ParquetWriter(path, schema, compression="zstd") as writer:
        for group in row_groups():
            writer.write_table(pa.table({name: list(values) for name, values in group.items()}, schema=schema))
    yield path
    path.unlink()


class Memory(TrainerCallback):
    """Memory of its own that this process holds at the end of each step, in MB: without pages mapped from files."""

    def __init__(self) -> None:
        self.held: list[float] = []

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        told = psutil.Process().memory_info()
        self.held.append((told.rss - told.shared) / 1e6)


def head_of_each(batch: dict[str, Any]) -> dict[str, Any]:
    return {"input_ids": [row[:LENGTH] for row in batch["input_ids"]], "labels": batch["labels"]}  # numpy's, not lists


def streamed() -> Any:
    return (
        datasets.IterableDataset.from_generator(rows)
        .with_format("numpy")
        .map(head_of_each, batched=True, batch_size=ROW_GROUP)
    )


def mapped(file: Path) -> Any:
    """As recipes read files: once, into a file that is mapped into memory."""
    return (
        read_file(file)
        .with_format("numpy")
        .map(head_of_each, batched=True, batch_size=ROW_GROUP, writer_batch_size=ROW_GROUP)
    )


def trainer(folder: Path, data: Any, callbacks: Any = (), **options: Any) -> Any:
    options = {
        "max_steps": ROWS // BATCH,
        "per_device_train_batch_size": BATCH,
        "optimizations": ON,
        "measure_seconds": 0,
        "save_steps": 4,
        **options,
    }
    given = {"train_dataset": data, "eval_dataset": None, "callbacks": list(callbacks)}
    return build(EfficientTrainer, EfficientTrainingArguments, folder, given=given, save_total_limit=2, **options)


def check_memory(folder: Path, data: Any) -> None:
    memory = Memory()
    made = trainer(folder, data, [memory], save_strategy="no")
    made.train()
    assert made.state.global_step == ROWS // BATCH
    assert max(memory.held) - memory.held[0] < ALLOWED_MB
    losses = [entry["loss"] for entry in made.state.log_history if "loss" in entry]
    assert sum(losses[-10:]) < 0.5 * sum(losses[:10])


def test_a_stream_trains_in_bounded_memory(tmp_path: Path) -> None:
    check_memory(tmp_path / "out", streamed())


def test_a_file_trains_in_bounded_memory(tmp_path: Path, file: Path) -> None:
    check_memory(tmp_path / "out", mapped(file))


def test_resumes_in_the_middle_of_a_stream(tmp_path: Path) -> None:
    few = {"max_steps": 10}
    results = []
    for folder, stops in (("undisturbed", []), ("stopped", [StopMain()])):
        made = trainer(tmp_path / folder, streamed(), stops, **few)
        set_seed(0)
        made.train()
        results.append(made)
    resumed = trainer(tmp_path / "stopped", streamed(), **few)
    set_seed(0)
    resumed.train(resume_from_checkpoint=str(tmp_path / "stopped" / "checkpoint-4"))
    assert_same_tensors(dict(results[0].model.state_dict()), dict(resumed.model.state_dict()))

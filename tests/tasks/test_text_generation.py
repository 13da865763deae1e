"""Text generation: blocks without a token lost, losses per token, prompts on the left of what is generated."""

import logging
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset, DatasetDict
from transformers import EvalPrediction, pipeline

from hf_efficient import EfficientTrainer
from hf_efficient.data import load
from hf_efficient.errors import ConfigError, DataError
from hf_efficient.measure import measure
from hf_efficient.tasks.text_generation import TextGeneration, TextGenerationData, ended, packed
from tests.tasks.conftest import END, task_trainer, tiny_gpt2

TEXTS = ["my card is lost", "how do i pay", "where is the money", "a new card", "no", "do not pay the app now"] * 2


@pytest.fixture
def checkpoint(tmp_path: Path) -> str:
    return tiny_gpt2(tmp_path / "model", layers=1)


def splits(texts: list = TEXTS) -> DatasetDict:
    rows = Dataset.from_dict({"text": texts})
    return DatasetDict({"train": rows, "validation": rows})


def ready(model: str, **settings: Any) -> TextGeneration:
    built = TextGeneration(TextGenerationData(train="unused", **{"block_size": 16, **settings}))
    built.check(splits())
    built.load_processor(model)
    return built


def trainer(built: TextGeneration, model: str, folder: Path, **settings: Any) -> Any:
    options = {"per_device_eval_batch_size": 2, "learning_rate": 1e-2, **settings}
    return task_trainer(built, built.load_model(model), splits(), folder, **options)


# Encoding


def test_packing_loses_no_token(checkpoint: str) -> None:
    built = ready(checkpoint)
    rows = built.encode(splits()["train"])
    whole = [token for text in ended(built.processor(TEXTS)["input_ids"], END) for token in text]
    assert [token for row in rows["input_ids"] for token in row] == whole
    assert [len(row) for row in rows["input_ids"]][:-1] == [16] * (len(whole) // 16)
    assert list(rows["labels"]) == list(rows["input_ids"])


def test_blocks_and_ends() -> None:
    assert packed([[1, 2], [3], [4, 5]], 4) == [[1, 2, 3, 4]], "nothing is predicted in a block of one token"
    assert packed([[1, 2], [3, 4, 5, 6]], 4) == [[1, 2, 3, 4], [5, 6]]
    assert ended([[1, 9], [1]], 9) == [[1, 9], [1, 9]]
    assert ended([[1]], None) == [[1]]


def test_rows_of_their_own(checkpoint: str, caplog: pytest.LogCaptureFixture) -> None:
    built = ready(checkpoint, pack=False, block_size=6)
    with caplog.at_level(logging.WARNING):
        rows = built.encode(splits()["train"])
    assert len(rows) == len(TEXTS)
    assert "of 12 texts fill data.block_size=6" in caplog.text
    batch = built.collator()(list(rows.select(range(5))))
    assert batch["labels"][4].tolist()[-1] == -100
    assert batch["attention_mask"][4].tolist()[-1] == 0
    assert END in batch["labels"][4].tolist(), "the end is learnt"
    assert torch.isfinite(built.load_model(checkpoint)(**batch).loss)


def test_prompts_end_where_generation_begins(checkpoint: str) -> None:
    built = ready(checkpoint, block_size=8)
    prompts = built.requests(splits()["train"])
    batch = built.collator()(list(prompts))
    assert len(prompts) == len(TEXTS)
    assert batch["input_ids"].shape[1] == 4, "half of a block is left for new tokens"
    assert batch["attention_mask"][:, -1].all()
    assert END not in batch["input_ids"]
    given = built.preprocess([built.raw(row) for row in splits()["train"]])
    assert all(torch.equal(given[name], batch[name]) for name in given)


def test_block_that_the_model_cannot_take(checkpoint: str) -> None:
    with pytest.raises(ConfigError, match=r"data.block_size is 64, but model .* takes at most 32 tokens"):
        ready(checkpoint, block_size=64)


def test_no_text() -> None:
    with pytest.raises(DataError, match=r"data.train: column 'text' must hold text, got int64"):
        TextGeneration(TextGenerationData(train="unused")).check(splits([1, 2]))


# Metrics


@pytest.mark.parametrize("pack", [True, False])
def test_metrics_are_the_model_s_loss_per_token(checkpoint: str, tmp_path: Path, pack: bool) -> None:
    """Over batches padded to different lengths, and without any logits kept."""
    built = ready(checkpoint, pack=pack)
    made = trainer(built, checkpoint, tmp_path / "out")
    said = made.predict(built.encode(splits()["validation"]))
    assert said.predictions.ndim == 2
    total, tokens = 0.0, 0
    with torch.no_grad():
        for row in built.encode(splits()["validation"]):
            ids = torch.tensor([row["input_ids"]])
            total += made.model(input_ids=ids, labels=ids).loss.item() * (ids.shape[1] - 1)
            tokens += ids.shape[1] - 1
    assert said.metrics["test_loss"] == pytest.approx(total / tokens, rel=1e-4)
    assert said.metrics["test_perplexity"] == pytest.approx(math.exp(total / tokens), rel=1e-3)


def test_padding_does_not_count() -> None:
    labels = np.array([[5, 6, 7], [5, 6, -100]])
    found = TextGeneration(TextGenerationData(train="unused")).compute_metrics(
        EvalPrediction(np.array([[1.0, 2.0], [3.0, -100.0]]), labels)
    )
    assert found["loss"] == pytest.approx(2.0)
    assert found["perplexity"] == pytest.approx(math.exp(2))


def test_baseline_goes_by_frequency(checkpoint: str) -> None:
    built = ready(checkpoint, pack=False)
    name, found = built.baseline(splits(["a a a no", "no"]), "validation")
    a, no = (built.processor.convert_tokens_to_ids(word) for word in ("a", "no"))
    tokens = [*[a] * 3, no, END, no, END]
    share = {token: (tokens.count(token) + 1) / (len(tokens) + len(built.processor)) for token in (a, no, END)}
    assert found["loss"] == pytest.approx(-np.mean([math.log(share[token]) for token in tokens]))
    assert "frequency" in name


# Training


def test_trains_and_answers_in_a_pipeline(checkpoint: str, tmp_path: Path) -> None:
    built = ready(checkpoint)
    made = trainer(built, checkpoint, tmp_path / "out", num_train_epochs=60)
    assert type(made) is EfficientTrainer
    made.train()
    assert made.evaluate()["eval_perplexity"] < built.baseline(splits(), "validation")[1]["perplexity"] / 2
    made.save_model(str(tmp_path / "saved"))
    write = pipeline(built.pipeline, model=str(tmp_path / "saved"), device="cpu")
    assert len(write(built.raw(splits()["train"][0]), max_new_tokens=4)[0]["generated_text"]) > len(TEXTS[0])


def test_what_is_timed_generates_equally_much(checkpoint: str) -> None:
    built = ready(checkpoint)
    rows = splits()["train"]
    timing = measure(
        built.runtime(built.load_model(checkpoint).eval()), list(built.requests(rows)), built.collator(), repeats=1,
        seconds=0, warmup=0, preprocess=built.preprocess, raw=[built.raw(row) for row in rows],
    )  # fmt: skip
    assert timing.new_tokens == 8


@pytest.mark.data
def test_public_data(data_folder: Path) -> None:
    files = {split: str(data_folder / "scitldr" / f"{split}.jsonl") for split in ("train", "validation", "test")}
    settings = TextGenerationData(**files, text="document")
    data = load(settings)
    built = TextGeneration(settings)
    built.check(data)
    built.load_processor("new:gpt2-tiny")
    rows = built.encode(data["validation"])
    assert {len(row) for row in rows["input_ids"][:-1]} == {128}

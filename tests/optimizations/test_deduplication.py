"""deduplication on data sets of each kind; what every optimization does is in `tests/test_contract.py`."""

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset

from hf_efficient import (
    ConfigError,
    Deduplication,
    EfficientTrainer,
    EfficientTrainingArguments,
    MissingDependencyError,
)
from hf_efficient.errors import NoEffectWarning
from tests.test_parity import build
from tests.tiny import Examples, image_examples, text_examples, token_examples

KINDS = {"text": text_examples, "token": token_examples, "vision": image_examples}


def doubled(kind: str) -> Examples:
    """48 examples, the first twelve of them again, and three of these with other labels."""
    rows = KINDS[kind]().examples
    other = [{**row, "labels": torch.zeros_like(torch.as_tensor(row["labels"])) - 100} for row in rows[:3]]
    return Examples([*rows, *rows[:12], *other])


@pytest.mark.parametrize("kind", KINDS)
def test_exact_duplicates_of_any_kind(kind: str, tmp_path: Path) -> None:
    optimization = Deduplication(near=1.0)
    kept = optimization.prepare_data(doubled(kind))
    assert len(kept) == 48 + 3
    told = {"examples": 63, "exact_duplicates": 12, "near_duplicates": 0, "same_inputs_other_labels": 3}
    assert optimization.describe() == told
    assert [kept.indices[index] for index in (0, 47, 48, 50)] == [0, 47, 60, 62]


def test_a_hub_data_set_stays_one() -> None:
    rows = [{"input_ids": row["input_ids"].tolist(), "labels": row["labels"]} for row in doubled("text").examples]
    kept = Deduplication().prepare_data(Dataset.from_list(rows))
    assert isinstance(kept, Dataset)
    assert kept["input_ids"][:48] == [row["input_ids"] for row in rows[:48]]
    assert len(kept) == 51


def test_is_trained_on_what_stays(tmp_path: Path) -> None:
    data = Examples(doubled("text").examples[:60])
    options = {"optimizations": {"deduplication": {}}, "measure_seconds": 0}
    trainer = build(EfficientTrainer, EfficientTrainingArguments, tmp_path, given={"train_dataset": data}, **options)
    trainer.train()
    assert trainer.state.global_step == 2 * 6
    assert trainer.train_dataset is data


def test_a_stream_is_refused() -> None:
    with pytest.raises(ConfigError, match="a streamed data set has no end"):
        Deduplication().prepare_data(Dataset.from_list([{"input_ids": [1]}]).to_iterable_dataset())


def test_nothing_to_drop() -> None:
    data = text_examples()
    with pytest.warns(NoEffectWarning, match="no duplicates in 48 examples"):
        assert Deduplication().prepare_data(data) is data


def test_without_the_library(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "datasketch", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingDependencyError, match="datasketch"):
        Deduplication().check(None)  # type: ignore[arg-type]
    Deduplication(near=1.0).check(None)  # type: ignore[arg-type]


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "near": ({"near": 0.0}, "near must be above 0 and at most 1, got 0"),
    "ngram": ({"ngram": 0}, "ngram must be at least 1, got 0"),
    "permutations": ({"permutations": 4}, "permutations must be at least 16, got 4"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_settings(case: str) -> None:
    settings, message = BAD[case]
    with pytest.raises(ConfigError, match=message):
        Deduplication(**settings)

"""Steps whose gradients are not finite are left out, counted, followed by smaller ones, and too many end a training."""

import logging
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import Trainer, TrainerCallback, TrainingArguments

from hf_efficient import ConfigError, EfficientTrainer, EfficientTrainingArguments
from hf_efficient.gradient_guard import BACKOFF, finite
from tests.test_parity import assert_same_tensors, build, train


class Poisoned(TrainerCallback):
    """Gradients of some steps are not finite; notes what the optimizer then did, and with which rate."""

    def __init__(self, *steps: int, value: float = math.nan):
        self.steps, self.value = steps, value
        self.moved: list[bool] = []
        self.rates: list[float] = []
        self.scheduled: list[float] = []

    def on_step_begin(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        self.before = [each.detach().clone() for each in model.parameters()]
        parameter = next(iter(model.parameters()))
        if state.global_step + 1 in self.steps:
            handle = parameter.register_hook(lambda grad: torch.full_like(grad, self.value))
            self.handle = handle

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.rates.append(kwargs["optimizer"].param_groups[0]["lr"])

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        if state.global_step in self.steps:
            self.handle.remove()
        pairs = zip(self.before, model.parameters(), strict=True)
        self.moved.append(any(not torch.equal(before, now) for before, now in pairs))


def made(folder: Path, poison: TrainerCallback, cls: type = EfficientTrainer, **options: Any) -> Any:
    args = EfficientTrainingArguments if cls is EfficientTrainer else TrainingArguments
    return build(cls, args, folder, given={"callbacks": [poison]}, lr_scheduler_type="constant", **options)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_is_left_out_and_counted(tmp_path: Path, value: float, caplog: pytest.LogCaptureFixture) -> None:
    poison = Poisoned(2, value=value)
    one = made(tmp_path, poison, max_skipped_steps=2)
    with caplog.at_level(logging.WARNING, logger="hf_efficient.gradient_guard"):
        one.train()
    assert [index for index, moved in enumerate(poison.moved, 1) if not moved] == [2]
    assert one.state.log_history[-1]["skipped_steps"] == 1
    assert "step 2 is left out" in caplog.text
    assert all(each.isfinite().all() for each in one.model.parameters())


def test_stock_takes_it(tmp_path: Path) -> None:
    one = made(tmp_path, Poisoned(2), Trainer)
    one.train()
    assert any(each.isnan().any() for each in one.model.parameters())


def test_smaller_steps_follow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hf_efficient.gradient_guard.RECOVERY_STEPS", 3)
    poison = Poisoned(2, 3)
    one = made(tmp_path, poison, max_skipped_steps=2, learning_rate=0.01)
    one.train()
    factors = [rate / 0.01 for rate in poison.rates]
    assert factors[:8] == pytest.approx([1, BACKOFF, BACKOFF**2, BACKOFF**2, BACKOFF**2, 1, 1, 1])
    assert one.optimizer.param_groups[0]["lr"] == 0.01


def test_too_many_in_a_row_end_the_training(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"3 steps in a row were not finite, the last at step 4: lower learning_rate"):
        made(tmp_path, Poisoned(2, 3, 4), max_skipped_steps=2).train()


def test_without_any_it_changes_nothing(tmp_path: Path) -> None:
    stock = build(Trainer, TrainingArguments, tmp_path / "stock")
    guarded = build(EfficientTrainer, EfficientTrainingArguments, tmp_path / "guarded", max_skipped_steps=1)
    train(stock, guarded)
    assert_same_tensors(dict(stock.model.state_dict()), dict(guarded.model.state_dict()))


def test_goes_with_optimizations(tmp_path: Path) -> None:
    poison = Poisoned(2)
    options = {"optimizations": {"precision": {"dtype": "bf16"}, "length_batching": {}}, "measure_seconds": 0}
    made(tmp_path, poison, max_skipped_steps=2, **options).train()
    assert [index for index, moved in enumerate(poison.moved, 1) if not moved] == [2]


def test_a_wrong_number_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="max_skipped_steps must be at least 1, got 0; null takes every step"):
        EfficientTrainingArguments(str(tmp_path), max_skipped_steps=0)


def test_sparse_gradients() -> None:
    embedding = nn.Embedding(5, 2, sparse=True)
    assert finite(embedding.parameters())  # none yet
    embedding(torch.tensor([1, 1])).sum().backward()
    assert finite(embedding.parameters())
    embedding.zero_grad()
    (embedding(torch.tensor([1])).sum() * math.inf).backward()
    assert not finite(embedding.parameters())

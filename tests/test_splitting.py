"""Where memory runs out, batches are taken in parts, and the training is the one that it would have been."""

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import TrainingArguments

from hf_efficient import ConfigError, EfficientTrainer, EfficientTrainingArguments
from tests.test_parity import assert_same_tensors, build, train
from tests.test_trainer import Doubled, trainer
from tests.tiny import text_model

FITS = 3
SGD: dict[str, Any] = {"optim": "sgd", "learning_rate": 0.3}  # Adam blows up rounding where the true gradient is zero


class Full(nn.Module):
    """A memory that holds so many examples in a forward pass, or in a backward pass."""

    def __init__(self, fits: int, backward: bool):
        super().__init__()
        self.fits, self.backward, self.failed = fits, backward, 0

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        if len(hidden) > self.fits:
            if not self.backward:
                self._fail()
            elif hidden.requires_grad:
                hidden.register_hook(lambda _: self._fail())
        return hidden

    def _fail(self) -> None:
        self.failed += 1
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")


def model(full: Full | None = None) -> Any:
    made = text_model(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    if full is not None:
        made.bert.embeddings.register_forward_hook(lambda module, given, out: full(out))
    return made


def pair(folder: Path, full: Full, callbacks: Any = (), **options: Any) -> tuple[Any, Any]:
    given = {"callbacks": list(callbacks)}
    whole = trainer(folder / "whole", {"model": model(), **given}, **SGD, **options)
    split = trainer(folder / "split", {"model": model(full), **given}, split_on_out_of_memory=True, **SGD, **options)
    train(whole, split)
    return whole, split


def assert_close(whole: Any, split: Any) -> None:
    weights = split.model.state_dict()
    for name, weight in whole.model.state_dict().items():
        torch.testing.assert_close(weights[name], weight, rtol=1e-4, atol=1e-5, msg=name)
    losses = [[entry["loss"] for entry in one.state.log_history if "loss" in entry] for one in (whole, split)]
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)


OPTIONS: dict[str, dict[str, Any]] = {
    "nothing on": {},
    "accumulated": {"gradient_accumulation_steps": 3},
    "a loss of ours": {"callbacks": [Doubled]},
    "weighted batches": {"optimizations": {"length_batching": {}}},
    "smoothed labels": {"label_smoothing_factor": 0.1},
}


@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.parametrize("name", OPTIONS)
def test_trains_the_same(tmp_path: Path, name: str, backward: bool, caplog: pytest.LogCaptureFixture) -> None:
    full = Full(FITS, backward)
    with caplog.at_level(logging.WARNING, logger="hf_efficient.splitting"):
        assert_close(*pair(tmp_path, full, **OPTIONS[name]))
    assert 0 < full.failed < 6  # not again and again
    assert len(caplog.records) == full.failed


def test_what_fits_is_stock(tmp_path: Path) -> None:
    stock = build(EfficientTrainer, TrainingArguments, tmp_path / "stock")
    ours = build(EfficientTrainer, EfficientTrainingArguments, tmp_path / "ours", split_on_out_of_memory=True)
    train(stock, ours)
    assert_same_tensors(dict(stock.model.state_dict()), dict(ours.model.state_dict()))


def test_an_example_that_does_not_fit_alone(tmp_path: Path) -> None:
    one = trainer(tmp_path, {"model": model(Full(0, False))}, split_on_out_of_memory=True)
    with pytest.raises(torch.OutOfMemoryError):
        one.train()


def test_other_errors_pass(tmp_path: Path) -> None:
    made = model()
    made.register_forward_pre_hook(lambda module, given: (_ for _ in ()).throw(RuntimeError("shapes")))
    with pytest.raises(RuntimeError, match="shapes"):
        trainer(tmp_path, {"model": made}, split_on_out_of_memory=True).train()


def test_several_processes_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(EfficientTrainingArguments, "world_size", 2)
    with pytest.raises(ConfigError, match="here are 2"):
        trainer(tmp_path, split_on_out_of_memory=True)

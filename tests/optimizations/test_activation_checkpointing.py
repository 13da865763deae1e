"""Activation checkpointing: the same weights with less memory."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import BertForSequenceClassification, Trainer, TrainingArguments

from hf_efficient import (
    ActivationCheckpointing,
    ConfigError,
    EfficientTrainer,
    EfficientTrainingArguments,
    NoEffectWarning,
)
from hf_efficient.functional.memory import TensorBytes
from tests.effects import train
from tests.test_parity import assert_same_tensors, build
from tests.tiny import KINDS, LAYERS, text_model


def trainer(folder: Path, settings: Any = None, kind: str = "text", **options: Any) -> Any:
    options = {"optimizations": {"activation_checkpointing": settings or {}}, "measure_seconds": 0, **options}
    return build(EfficientTrainer, EfficientTrainingArguments, folder, kind, **options)


@pytest.mark.parametrize("kind", KINDS)
def test_same_weights_with_dropout(tmp_path: Path, kind: str) -> None:
    stock = train(build(Trainer, TrainingArguments, tmp_path / "stock", kind))
    ours = train(trainer(tmp_path / "ours", kind=kind))
    assert ours.optimizations[0].describe()["checkpointed_layers"] >= LAYERS
    assert_same_tensors(dict(stock.model.state_dict()), dict(ours.model.state_dict()))


def test_every_n_layers_lies_between(tmp_path: Path) -> None:
    peaks = []
    for every in (1, 2, None):
        if every is None:
            one = build(Trainer, TrainingArguments, tmp_path)
        else:
            one = train(trainer(tmp_path, {"every_n_layers": every}, max_steps=1))
            assert one.optimizations[0].describe() == {"checkpointed_layers": {1: 3, 2: 2}[every], "layers": LAYERS}
        batch = one.data_collator([one.train_dataset[index] for index in range(8)])
        with TensorBytes() as counted:
            one.model.train()(**batch).loss.backward()
        peaks.append(counted.peak)
    assert peaks == sorted(peaks)
    assert len(set(peaks)) == 3


class Uncheckpointed(BertForSequenceClassification):
    supports_gradient_checkpointing = False


def test_model_without_support(tmp_path: Path) -> None:
    model = Uncheckpointed(text_model().config)
    with pytest.raises(ConfigError, match="does not work for Uncheckpointed"):
        trainer(tmp_path, given={"model": model})


def test_model_without_support_from_model_init(tmp_path: Path) -> None:
    one = trainer(tmp_path, given={"model_init": lambda: Uncheckpointed(text_model().config)})
    with pytest.raises(ConfigError, match="does not work for Uncheckpointed"):
        one.train()


def test_arguments_that_say_it_already() -> None:
    args = TrainingArguments("out", use_cpu=True, activation_checkpointing=True)
    with pytest.warns(NoEffectWarning, match="activation_checkpointing"):
        assert ActivationCheckpointing().configure(args) is args
    assert ActivationCheckpointing(every_n_layers=2).configure(args).activation_checkpointing_kwargs == {
        "use_reentrant": False,
        "every_n_layers": 2,
    }


def test_keeps_other_settings_of_the_arguments() -> None:
    given = {"preserve_rng_state": False}
    args = TrainingArguments("out", use_cpu=True, activation_checkpointing_kwargs=given)
    changed = ActivationCheckpointing().configure(args)
    assert changed.activation_checkpointing
    assert changed.activation_checkpointing_kwargs == {"use_reentrant": False, "preserve_rng_state": False}


def test_bad_setting() -> None:
    with pytest.raises(ConfigError, match="every_n_layers must be at least 1, got 0"):
        ActivationCheckpointing(every_n_layers=0)


def test_frozen_embeddings_still_train_the_layers(tmp_path: Path) -> None:
    model = text_model()
    model.bert.embeddings.requires_grad_(False)
    before = model.bert.encoder.layer[0].output.dense.weight.clone()
    train(trainer(tmp_path, given={"model": model}))
    assert not torch.equal(before, model.bert.encoder.layer[0].output.dense.weight)

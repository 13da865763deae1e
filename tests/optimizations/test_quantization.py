"""Quantization-aware training as users set it up; what every optimization does is in `tests/test_contract.py`."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForSequenceClassification

from hf_efficient import ConfigError, EfficientTrainer, EfficientTrainingArguments
from hf_efficient.candidates import CANDIDATES
from hf_efficient.functional.fake_quant import fake_quantize_weight, fixed_point
from hf_efficient.low_bit import LOW_BIT
from hf_efficient.optimizations.quantization import TARGETS, Quantization
from hf_efficient.trained_ranges import trained_ranges
from tests.test_parity import build


def trained(folder: Path, **settings: Any) -> Any:
    options = {"optimizations": {"quantization": settings}, "measure_seconds": 0}
    trainer = build(EfficientTrainer, EfficientTrainingArguments, folder, **options)
    trainer.train()
    return trainer


def linear(trainer: Any) -> torch.Tensor:
    return trainer.model.bert.encoder.layer[0].intermediate.dense.weight.detach()


def test_targets_are_ways_to_export() -> None:
    assert set(TARGETS) - {"weights"} <= {"-".join(key) for key in CANDIDATES} | set(LOW_BIT)


@pytest.mark.parametrize("target", TARGETS)
def test_weights_end_on_the_grid_of_the_target(target: str, tmp_path: Path) -> None:
    trainer = trained(tmp_path, target=target)
    weight = linear(trainer)
    scheme = TARGETS[target]
    assert torch.allclose(fake_quantize_weight(weight, scheme.bits, scheme.weights, scheme.group), weight, atol=1e-7)
    assert not any(module._forward_pre_hooks for module in trainer.model.modules())
    described = trainer.optimizations[0].describe()
    assert described["target"] == target
    assert described["from_step"] == trainer.state.max_steps / 2
    assert described["rounded_modules"] > 10
    final = AutoModelForSequenceClassification.from_pretrained(tmp_path / "final")
    assert (len(list(trained_ranges(final))) > 10) == (scheme.inputs == "static")


def test_fixed_point(tmp_path: Path) -> None:
    trainer = trained(tmp_path, scheme="fixed_point", step=2**-8, computations=True, start=0)
    for name, parameter in trainer.model.named_parameters():
        assert torch.equal(parameter, fixed_point(parameter, 2**-8)), name


def test_training_makes_up_for_rounding(tmp_path: Path) -> None:
    """In coarse steps, learning on after rounding began fits what is learnt better than rounding at the end."""
    losses = []
    for name, start in (("with", 0.5), ("without", 0.99)):
        trainer = build(
            EfficientTrainer,
            EfficientTrainingArguments,
            tmp_path / name,
            optimizations={"quantization": {"scheme": "fixed_point", "step": 2**-4, "start": start}},
            num_train_epochs=10,
            measure_seconds=0,
        )
        trainer.train()
        losses.append(trainer.evaluate(trainer.train_dataset)["eval_loss"])
    assert losses[0] < 0.95 * losses[1]


@pytest.mark.parametrize("kind", ["text", "token", "vision"])
def test_cut_taught_and_rounded_in_one_training(kind: str, tmp_path: Path) -> None:
    optimizations = {
        "quantization": {"target": "openvino-static"},
        "distillation": {"teacher": "self"},
        "structured_pruning": {"keep_layers": 2, "keep_ffn": 0.5, "importance": "obs", "calibration_batches": 4},
    }
    arguments = {"optimizations": optimizations, "dense_epochs": 6, "num_train_epochs": 4, "measure_seconds": 0}
    trainer = build(EfficientTrainer, EfficientTrainingArguments, tmp_path, kind, **arguments)
    trainer.train()
    assert {one.name for one in trainer.optimizations if one.describe()} == set(optimizations)
    loaded = type(trainer.model).from_pretrained(trainer.finished).eval()
    linears = [module for module in loaded.modules() if isinstance(module, torch.nn.Linear)]
    for module in linears:
        assert torch.allclose(fake_quantize_weight(module.weight), module.weight, atol=1e-7)
    batch = trainer.collate(trainer.examples(trainer.eval_dataset, 4))
    with torch.no_grad():
        assert torch.equal(loaded(**batch).logits, trainer.model.eval()(**batch).logits)


BAD = {
    "start": ({"start": 1.5}, "start must be from 0 to 1"),
    "target": ({"target": "onnx"}, "target"),
    "group_size": ({"scheme": "int4", "group_size": 1}, "group_size must be at least 2"),
    "step": ({"scheme": "fixed_point", "step": 0.0}, "step must be greater than 0"),
    "computations": ({"computations": True}, "goes with scheme: fixed_point"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_settings(case: str) -> None:
    settings, message = BAD[case]
    with pytest.raises(ConfigError, match=message):
        Quantization(**settings)

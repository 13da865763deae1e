"""Which precision is chosen, and that it is checked per machine."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import TrainingArguments

from hf_efficient import ConfigError, EfficientTrainer, EfficientTrainingArguments, NoEffectWarning, Precision, timing
from hf_efficient.optimizations import precision
from hf_efficient.plan import build_optimizations
from tests.clock import Clock, clock_of
from tests.effects import OutputTypes
from tests.test_parity import build


def trainer(folder: Path, **settings: Any) -> Any:
    options = {"optimizations": {"precision": settings}, "measure_seconds": 0}
    return build(EfficientTrainer, EfficientTrainingArguments, folder, **options)


@pytest.mark.parametrize(("speedup", "chosen"), [(3.0, "bf16"), (0.5, "fp32"), (1.05, "fp32")])
def test_auto_on_a_cpu_takes_what_is_faster(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, speedup: float, chosen: str
) -> None:
    monkeypatch.setattr(precision, "matmul_speedup", lambda dtype: speedup)
    one = trainer(tmp_path)
    assert one.args.bf16 == (chosen == "bf16")
    assert one.accelerator.mixed_precision == ("bf16" if chosen == "bf16" else "no")
    said = one.optimizations[0].describe()
    assert said["dtype"] == chosen
    assert f"{1 / speedup:.2f}" in said["reason"]


@pytest.fixture
def clock() -> Iterator[Clock]:
    yield from clock_of(timing)


def test_products_are_measured(monkeypatch: pytest.MonkeyPatch, clock: Clock) -> None:
    multiplied: list[torch.Size] = []

    def mm(left: torch.Tensor, right: torch.Tensor) -> None:
        multiplied.extend((left.shape, right.shape))
        first = len(multiplied) <= 2
        clock.sleep(9 if first else {torch.float32: 0.3, torch.bfloat16: 0.1}[left.dtype])

    monkeypatch.setattr(torch, "mm", mm)
    assert precision.matmul_speedup(torch.bfloat16, rows=8, width=4, repeats=2) == pytest.approx(3)
    assert multiplied == [(8, 4), (4, 4)] * 2 * (1 + 2)


def test_fp16_does_not_fit_a_cpu(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"fp16 does not work on this machine's cpu device.*bf16"):
        trainer(tmp_path, dtype="fp16")


def test_fp32_overrides_the_arguments() -> None:
    args = TrainingArguments("out", bf16=True, use_cpu=True)
    changed = Precision(dtype="fp32").configure(args)
    assert not changed.bf16
    assert changed.mixed_precision == "no"
    assert args.bf16


def test_same_object_when_nothing_changes() -> None:
    args = TrainingArguments("out", use_cpu=True)
    with pytest.warns(NoEffectWarning):
        assert Precision(dtype="fp32").configure(args) is args


def test_keeps_the_arguments_class() -> None:
    args = EfficientTrainingArguments("out", use_cpu=True, optimizations={"precision": {}}, learning_rate=0.25)
    changed = Precision(dtype="bf16").configure(args)
    assert isinstance(changed, EfficientTrainingArguments)
    assert (changed.learning_rate, changed.bf16) == (0.25, True)


def test_unknown_precision() -> None:
    with pytest.raises(ConfigError, match="fp32"):
        build_optimizations({"precision": {"dtype": "fp12"}})


def test_training_in_bf16_stays_close_to_fp32(tmp_path: Path) -> None:
    losses = {}
    for dtype in ("fp32", "bf16"):
        with pytest.warns(NoEffectWarning) if dtype == "fp32" else contextlib.nullcontext():
            one = trainer(tmp_path / dtype, dtype=dtype)
        one.train()
        losses[dtype] = one.state.log_history[-1]["train_loss"]
    assert losses["bf16"] == pytest.approx(losses["fp32"], rel=0.05)
    assert losses["bf16"] != losses["fp32"]


@pytest.mark.parametrize("options", [{"measure_seconds": 0.05}, {"dense_epochs": 6, "measure_seconds": 0}])
def test_evaluation_and_phases_before_leave_it_on(tmp_path: Path, options: dict[str, Any]) -> None:
    optimizations: dict[str, Any] = {"precision": {"dtype": "bf16"}}
    if "dense_epochs" in options:
        optimizations["structured_pruning"] = {"keep_layers": [0, 1]}
    kinds = OutputTypes()
    given = {"callbacks": [kinds]}
    build(
        EfficientTrainer, EfficientTrainingArguments, tmp_path, given=given, optimizations=optimizations, **options
    ).train()
    assert kinds.dtypes == {torch.bfloat16}


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", ["fp16", "bf16"])
def test_gpu_trains_in_mixed_precision(tmp_path: Path, dtype: str) -> None:
    options = {"optimizations": {"precision": {"dtype": dtype}}, "measure_seconds": 0, "use_cpu": False}
    one = build(EfficientTrainer, EfficientTrainingArguments, tmp_path, **options)
    one.train()
    assert (one.accelerator.scaler is not None) == (dtype == "fp16")
    assert one.state.log_history[-1]["train_loss"] < one.state.log_history[0]["loss"]

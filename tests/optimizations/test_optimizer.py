"""Which optimizer is built, what its state takes, and that embeddings keep 32 bits."""

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import Trainer, TrainingArguments
from transformers.training_args import OptimizerNames

from hf_efficient import (
    ConfigError,
    EfficientTrainer,
    EfficientTrainingArguments,
    MissingDependencyError,
    NoEffectWarning,
    Optimizer,
)
from hf_efficient.functional.optimizer_state import optimizer_state_bytes
from hf_efficient.optimizations.optimizer import KINDS, supported
from hf_efficient.plan import build_optimizations
from tests.effects import train
from tests.test_contract import StopMain
from tests.test_parity import assert_same_tensors, build

LOW_BIT = [name for name in supported("cpu") if KINDS[name].low_bit]
TORCHAO = [name for name in LOW_BIT if KINDS[name].package == "torchao"]


@pytest.fixture(autouse=True)
def uncompiled() -> Iterator[None]:
    """torchao's update step as plain Python: compiling it takes longer than all the tests here."""
    with torch.compiler.set_stance("force_eager"):
        yield


def trainer(folder: Path, kind: str, callbacks: Any = (), model: str = "text", **options: Any) -> Any:
    min_size = options.pop("min_size", 64)
    given = {"callbacks": list(callbacks), **options.pop("given", {})}
    optimizations = {"optimizer": {"kind": kind, "min_size": min_size}}
    options = {"optimizations": optimizations, "measure_seconds": 0, **options}
    return build(EfficientTrainer, EfficientTrainingArguments, folder, kind=model, given=given, **options)


def bits(one: Any) -> dict[str, set[int]]:
    """Parameter name -> bits per element that each of its moments takes."""
    optimizer, found = one.optimizer.optimizer, {}
    for name, parameter in one.model.named_parameters():
        state = optimizer.state[parameter]
        moments = [value for key, value in state.items() if key.startswith(("state", "exp_avg"))]
        codes = [getattr(moment, "codes", moment).untyped_storage().nbytes() for moment in moments]
        found[name] = {8 * size // moment.numel() for size, moment in zip(codes, moments, strict=True)}
    return found


def embeddings(model: nn.Module) -> set[str]:
    modules = {f"{name}.weight" for name, module in model.named_modules() if isinstance(module, nn.Embedding)}
    assert modules
    return modules


@pytest.mark.parametrize("kind", LOW_BIT)
def test_embeddings_keep_32_bits_also_after_resuming(tmp_path: Path, kind: str) -> None:
    undisturbed = train(trainer(tmp_path / "undisturbed", kind))
    train(trainer(tmp_path / "stopped", kind, callbacks=[StopMain]))
    resumed = trainer(tmp_path / "stopped", kind)
    train(resumed, resume_from_checkpoint=str(tmp_path / "stopped" / "checkpoint-4"))
    assert_same_tensors(dict(undisturbed.model.state_dict()), dict(resumed.model.state_dict()))
    low = 4 if "4bit" in kind else 8
    for one in (undisturbed, resumed):
        found = bits(one)
        for name in embeddings(one.model):
            assert found.pop(name) == {32}, name
        layers = {name: widths for name, widths in found.items() if "layer" in name and "dense.weight" in name}
        assert len(layers) == 9
        assert set().union(*layers.values()) == {low}
        assert found["classifier.bias"] == {32}  # two elements


def test_embeddings_of_an_earlier_training_decide_nothing(tmp_path: Path) -> None:
    """bitsandbytes keeps overrides by position, which stock training leaves behind in the process."""
    options = {"optim": "adamw_8bit", "max_steps": 1}
    train(build(Trainer, TrainingArguments, tmp_path / "text", **options))
    after = train(trainer(tmp_path / "vision", "adamw_8bit", model="vision", max_steps=1))
    found = bits(after)
    small = {name for name, parameter in after.model.named_parameters() if parameter.numel() < 64}
    assert {name for name, width in found.items() if width == {32}} == small


@pytest.mark.parametrize("kind", TORCHAO)
def test_stock_would_quantize_embeddings(tmp_path: Path, kind: str) -> None:
    """Why torchao's optimizers go through a class of ours."""
    cls = type(train(trainer(tmp_path, kind, max_steps=1)).optimizer.optimizer).__mro__[3]
    assert cls.__module__.startswith("torchao.")
    table = nn.Embedding(64, 64)
    optimizer = cls(table.parameters(), lr=0.1)
    table(torch.arange(4)).sum().backward()
    optimizer.step()
    assert hasattr(optimizer.state[table.weight]["exp_avg"], "codes")


@pytest.mark.parametrize(
    ("kind", "share"),
    [
        ("adamw_8bit", 0.28),
        ("ademamix_8bit", 0.42),
        ("lion_8bit", 0.14),
        ("torchao_adamw_8bit", 0.35),
        ("torchao_adamw_4bit", 0.20),
        ("torchao_adamw_fp8", 0.28),
        ("lion", 0.51),
        ("adamw", 1.01),
        ("sgd", 0.0),
    ],
)
def test_described_state_is_small_outside_embeddings(tmp_path: Path, kind: str, share: float) -> None:
    one = build(
        EfficientTrainer,
        EfficientTrainingArguments,
        tmp_path,
        given={"model": wide_model()},
        max_steps=1,
        optimizations={"optimizer": {"kind": kind}},
        measure_seconds=0,
    )
    one.train()
    said = one.optimizations[0].describe()
    ours, adamw = said["state_bytes"], said["adamw_32bit_state_bytes"]
    assert share - 0.1 <= ours["other"] / adamw["other"] <= share
    assert adamw["embeddings"] > 0
    if KINDS[kind].low_bit and "adamw" in kind:
        assert ours["embeddings"] - 8 * 3 <= adamw["embeddings"] <= ours["embeddings"]  # torchao counts steps, too


def wide_model() -> nn.Module:
    from tests.tiny import text_model

    return text_model(hidden_size=64, intermediate_size=128, num_hidden_layers=2)


@pytest.mark.parametrize("kind", supported("cpu"))
def test_every_kind_learns(tmp_path: Path, kind: str) -> None:
    rate = {"sgd": 0.3, "lion": 1e-3, "lion_8bit": 1e-3}.get(kind, 5e-3)
    options = {"learning_rate": rate, "num_train_epochs": 4}
    one = trainer(tmp_path, kind, **options, optim="sgd" if kind == "adamw_fused" else "adamw_torch_fused")
    train(one)
    losses = [entry["loss"] for entry in one.state.log_history if "loss" in entry]
    assert sum(losses[-4:]) < sum(losses[:4])


def test_names_are_stock_ones() -> None:
    assert {kind.optim for kind in KINDS.values()} <= {name.value for name in OptimizerNames}


def test_settings_of_the_arguments_reach_the_optimizer(tmp_path: Path) -> None:
    options = {"adam_beta2": 0.9, "weight_decay": 0.25, "learning_rate": 0.125, "max_steps": 1}
    for kind in ("adamw_8bit", "torchao_adamw_8bit"):
        one = trainer(tmp_path / kind, kind, **options)
        one.create_optimizer()  # outside a training nothing changes
        one.optimizer = None
        one.train()
        groups = one.optimizer.param_groups
        assert {float(group["initial_lr"]) for group in groups} == {0.125}
        assert {tuple(group["betas"]) for group in groups} == {(0.9, 0.9)}
        assert sorted({group["weight_decay"] for group in groups}) == [0.0, 0.25]
        assert sum(len(group["params"]) for group in groups) == len(list(one.model.parameters()))


def test_block_size_of_optim_args(tmp_path: Path) -> None:
    one = train(trainer(tmp_path, "torchao_adamw_8bit", optim_args="block_size=128", max_steps=1))
    assert one.optimizer.optimizer.block_size == 128


def test_counts_what_is_saved(tmp_path: Path) -> None:
    one = train(trainer(tmp_path, "torchao_adamw_8bit"))
    saved = torch.load(tmp_path / "checkpoint-12" / "optimizer.pt", weights_only=True)
    live = optimizer_state_bytes(one.optimizer.optimizer, one.model)
    assert optimizer_state_bytes(one.optimizer.optimizer, one.model, saved) == live


@pytest.mark.parametrize("kind", ["adamw_8bit", "adamw_fused"])
def test_no_effect(kind: str) -> None:
    args = TrainingArguments("out", use_cpu=True, optim=KINDS[kind].optim)
    with pytest.warns(NoEffectWarning, match=kind):
        assert Optimizer(kind=kind).configure(args) is args


def test_torchao_has_an_effect_beyond_the_arguments(recwarn: pytest.WarningsRecorder) -> None:
    args = TrainingArguments("out", use_cpu=True, optim="adamw_torch_8bit")
    Optimizer(kind="torchao_adamw_8bit").configure(args)
    assert not [one for one in recwarn if one.category is NoEffectWarning]


def test_unknown_kind() -> None:
    with pytest.raises(ConfigError, match="did you mean 'adamw_8bit'"):
        build_optimizations({"optimizer": {"kind": "adamw8bit"}})
    with pytest.raises(ConfigError, match="min_size must be at least 1, got 0"):
        build_optimizations({"optimizer": {"min_size": 0}})


def test_paged_needs_a_gpu(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"paged_adamw_8bit does not work on this machine's cpu.*adamw_8bit"):
        trainer(tmp_path, "paged_adamw_8bit")


@pytest.mark.parametrize("package", ["bitsandbytes", "torchao"])
def test_package_not_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    kind = {"bitsandbytes": "lion_8bit", "torchao": "torchao_adamw_4bit"}[package]
    with pytest.raises(MissingDependencyError, match=rf"pip install 'hf-efficient\[{package}\]'"):
        trainer(tmp_path, kind)


def test_no_compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(ConfigError, match=r"no no-such-compiler on the PATH.*apt install"):
        trainer(tmp_path, "torchao_adamw_8bit")


@pytest.mark.parametrize("given", ["optimizers", "optimizer_cls_and_kwargs"])
def test_an_optimizer_of_the_users_own(tmp_path: Path, given: str) -> None:
    from tests.tiny import text_model

    model = text_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    values = {"optimizers": (optimizer, None), "optimizer_cls_and_kwargs": (torch.optim.SGD, {"lr": 0.1})}
    with pytest.raises(ConfigError, match="drop either"):
        trainer(tmp_path, "adamw_8bit", given={"model": model, given: values[given]})


def test_other_state_in_the_checkpoint(tmp_path: Path) -> None:
    train(trainer(tmp_path, "adamw_8bit", max_steps=4))
    checkpoint = str(tmp_path / "checkpoint-4")
    with pytest.raises(ConfigError, match="resume with the same settings"):
        train(trainer(tmp_path, "lion_8bit"), resume_from_checkpoint=checkpoint)
    plain = build(EfficientTrainer, EfficientTrainingArguments, tmp_path, dense_epochs=0)
    with pytest.raises(ConfigError, match="written while training with optimizer"):
        train(plain, resume_from_checkpoint=checkpoint)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler here")
def test_compiled_update_equals_the_plain_one(tmp_path: Path) -> None:
    plain = train(trainer(tmp_path / "plain", "torchao_adamw_8bit", max_steps=2))
    with torch.compiler.set_stance("default"):
        compiled = train(trainer(tmp_path / "compiled", "torchao_adamw_8bit", max_steps=2))
    for one, other in zip(plain.model.parameters(), compiled.model.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-3)

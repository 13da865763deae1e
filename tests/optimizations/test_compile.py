"""torch.compile: what is compiled trains alike, and what is saved is the plain model."""

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import Trainer, TrainingArguments

from hf_efficient import Compile, ConfigError, EfficientTrainer, EfficientTrainingArguments, NoEffectWarning
from hf_efficient.plan import build_optimizations
from hf_efficient.proposal import Observed
from tests.effects import train
from tests.test_parity import build
from tests.tiny import text_model


def trainer(folder: Path, **settings: Any) -> Any:
    arguments = settings.pop("arguments", {})
    options = {"optimizations": {"compile": {"backend": "aot_eager", **settings}}, "measure_seconds": 0, **arguments}
    return build(EfficientTrainer, EfficientTrainingArguments, folder, **options)


def test_trains_like_stock_and_saves_the_plain_model(tmp_path: Path) -> None:
    plain = train(build(Trainer, TrainingArguments, tmp_path / "plain", max_steps=4))
    ours = train(trainer(tmp_path / "ours", arguments={"max_steps": 4}))
    said = ours.optimizations[0].describe()
    assert said["graphs"] > 0
    assert said["graph_breaks"] == 0
    assert type(ours.model) is type(plain.model)
    for folder in ("checkpoint-4", "final"):
        assert not [name for name in load_file(tmp_path / "ours" / folder / "model.safetensors") if "_orig_mod" in name]
    for one, other in zip(plain.model.parameters(), ours.model.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_report_measures_the_plain_model(tmp_path: Path) -> None:
    one = train(trainer(tmp_path, backend="eager", arguments={"max_steps": 1, "measure_seconds": 0.05}))
    assert one.optimizations[0].describe()["graphs"] > 0  # evaluating beforehand must not switch it off
    assert one.report.after.parameters == one.report.before.parameters


def test_dynamic_compiles_once_for_all_lengths(tmp_path: Path) -> None:
    graphs = {}
    for dynamic in (False, True):
        one = train(trainer(tmp_path / str(dynamic), backend="eager", dynamic=dynamic, arguments=SHORT_BATCHES))
        graphs[dynamic] = one.optimizations[0].describe()["graphs"]
    assert graphs[True] < graphs[False]


@pytest.mark.parametrize(
    ("device", "lengths", "modes"),
    [
        ("cpu", None, ["default"]),
        ("cuda", None, ["reduce-overhead", "default"]),
        ("cuda", torch.tensor([3, 5]), ["default"]),  # a graph for each length would have to be recorded
    ],
)
def test_graphs_are_proposed_where_inputs_have_one_shape(
    device: str, lengths: Any, modes: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hf_efficient.optimizations.compile.compiler_missing", lambda device: "")
    args: Any = SimpleNamespace(torch_compile=False, device=torch.device(device))
    proposed = list(Compile.proposals(Observed(args, text_model(), lengths, computing=0.8)))
    assert [each.settings.get("mode", "default") for each in proposed] == modes
    assert {each.gain for each in proposed} == {0.8 * (0.3 if device == "cpu" else 0.5)}


SHORT_BATCHES = {"per_device_train_batch_size": 2, "max_steps": 6, "save_strategy": "no"}


def test_more_trainings_than_the_limit_of_recompilations(tmp_path: Path) -> None:
    """The limit is per process: without a reset, the later ones of a search would run uncompiled."""
    options = {"per_device_train_batch_size": 8, "max_steps": 1, "save_strategy": "no"}
    limit = torch._dynamo.config.recompile_limit
    torch._dynamo.config.recompile_limit = 2
    try:
        for number in range(4):
            one = train(trainer(tmp_path / str(number), backend="eager", dynamic=False, arguments=options))
            assert one.optimizations[0].describe()["graphs"] > 0
    finally:
        torch._dynamo.config.recompile_limit = limit


def test_no_compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(ConfigError, match=r"no no-such-compiler on the PATH.*apt install"):
        trainer(tmp_path, backend="inductor")


def test_unknown_backend(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="did you mean 'inductor'"):
        trainer(tmp_path, backend="inducter")


def test_mode_of_another_backend() -> None:
    with pytest.raises(ConfigError, match="mode=max-autotune is inductor's"):
        build_optimizations({"compile": {"backend": "eager", "mode": "max-autotune"}})


def test_arguments_that_say_it_already() -> None:
    args = TrainingArguments("out", use_cpu=True, torch_compile_backend="eager")
    with pytest.warns(NoEffectWarning, match="backend=eager"):
        assert Compile(backend="eager").configure(args) is args
    assert Compile(backend="eager", dynamic=True).configure(args).torch_compile


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler here")
def test_inductor(tmp_path: Path) -> None:
    plain = train(build(Trainer, TrainingArguments, tmp_path / "plain", kind="vision", max_steps=2))
    options = {"optimizations": {"compile": {}}, "measure_seconds": 0, "max_steps": 2}
    ours = train(build(EfficientTrainer, EfficientTrainingArguments, tmp_path / "ours", kind="vision", **options))
    assert ours.optimizations[0].describe()["graphs"] > 0
    for one, other in zip(plain.model.parameters(), ours.model.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)

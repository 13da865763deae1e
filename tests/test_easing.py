"""A stage that loses more than it may is undone, and trained with less, until it keeps to that or nothing helps."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hf_efficient import ConfigError, Recipe
from hf_efficient.cli import main
from hf_efficient.easing import TRIES
from hf_efficient.plan import build_optimizations
from hf_efficient.recipe import eased
from hf_efficient.run import run
from tests.test_run import measure_hastily, tiny_recipe

LIMITED = ["stages.compress.max_drop=0.02", "stages.compress.optimizations={structured_pruning: {keep_ffn: 0.25}}"]

MILDER: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "shares": ({"structured_pruning": {"keep_ffn": 0.25, "keep_heads": 1}}, {"keep_ffn": 0.625}),
    "a speed-up": ({"structured_pruning": {"target_speedup": 4}}, {"target_speedup": 2.5}),
    "a size": ({"structured_pruning": {"target_size_mb": 20}}, {"target_size_mb": 30}),
    "a number": ({"structured_pruning": {"target_parameters": 1001}}, {"target_parameters": 1501}),
    "zeros": ({"pruning": {}}, {"sparsity": 0.25}),
    "merged units": ({"weight_fusion": {"merge": 0.5, "cluster": 4}}, {"merge": 0.25, "cluster": 8}),
}


@pytest.mark.parametrize("name", MILDER)
def test_half_as_much(name: str) -> None:
    optimizations, expected = MILDER[name]
    found = eased({**optimizations, "precision": {}}, "here")
    (key,) = optimizations
    assert found == {key: {**optimizations[key], **expected}, "precision": {}}
    build_optimizations(found, "here")


@pytest.mark.parametrize("default", [True, None, {}])
def test_half_of_the_default(default: Any) -> None:
    assert eased({"pruning": default}, "here") == {"pruning": {"sparsity": 0.25}}


@pytest.mark.parametrize("optimizations", [{"precision": {}}, {"pruning": {"pattern": "2:4"}}, {}])
def test_what_cannot_change_less_is_refused(tmp_path: Path, optimizations: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"stages\.compress\.max_drop needs an optimization"):
        Recipe.load(tiny_recipe(tmp_path), [LIMITED[0], f"stages.compress.optimizations={json.dumps(optimizations)}"])


def said(values: list[float]) -> Callable[..., dict[str, float]]:
    """Metrics as they come, of what stages begin with and of what they come to."""
    return lambda *args: {"accuracy": values.pop(0)}


def test_a_stage_is_undone_until_it_loses_little(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    measure_hastily(monkeypatch)
    monkeypatch.setattr("hf_efficient.job.Job.validated", said([0.9, 0.5, 0.9, 0.8, 0.9, 0.89]))
    result = run(tiny_recipe(tmp_path), LIMITED, runs=tmp_path / "runs")
    assert result is not None
    (change,) = result.report.changes
    undone = sorted((result.folder / "undone").iterdir())
    assert [path.name for path in undone] == ["compress-1", "compress-2"]
    losses = [json.loads((path / "loss.json").read_text()) for path in undone]
    assert [round(loss["drop"], 3) for loss in losses] == [0.4, 0.1]
    assert [loss["changed"]["structured_pruning"]["keep_ffn"] for loss in losses] == [0.25, 0.625]
    assert not [path for folder in undone for path in folder.rglob("*.safetensors")]
    assert change["stage"] == "compress"
    assert [note for note in result.report.notes if "undone" in note] == [
        "compress was undone: it lost 0.4000 at structured_pruning (keep_ffn 0.250).",
        "compress was undone: it lost 0.1000 at structured_pruning (keep_ffn 0.625).",
    ]
    assert widths(result.model) == [26, 26]


def widths(model: Path) -> list[int]:
    """Features of each feed-forward layer, of 32."""
    from safetensors import safe_open

    with safe_open(model / "model.safetensors", "pt") as file:
        names = sorted(name for name in file.keys() if name.endswith("intermediate.dense.bias"))  # noqa: SIM118
        return [len(file.get_tensor(name)) for name in names]


def test_a_run_that_dies_goes_on_as_it_would_have(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    measure_hastily(monkeypatch)
    recipe = tiny_recipe(tmp_path)
    values = [0.9, 0.5]
    monkeypatch.setattr("hf_efficient.job.Job.validated", said(values))
    with pytest.raises(IndexError):  # at its second judgement
        run(recipe, LIMITED, runs=tmp_path / "runs")
    values += [0.9, 0.9]
    result = run(recipe, LIMITED, runs=tmp_path / "runs", resume="auto")
    assert result is not None
    assert widths(result.model) == [20, 20]
    assert len(list((tmp_path / "runs" / "tiny").iterdir())) == 1


def test_what_loses_whatever_is_tried_ends_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    measure_hastily(monkeypatch)
    monkeypatch.setattr("hf_efficient.job.Job.validated", said([0.9, 0.5] * TRIES))
    again = ["run", str(tiny_recipe(tmp_path)), *LIMITED, "--runs", str(tmp_path / "runs"), "--resume", "auto"]
    for _ in range(2):  # the second time nothing is trained
        assert main(again) == 2
        assert "stages.compress loses 0.4000 of accuracy" in (told := capsys.readouterr().err)
        assert f"the mildest of {TRIES} tries" in told


def test_a_real_drop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Judged by what the models say: here nothing is lost."""
    measure_hastily(monkeypatch)
    result = run(tiny_recipe(tmp_path), LIMITED, runs=tmp_path / "runs")
    assert result is not None
    loss = json.loads((result.folder / "stages" / "compress" / "loss.json").read_text())
    assert loss["before"] == result.metrics["validation"]["before"]["accuracy"]
    assert loss["after"] == result.metrics["validation"]["after"]["accuracy"]
    assert loss["drop"] <= 0.02
    assert not (result.folder / "undone").exists()

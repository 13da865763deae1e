"""What trials that begin alike share changes nothing in what comes of them."""

import json
from pathlib import Path
from typing import Any

import pytest

from hf_efficient import Recipe
from hf_efficient.optimizations.structured_pruning import StructuredPruning
from hf_efficient.search.beginnings import SHARED, decisions
from hf_efficient.search.trials import Trials
from tests.search.test_space import RATE
from tests.search.test_trials import GOALS
from tests.test_parity import assert_same_tensors
from tests.test_run import weights

PRUNING = "stages.compress.optimizations.structured_pruning"


@pytest.fixture
def cut(recipe: Path) -> Recipe:
    """Features are cut, and a stage teaches."""
    optimizations = json.dumps({"structured_pruning": {"keep_ffn": 0.5}, "distillation": {"teacher": "finetune"}})
    return Recipe.load(recipe, [f"stages.compress.optimizations={optimizations}"])


def counted(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Learning rates of the trainings that chose what to cut."""
    chosen: list[float] = []
    choose = StructuredPruning._choose

    def counting(self: Any, model: Any, context: Any, search: Any) -> Any:
        chosen.append(context.args.learning_rate)
        return choose(self, model, context, search)

    monkeypatch.setattr(StructuredPruning, "_choose", counting)
    return chosen


def test_trials_that_begin_alike_share(cut: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = counted(monkeypatch)
    first = Trials(cut, tmp_path / "one", GOALS, 1)
    first.run(0, {RATE: 1e-3})
    after_a_rung = first.run(1, {RATE: 2e-3}, 0.5)
    shared = first.run(1, {RATE: 2e-3})
    assert chosen == [1e-3]
    first.run(2, {RATE: 2e-3, f"{PRUNING}.keep_ffn": 0.25})
    assert chosen == [1e-3, 2e-3]
    alone = Trials(cut, tmp_path / "other", GOALS, 1).run(1, {RATE: 2e-3})
    assert chosen == [1e-3, 2e-3, 2e-3]
    assert alone.stages == shared.stages != after_a_rung.stages
    ours, others = (weights(tmp_path / name / "stages" / alone.stages[1] / "final") for name in ("one", "other"))
    assert_same_tensors(ours, others)
    told = json.loads((tmp_path / "one" / "stages" / shared.stages[1] / "stage.json").read_text())
    (taught,) = (change for change in told["changes"] if "share_from_cache" in change)
    assert taught["share_from_cache"] == 1.0
    left = {path.name for path in (tmp_path / "one" / "stages" / shared.stages[1]).iterdir()}
    assert left == {"final", "stage.json", "decisions"}
    first.store.keep(set(shared.stages))
    assert not (first.store.folder / SHARED).exists()


def test_what_a_decision_depends_on(cut: Recipe) -> None:
    def key(values: Any = None, before: str = "before") -> dict[str, str]:
        return decisions(before, "compress", cut.changed(values or {}).stages["compress"])

    assert key().keys() == {"structured_pruning"}
    training = "stages.compress.training"
    same = {RATE: 1.0, f"{training}.num_train_epochs": 9, "stages.compress.optimizations.distillation.alpha": 0.1}
    assert key(same) == key()
    for other in (
        {f"{PRUNING}.keep_ffn": 0.25},
        {f"{training}.per_device_train_batch_size": 4},
        {"stages.compress.optimizations.precision.dtype": "fp32"},
    ):
        assert key(other) != key()
    assert key(before="another") != key()
    assert key({f"{PRUNING}.keep_ffn": None, f"{PRUNING}.target_speedup": 2.0}) == {}  # compared in short trainings

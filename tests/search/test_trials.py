from pathlib import Path
from typing import Any

import pytest

from hf_efficient import ConfigError, Recipe
from hf_efficient.measure import measure_speed
from hf_efficient.search.goals import Constraint, Goals, Objective
from hf_efficient.search.trials import Bar, Trials, shortened, unknown_names
from tests.search.test_space import LAYERS, RATE, of

GOALS = Goals((Objective("accuracy", True), Objective("bytes", False)))


@pytest.fixture
def trials(recipe: Path, tmp_path: Path) -> Trials:
    return Trials(Recipe.load(recipe), tmp_path / "search", GOALS, of(recipe, {RATE: [1e-3]}).first_stage())


def test_a_shared_stage_is_trained_once(trials: Trials) -> None:
    first, second, again = (trials.run(number, {RATE: rate}) for number, rate in enumerate((1e-3, 2e-3, 1e-3)))
    assert first.stages[0] == second.stages[0]
    assert first.stages[1] != second.stages[1]
    assert again == first
    assert len(list((trials.folder / "stages").glob("*/final"))) == 3
    assert {"accuracy", "bytes", "training_seconds"} <= set(first.figures)
    assert first.figures["training_seconds"] > 0
    assert "latency_ms" not in first.figures  # nobody asked for it
    assert Recipe.load(trials.folder / "trials" / "0001" / "recipe.yaml").stages["compress"].training[
        "learning_rate"
    ] == pytest.approx(2e-3)


def test_other_data_other_stages(trials: Trials, recipe: Path, tmp_path: Path) -> None:
    before = trials.store.keys(trials.job(trials.recipe))
    again = Trials(Recipe.load(recipe), tmp_path / "other", GOALS, 1)
    assert again.store.keys(again.job(again.recipe)) == before
    text = (tmp_path / "train.csv").read_text()
    (tmp_path / "train.csv").write_text(text.replace("how do i pay 0,", "how do i pay it,"))
    changed = Trials(Recipe.load(recipe), tmp_path / "other", GOALS, 1)
    found = changed.store.keys(changed.job(changed.recipe))
    assert not set(found.values()) & set(before.values())


def test_shortened_trainings(recipe: Path) -> None:
    loaded = Recipe.load(recipe).changed({"stages.compress.training.max_steps": 10})
    short = shortened(loaded, 0.25, set())
    assert short.stages["finetune"].training["num_train_epochs"] == 0.75
    assert short.stages["compress"].training["max_steps"] == 2
    assert shortened(loaded, 0.25, {"finetune"}).stages["finetune"] == loaded.stages["finetune"]
    assert shortened(loaded, 1.0, set()) == loaded


def test_what_was_asked_for_must_be_told() -> None:
    with pytest.raises(ConfigError, match="did you mean 'accuracy'"):
        unknown_names(Goals((Objective("acuracy", True),)), {"accuracy": 1.0})


def finished(low: float, high: float, size: float) -> Any:
    return {"0.3": {"accuracy": low, "bytes": size}, "1.0": {"accuracy": high, "bytes": size}}


def test_a_trial_stops_where_nothing_helps() -> None:
    bar = Bar(GOALS)
    assert bar.hopeless("0.3", {"accuracy": 0.1, "bytes": 9.0}, []) == ""  # nothing is known yet
    known = [finished(0.5, 0.8, 5.0), finished(0.6, 0.7, 4.0)]
    assert bar.optimistic("0.3", {"accuracy": 0.4, "bytes": 6.0}, known) == pytest.approx(
        {"accuracy": 0.7, "bytes": 6.0}
    )
    assert "better by all" in bar.hopeless("0.3", {"accuracy": 0.4, "bytes": 6.0}, known)
    assert bar.hopeless("0.3", {"accuracy": 0.4, "bytes": 3.0}, known) == ""  # smaller than all
    assert bar.hopeless("0.3", {"accuracy": 0.55, "bytes": 6.0}, known) == ""  # may become the best


def test_a_trial_stops_where_a_constraint_is_out_of_reach() -> None:
    bar = Bar(Goals(GOALS.objectives, (Constraint("accuracy", True, 0.9),)))
    known = [finished(0.5, 0.8, 5.0)]
    assert "accuracy >= 0.9 will not be kept: 0.85" in bar.hopeless("0.3", {"accuracy": 0.55, "bytes": 1.0}, known)
    assert bar.hopeless("0.3", {"accuracy": 0.65, "bytes": 1.0}, known) == ""


def test_speeds_are_those_of_a_shape(recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    measured: list[Any] = []

    def quick(*args: Any) -> Any:
        measured.append(args[0])
        return measure_speed(*args, seconds=0.05, repeats=1, warmup=1)

    monkeypatch.setattr("hf_efficient.outcome.measure_speed", quick)
    goals = Goals((Objective("accuracy", True), Objective("latency_ms", False)))
    one = Trials(Recipe.load(recipe), tmp_path / "search", goals, 1)
    first, second, other = (
        one.run(number, values).figures for number, values in enumerate(({RATE: 1e-3}, {RATE: 2e-3}, {LAYERS: [0, 1]}))
    )
    assert first["latency_ms"] == second["latency_ms"] > 0
    assert other["latency_ms"] != first["latency_ms"]
    assert "throughput" not in first
    assert measured == ["latency_ms"] * 2

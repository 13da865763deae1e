"""Samplers that model several objectives see what was stopped, too."""

from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState

from hf_efficient.search.goals import Goals, Objective
from hf_efficient.search.proposing import FIGURES, models, proposed
from hf_efficient.search.samplers import OUTSIDE, make_sampler
from hf_efficient.search.trials import Bar
from tests.search.test_space import RATE, of

GOALS = Goals((Objective("accuracy", True), Objective("bytes", False)))
FFN = "stages.compress.optimizations.structured_pruning.keep_ffn"
SPACE = {RATE: {"low": 1e-4, "high": 1e-2, "log": True}, FFN: {"low": 0.25, "high": 1.0, "step": 0.25}}


class Random(optuna.samplers.RandomSampler):
    """Keeps what it was shown."""

    def sample_relative(self, study: Any, trial: Any, search_space: Any) -> dict[str, Any]:
        self.seen = [(each.params[FFN], each.values) for each in study.get_trials(states=[TrialState.COMPLETE])]
        return {}


def distributions(space: Any) -> dict[str, Any]:
    trial = optuna.create_study(directions=["maximize", "minimize"]).ask()
    space.suggested(trial)
    return dict(trial.distributions)


def frozen(space: Any, ffn: float, state: TrialState, figures: dict[str, dict[str, float]], **attrs: Any) -> Any:
    is_done = state == TrialState.COMPLETE
    return optuna.trial.create_trial(
        state=state,
        values=GOALS.values(figures["1.0"]) if is_done else None,
        params={name: {RATE: 1e-3, FFN: ffn}[name] for name in space.dimensions},
        distributions=distributions(space),
        user_attrs={FIGURES: figures, **attrs},
    )


def told(accuracy: float, size: float) -> dict[str, float]:
    return {"accuracy": accuracy, "bytes": size}


def test_what_a_sampler_is_shown(recipe: Path) -> None:
    space, sampler = of(recipe, SPACE), Random(seed=0)
    trials = [
        frozen(space, 0.25, TrialState.COMPLETE, {"0.3": told(0.5, 4.0), "1.0": told(0.6, 4.0)}),
        frozen(space, 0.5, TrialState.COMPLETE, {"0.3": told(0.5, 5.0), "1.0": told(0.8, 5.0)}),
        frozen(space, 0.75, TrialState.PRUNED, {"0.3": told(0.4, 7.0)}),
        frozen(space, 1.0, TrialState.COMPLETE, {"1.0": told(0.9, 9.0)}, **{OUTSIDE: True}),
        frozen(space, 1.0, TrialState.FAIL, {}),
    ]
    found = proposed(sampler, space, Bar(GOALS), trials)
    assert set(found) == {RATE, FFN}
    seen = dict(sampler.seen)
    assert seen[0.25] == [0.6, 4.0]
    assert seen[0.5] == [0.8, 5.0]
    assert seen[0.75] == pytest.approx([0.6, 7.0])  # 0.2 more, as the others gained on average
    assert set(seen) == {0.25, 0.5, 0.75}


def test_a_running_one_has_values_of_the_middle(recipe: Path) -> None:
    space, sampler = of(recipe, SPACE), Random(seed=0)
    ends = [(0.25, 0.6, 4.0), (0.5, 0.8, 5.0), (0.75, 0.9, 9.0)]
    trials = [frozen(space, ffn, TrialState.COMPLETE, {"1.0": told(*end)}) for ffn, *end in ends]
    running = frozen(space, 1.0, TrialState.RUNNING, {})
    proposed(sampler, space, Bar(GOALS), [*trials, running])
    assert dict(sampler.seen)[1.0] == [0.8, 5.0]


def test_what_was_stopped_is_not_proposed_again(recipe: Path) -> None:
    """Of four widths three are finished, and the one that was stopped promises nothing."""
    space = of(recipe, {FFN: SPACE[FFN]})
    sampler, _ = make_sampler("gp", space, 2, 20, constrained=False, seed=0, parallel=False)
    assert models(sampler, 2)
    assert not models(sampler, 1)
    done = [
        (ffn, TrialState.COMPLETE, {"0.3": told(0.5, ffn), "1.0": told(0.6 + ffn / 10, ffn)}) for ffn in (0.25, 0.75, 1)
    ]
    trials = [frozen(space, *each) for each in [*done, (0.5, TrialState.PRUNED, {"0.3": told(0.1, 0.5)})]]
    assert proposed(sampler, space, Bar(GOALS), trials)[FFN] != 0.5

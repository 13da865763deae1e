"""What to try next, where a sampler models several objectives: it learns from trials that were stopped early, too.

Optuna's samplers leave out trials without values, which for several objectives are all that were stopped: they would
propose the same again. So they are asked in a study in memory, where a stopped trial has the values that it would have
come to if it had gained as much as finished ones did on average, and one that is running those of the middle.
"""

import statistics
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from hf_efficient.search.samplers import OUTSIDE
from hf_efficient.search.space import Space
from hf_efficient.search.trials import WHOLE, Bar

if TYPE_CHECKING:
    import optuna

FIGURES = "figures"
"""User attribute of a trial: share of the training -> name -> value."""


def models(sampler: "optuna.samplers.BaseSampler", objectives: int) -> bool:
    """Whether ``sampler`` is asked here."""
    return objectives > 1 and type(sampler).__name__ in ("GPSampler", "TPESampler")


def proposed(
    sampler: "optuna.samplers.BaseSampler", space: Space, bar: Bar, trials: Sequence["optuna.trial.FrozenTrial"]
) -> dict[str, Any]:
    """Parameters of the next trial.

    Args:
        bar: what finished trials teach.
        trials: of the study, those that count.
    """
    import optuna

    State, goals = optuna.trial.TrialState, bar.goals  # noqa: N806  (a class)
    usual = [each for each in trials if OUTSIDE not in each.user_attrs]
    finished = [each.user_attrs[FIGURES] for each in usual if each.state == State.COMPLETE]
    ends = [goals.values(figures[str(WHOLE)]) for figures in finished]
    study = optuna.create_study(
        directions=["maximize" if goal.maximize else "minimize" for goal in goals.objectives], sampler=sampler
    )
    for each in usual:
        figures = each.user_attrs.get(FIGURES, {})
        if each.state == State.COMPLETE:
            values = goals.values(figures[str(WHOLE)])
        elif each.state == State.PRUNED and figures:
            rung, then = list(figures.items())[-1]
            values = goals.values(bar.expected(rung, then, finished) or then)
        elif each.state == State.RUNNING and ends:
            values = [statistics.median(column) for column in zip(*ends, strict=True)]
        else:
            continue
        study.add_trial(
            optuna.trial.create_trial(
                params=each.params,
                distributions=each.distributions,
                values=values,
                user_attrs=each.user_attrs,
                system_attrs=each.system_attrs,  # how far constraints are broken
            )
        )
    asked = study.ask()
    space.suggested(asked)
    return dict(asked.params)

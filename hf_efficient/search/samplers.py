"""Who proposes the next values, and who stops a trial: Optuna's samplers and pruners by name."""

import functools
import warnings
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from hf_efficient.errors import ConfigError, unknown

if TYPE_CHECKING:
    from optuna.pruners import BasePruner
    from optuna.samplers import BaseSampler

    from hf_efficient.search.space import Space

CONSTRAINTS = "constraints"
"""User attribute of a trial: by how much it is beyond each constraint."""
OUTSIDE = "outside of the space"
"""User attribute of the recipe as given, where it is no point of the space."""
MANY = 200
"""Trials from which on a genetic sampler beats one that models the space."""


def _constrained(name: str, **settings: Any) -> Callable[..., "BaseSampler"]:
    def make(seed: int, constraints: Any, parallel: bool) -> "BaseSampler":
        import optuna

        more = {"constant_liar": parallel} if name == "TPESampler" else {}
        made: BaseSampler = getattr(optuna.samplers, name)(seed=seed, constraints_func=constraints, **more, **settings)
        return made

    return make


def _free(name: str) -> Callable[..., "BaseSampler"]:
    def make(seed: int, constraints: Any, parallel: bool) -> "BaseSampler":
        import optuna

        made: BaseSampler = getattr(optuna.samplers, name)(seed=seed)
        return made

    return make


@functools.cache
def _grid() -> type["BaseSampler"]:
    import optuna

    class Grid(optuna.samplers.BruteForceSampler):
        """Optuna's takes the recipe as given for all there is, where that is no point of the grid."""

        def _populate_tree(self, tree: Any, trials: Any, params: Any) -> None:
            super()._populate_tree(tree, [one for one in trials if OUTSIDE not in one.user_attrs], params)

        def after_trial(self, study: Any, trial: Any, state: Any, values: Any) -> None:
            if OUTSIDE not in trial.user_attrs:
                super().after_trial(study, trial, state, values)

    return Grid


SAMPLERS: Mapping[str, Callable[..., "BaseSampler"]] = {
    "tpe": _constrained("TPESampler", multivariate=True, group=True, n_startup_trials=4),
    "gp": _constrained("GPSampler", n_startup_trials=3),
    "nsga2": _constrained("NSGAIISampler", population_size=16),
    "nsga3": _constrained("NSGAIIISampler", population_size=16),
    "cmaes": _free("CmaEsSampler"),
    "random": _free("RandomSampler"),
    "grid": lambda seed, constraints, parallel: _grid()(seed=seed),  # type: ignore[call-arg]
}
"""tpe: tree of Parzen estimators (Bergstra et al. 2011). gp: Gaussian process. nsga2, nsga3: genetic (Deb et al. 2002,
2014). cmaes: covariance matrix adaptation (Hansen and Ostermeier 2001). grid: each value once."""

PRUNERS: Mapping[str, str] = {
    "median": "MedianPruner",
    "successive_halving": "SuccessiveHalvingPruner",
    "hyperband": "HyperbandPruner",
    "none": "NopPruner",
}


def make_sampler(
    name: str, space: "Space", objectives: int, trials: int, *, constrained: bool, seed: int, parallel: bool
) -> tuple["BaseSampler", str]:
    """The sampler and why it is that one.

    Raises:
        ConfigError: unknown, or one that cannot work here.
    """
    if name == "auto":
        name, reason = _automatic(space, objectives, trials)
    else:
        reason = "as asked for"
    if name not in SAMPLERS:
        raise ConfigError(f"search.sampler: {unknown('sampler', name, ['auto', *SAMPLERS])}")
    if name == "cmaes" and (objectives > 1 or not space.is_numeric or space.is_conditional or constrained):
        raise ConfigError(
            "search.sampler: cmaes takes one objective, ranges of numbers alone, and neither conditions nor "
            "constraints; take tpe"
        )
    if name == "grid" and space.size is None and not space.is_conditional:
        raise ConfigError("search.sampler: grid takes choices, or ranges with a step; give steps, or take tpe")
    told = _excesses if constrained else None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Optuna calls much of what it recommends experimental
        return SAMPLERS[name](seed, told, parallel), f"{name} ({reason})"


def _automatic(space: "Space", objectives: int, trials: int) -> tuple[str, str]:
    if space.size is not None and space.size <= trials:
        return "grid", f"{space.size} combinations are no more than the trials"
    if trials >= MANY and objectives > 1:
        return "nsga2", f"{trials} trials with several objectives"
    if space.is_numeric and not space.is_conditional:
        return "gp", "numbers alone, and few trials"
    return "tpe", "it takes conditions and choices"


def _excesses(trial: Any) -> list[float]:
    return trial.user_attrs.get(CONSTRAINTS, [1.0])  # what was stopped early is not known to keep them


def make_pruner(name: str, objectives: int) -> "BasePruner":
    """With several objectives Optuna prunes nothing; `hf_efficient.search.trials` then does.

    Raises:
        ConfigError: unknown.
    """
    import optuna

    if name != "auto" and name not in PRUNERS:
        raise ConfigError(f"search.pruner: {unknown('pruner', name, ['auto', *PRUNERS])}")
    chosen = "none" if objectives > 1 else "median" if name == "auto" else name
    settings = {"n_startup_trials": 4} if chosen == "median" else {}
    made: BasePruner = getattr(optuna.pruners, PRUNERS[chosen])(**settings)
    return made

"""A study in a storage, and a worker that runs trials of it until there are as many as wanted."""

import functools
import logging
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from hf_efficient.errors import ConfigError, EfficientError
from hf_efficient.files import remove_leftovers
from hf_efficient.recipe import Recipe
from hf_efficient.search.earlier import earlier
from hf_efficient.search.goals import Constraint, Goals, Objective
from hf_efficient.search.leases import Leases
from hf_efficient.search.proposing import FIGURES, models, proposed
from hf_efficient.search.samplers import CONSTRAINTS, OUTSIDE, make_pruner, make_sampler
from hf_efficient.search.space import Space
from hf_efficient.search.spread import spread
from hf_efficient.search.storage import reachable, storage_at
from hf_efficient.search.trials import WHOLE, Bar, Figures, Trials, unknown_names

if TYPE_CHECKING:
    import optuna

logger = logging.getLogger(__name__)

AS_GIVEN, FIRST, SURPLUS, ERROR, STOPPED = "as given", "first", "surplus", "error", "stopped"
STAGES, VALUES, RETRY_OF, EARLIER = "stages", "values", "retry of", "earlier"
SEED_STEP = 1009
RECIPE, READY = "recipe", "ready"
"""User attributes of a study."""
POLL_SECONDS, READY_SECONDS = 2.0, 60.0

_FAILURES = (EfficientError, torch.OutOfMemoryError, MemoryError)


class _SurplusError(Exception):
    """A trial more than wanted: another worker was faster."""


class Search:
    """One search: recipe, space, goals and the study that remembers.

    Args:
        recipe: with a ``search`` block.
        folder: where trials and results lie.
        storage: URL of an Optuna storage, or a path ending in .log for a journal file; None: SQLite in ``folder``.

    Raises:
        ConfigError: settings that do not fit, or a storage that cannot be reached.
        MissingDependencyError: Optuna is not installed.
    """

    def __init__(self, recipe: Recipe, folder: Path, storage: str | None = None):
        if recipe.search is None:
            raise ConfigError(
                f"the recipe '{recipe.name}' says nothing of what to search; add a `search:` block with a `space:`, or "
                "give --space FILE"
            )
        self.recipe, self.folder, self.settings = recipe, folder, recipe.search
        self.space = Space(recipe, self.settings.space)
        self.trials = Trials(recipe, folder, Goals(()), self.space.first_stage())
        known = self.trials.metrics()
        objectives = self.settings.objectives or list(known)
        self.goals = Goals(
            tuple(Objective.parse(text, known) for text in objectives),
            tuple(map(Constraint.parse, self.settings.constraints)),
        )
        self.known = known
        self.trials.goals = self.goals
        self._bar, self._leases = Bar(self.goals), Leases()
        self._fresh: Callable[[int], optuna.samplers.BaseSampler]
        self.storage = storage_at(storage, folder)

    def open(self, trials: int, parallel: bool = False) -> "optuna.Study":
        """The study; made, with the recipe as given as its first trial, where it is not there."""
        import optuna

        self._fresh = functools.partial(self._sampler, trials, parallel)
        options: dict[str, Any] = {
            "storage": self.storage,
            "study_name": self.recipe.name,
            "sampler": self._fresh(0),
            "pruner": make_pruner(self.settings.pruner, len(self.goals.objectives)),
        }
        with reachable(), quietly():
            if self.recipe.name not in optuna.get_all_study_names(self.storage):
                Direction = optuna.study.StudyDirection  # noqa: N806  (a class)
                directions = [
                    Direction.MAXIMIZE if goal.maximize else Direction.MINIMIZE for goal in self.goals.objectives
                ]
                try:
                    study = optuna.create_study(directions=directions, **options)
                    study.set_metric_names([goal.name for goal in self.goals.objectives])
                    study.set_user_attr(RECIPE, self.recipe.model_dump())
                    outside = {} if self.space.has_given else {OUTSIDE: True}
                    study.enqueue_trial(self.space.as_given(), user_attrs={AS_GIVEN: True, **outside})
                    for parameters, source in earlier(self.folder, self.space, self.goals):
                        study.enqueue_trial(parameters, user_attrs={EARLIER: source})
                    for parameters in spread(self.space, self.goals, trials, self.recipe.seed):
                        study.enqueue_trial(parameters, user_attrs={FIRST: True})
                    study.set_user_attr(READY, True)
                except optuna.exceptions.DuplicatedStudyError:  # another worker has made it meanwhile
                    logger.debug("the study is there already")
            study = optuna.load_study(**options)
            _await_ready(study)
        if differences := _differences(study.user_attrs[RECIPE], self.recipe.model_dump()):
            raise ConfigError(
                f"the search in {self.folder} was started with something else ({'; '.join(differences)}); go on with "
                "what it was started with, or give another --name"
            )
        return study

    def _sampler(self, trials: int, parallel: bool, drawn: int) -> "optuna.samplers.BaseSampler":
        sampler, self.reason = make_sampler(
            self.settings.sampler,
            self.space,
            len(self.goals.objectives),
            trials,
            constrained=bool(self.goals.constraints),
            seed=self.recipe.seed + SEED_STEP * drawn,
            parallel=parallel,
        )
        if parallel:
            sampler.reseed_rng()
        return sampler

    def work(self, study: "optuna.Study", wanted: int, say: Callable[[str], None] = logger.info) -> None:
        """Run trials until the study has ``wanted`` that are finished, those of all workers counted.

        Raises:
            ConfigError: the recipe as given cannot run, or the storage cannot be used any more.
        """
        with reachable(anything=False):
            self._work(study, wanted, say)

    def _work(self, study: "optuna.Study", wanted: int, say: Callable[[str], None]) -> None:
        import optuna

        while True:
            self._take_over(study)
            counted = [trial for trial in study.get_trials(deepcopy=False) if not is_void(trial)]
            ready = [trial for trial in counted if trial.state.is_finished()]
            if len(ready) >= wanted:
                break
            if len([trial for trial in counted if trial.state != optuna.trial.TrialState.WAITING]) >= wanted:
                time.sleep(POLL_SECONDS)  # others are still at work on the last ones
                continue
            # Drawn by what there is, not by which process draws: kills change nothing
            study.sampler = self._fresh(len(counted))
            is_free = not any(trial.state == optuna.trial.TrialState.WAITING for trial in counted)
            if is_free and models(study.sampler, len(self.goals.objectives)):
                with quietly():
                    # By another sampler, since those that model take one study each, and this one is asked yet where
                    # another worker is the first to take what is proposed
                    sampler = self._fresh(len(counted))
                    study.enqueue_trial(proposed(sampler, self.space, self._bar, counted))
            with quietly():
                study.optimize(
                    lambda trial: self._objective(study, trial, wanted, say),
                    n_trials=1,
                    catch=(*_FAILURES, _SurplusError),
                )
            _require_given(study)
            if study._stop_flag:  # a grid that has no more; Optuna says so in no other way
                break

    def _objective(
        self, study: "optuna.Study", trial: "optuna.Trial", wanted: int, say: Callable[[str], None]
    ) -> Sequence[float] | float:
        import optuna

        if self._is_surplus(study, trial.number, wanted):
            trial.set_user_attr(SURPLUS, True)
            raise _SurplusError
        with self._leases.hold(trial):
            is_given = trial.user_attrs.get(AS_GIVEN)
            try:
                values = self.space.suggested(trial, set(self.space.as_given()) if is_given else None)
                values = {} if is_given else values
                trial.set_user_attr(VALUES, values)
                figures = self._judged(study, trial, values)
            except optuna.TrialPruned as stop:
                trial.set_user_attr(STOPPED, str(stop))
                say(f"trial {trial.number}: stopped, {stop}")
                raise
            except _FAILURES as error:
                trial.set_user_attr(ERROR, str(error) or type(error).__name__)
                say(f"trial {trial.number}: failed, {error}")
                raise
            except BaseException:  # interrupted, or the storage is gone: no fault of the trial's
                with suppress(Exception):
                    _give_back(study, trial)
                raise
            trial.set_user_attr(CONSTRAINTS, self.goals.excesses(figures))
            shown = ", ".join(f"{name} {figures[name]:.4g}" for name in sorted(self.goals.names))
            say(f"trial {trial.number}: {shown}")
        return self.goals.values(figures)

    def _judged(self, study: "optuna.Study", trial: "optuna.Trial", values: dict[str, Any]) -> Figures:
        import optuna

        told: dict[str, Figures] = {}
        # Those that others are compared with are trained to their end in any case
        is_whole = trial.user_attrs.get(AS_GIVEN) or trial.user_attrs.get(FIRST) or not self._rungs_pay(study)
        rungs = [] if is_whole else sorted(self.settings.rungs)
        for step, share in enumerate([*rungs, WHOLE]):
            judged = self.trials.run(trial.number, values, share)
            figures = judged.figures
            unknown_names(self.goals, figures)
            told[str(share)] = figures
            trial.set_user_attr(STAGES, judged.stages)
            trial.set_user_attr(FIGURES, told)
            if share == WHOLE:
                break
            finished = [each.user_attrs[FIGURES] for each in completed(study)]
            if reason := self._bar.hopeless(str(share), figures, finished):
                raise optuna.TrialPruned(f"after {share:.0%} of the training: {reason}")
            if len(self.goals.objectives) == 1:
                trial.report(self.goals.values(figures)[0], step)
                if trial.should_prune():
                    raise optuna.TrialPruned(f"after {share:.0%} of the training others were better")
        return told[str(WHOLE)]

    def _rungs_pay(self, study: "optuna.Study") -> bool:
        """Whether a look before the end is likely to save more training than it takes, by how many trials it stopped.

        A rung is a training of its own, with a schedule as long as it is. Before there is any, one trial of three is
        taken to be stopped. With one objective Optuna's pruner decides, which learns from rungs alone.
        """
        if len(self.goals.objectives) == 1 or not self.settings.rungs:
            return True
        finished = [each for each in study.get_trials(deepcopy=False) if each.state.is_finished()]
        looked = [each for each in finished if set(each.user_attrs.get(FIGURES, {})) - {str(WHOLE)}]
        stopped = sum(STOPPED in each.user_attrs for each in looked)
        return (1 + stopped) / (3 + len(looked)) > min(self.settings.rungs)

    def _is_surplus(self, study: "optuna.Study", number: int, wanted: int) -> bool:
        earlier = [each for each in study.get_trials(deepcopy=False) if each.number < number and not is_void(each)]
        return len(earlier) >= wanted

    def _take_over(self, study: "optuna.Study") -> None:
        """Give trials whose worker is lost back to be run again, with the same values."""
        import optuna

        running = study.get_trials(deepcopy=False, states=[optuna.trial.TrialState.RUNNING])
        for trial in self._leases.lost(running):
            remove_leftovers(self.trials.folder_of(trial.number))  # before it counts as over: then nobody comes back
            try:
                study.tell(trial.number, state=optuna.trial.TrialState.FAIL)
            except (ValueError, optuna.exceptions.UpdateFinishedTrialError):  # another worker has seen it, too
                continue
            _give_back(study, trial)


def _give_back(study: "optuna.Study", trial: Any) -> None:
    """Let a trial that came to no end be run again, once, with the same values."""
    if any(each.user_attrs.get(RETRY_OF) == trial.number for each in study.get_trials(deepcopy=False)):
        return
    again = {name: True for name in (AS_GIVEN, FIRST, OUTSIDE) if trial.user_attrs.get(name)}
    study.enqueue_trial(trial.params, user_attrs={RETRY_OF: trial.number, **again})


def _require_given(study: "optuna.Study") -> None:
    """Refuse to go on where nothing can come of it.

    Raises:
        ConfigError: the recipe as given fails.
    """
    for trial in study.get_trials(deepcopy=False):
        if trial.user_attrs.get(AS_GIVEN) and ERROR in trial.user_attrs:
            raise ConfigError(f"the recipe as given does not run: {trial.user_attrs[ERROR]}")


def is_void(trial: Any) -> bool:
    """Whether a trial counts for nothing: its worker was killed or interrupted, or it was one too many."""
    attrs = trial.user_attrs
    failed = trial.state.name == "FAIL"
    return bool(attrs.get(SURPLUS) or (failed and ERROR not in attrs))


def completed(study: "optuna.Study") -> list[Any]:
    """Trials that were trained to their end."""
    import optuna

    return study.get_trials(deepcopy=False, states=[optuna.trial.TrialState.COMPLETE])


@contextmanager
def quietly() -> Iterator[None]:
    """Without Optuna's remarks that much of it is experimental."""
    import optuna

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        yield


def _await_ready(study: "optuna.Study") -> None:
    """Wait for the worker that makes the study to give it its first trials.

    Raises:
        ConfigError: it never does.
    """
    until = time.monotonic() + READY_SECONDS
    while READY not in study.user_attrs:
        if time.monotonic() > until:
            raise ConfigError(
                f"the study '{study.study_name}' was never finished being made; remove it from its storage, or give "
                "another --storage"
            )
        time.sleep(POLL_SECONDS)


def _differences(before: Any, now: Any, where: str = "") -> list[str]:
    """Dotted keys in which two recipes differ, with both values."""
    if not (isinstance(before, dict) and isinstance(now, dict)):
        return [] if before == now else [f"{where}: {before!r}, now {now!r}"]
    found = []
    for key in {**before, **now}:
        found += _differences(before.get(key), now.get(key), f"{where}.{key}".lstrip("."))
    return found

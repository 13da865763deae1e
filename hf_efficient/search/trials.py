"""One trial: a recipe with some values changed, trained as far as it is worth it, and measured."""

import dataclasses
import logging
import shutil
import statistics
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

from hf_efficient.errors import ConfigError, NoEffectWarning
from hf_efficient.files import write_json, write_text
from hf_efficient.job import Job
from hf_efficient.measure import bytes_on_disk
from hf_efficient.phase import FINAL
from hf_efficient.predictor import EXPORTED
from hf_efficient.recipe import Recipe, Stage
from hf_efficient.search.goals import MEASURED, Goals
from hf_efficient.search.speeds import SpeedTable
from hf_efficient.search.store import StageStore

logger = logging.getLogger(__name__)

RESULT = "figures.json"
LOG = "log.txt"
AUTO = "auto"
SPEEDS = frozenset({"latency_ms", "throughput"})
WHOLE = 1.0
DEFAULT_EPOCHS = 3.0
"""Of transformers."""

Figures = dict[str, float]


@dataclasses.dataclass(frozen=True)
class Judged:
    """What is known of a trial after a share of its training.

    Attributes:
        figures: name -> value, measured on validation data and on this machine.
        stages: hashes of its stages in the store.
    """

    figures: Figures
    stages: list[str]


class Trials:
    """Runs the trials of one search.

    Args:
        recipe: as given.
        folder: of the search: `stages/` and `trials/<number>/` are written there.
        goals: what has to be known of a trial.
        shared: index of the first stage that trials may differ in; those before are never shortened.
    """

    def __init__(self, recipe: Recipe, folder: Path, goals: Goals, shared: int):
        self.recipe, self.folder, self.goals = recipe, folder, goals
        self.store = StageStore(folder / "stages", recipe.search.launch if recipe.search else "")
        self._speeds = SpeedTable(folder / "speeds")
        self._shared = set(list(recipe.stages)[:shared])
        self._job: Job | None = None

    def job(self, recipe: Recipe) -> Job:
        """The recipe with its data; loaded anew only where ``recipe`` has other data or another model.

        Raises:
            ConfigError, DataError, MissingDependencyError: a recipe that cannot run.
        """
        known = self._job
        same = ("task", "model", "data", "seed")
        if known is None or any(getattr(known.recipe, name) != getattr(recipe, name) for name in same):
            self._job = Job.prepare(recipe)
            return self._job
        made = dataclasses.replace(known, recipe=recipe)
        made.use(recipe.model)
        made.check()
        return made

    def folder_of(self, number: int) -> Path:
        """Where a trial leaves its recipe, its figures, and what was said."""
        return self.folder / "trials" / f"{number:04d}"

    def run(self, number: int, values: Mapping[str, Any], share: float = WHOLE) -> Judged:
        """What the recipe with ``values`` gives after ``share`` of the epochs of all stages that trials differ in.

        Raises:
            ConfigError, DataError, ExportError, MissingDependencyError: a recipe that cannot run.
        """
        folder = self.folder_of(number)
        folder.mkdir(parents=True, exist_ok=True)
        with (
            open(folder / LOG, "a", encoding="utf-8") as log,
            redirect_stdout(log),
            redirect_stderr(log),
            warnings.catch_warnings(),
        ):
            warnings.simplefilter("ignore", NoEffectWarning)  # a space may hold points where nothing is done
            return self._run(folder, values, share)

    def _run(self, folder: Path, values: Mapping[str, Any], share: float) -> Judged:
        recipe = shortened(self.recipe.changed(values), share, self._shared)
        job = self.job(recipe)
        folders, told = self.store.trained(job)
        last = list(folders.values())[-1] / FINAL
        figures = {"training_seconds": sum(stage["training"].get("seconds", 0.0) for stage in told.values())}
        if job.recipe.export is not None and share == WHOLE:
            figures.update(self._exported(job, last, folder / EXPORTED))
        else:
            figures.update(self._plain(job, last, folder))
        if share == WHOLE:
            write_text(folder / "recipe.yaml", recipe.to_yaml())
            write_json(folder / RESULT, figures)
        return Judged(figures, [path.name for path in folders.values()])

    def _plain(self, job: Job, model: Path, folder: Path) -> Figures:
        figures = {**job.validated(model, folder), "bytes": float(bytes_on_disk(model))}
        if wanted := self.goals.names & SPEEDS:
            loaded = job.task.load_model(str(model))
            figures.update(
                self._speeds.find(wanted, loaded, {}, lambda name: job.speed(name, job.task.runtime(loaded)))
            )
        return figures

    def _exported(self, job: Job, model: Path, folder: Path) -> Figures:
        chosen = job.recipe.export
        assert chosen is not None
        is_open = AUTO in (chosen.format, chosen.quantize)  # then what is fastest is exported
        try:
            found = job.export(model, folder, timed=is_open)
            assert found is not None
            figures = {**found.metrics, "bytes": float(bytes_on_disk(folder))}
            if wanted := self.goals.names & SPEEDS:
                serving = {"format": found.format, "quantize": found.quantize, "in_float": found.in_float}
                loaded = job.task.load_model(str(model))
                figures.update(
                    self._speeds.find(wanted, loaded, serving, lambda name: job.speed(name, found.runtime()))
                )
            return figures
        finally:  # the run of the one that is picked exports it again
            shutil.rmtree(folder, ignore_errors=True)

    def metrics(self) -> dict[str, bool]:
        """The task's main metric -> whether more is better."""
        task = self.job(self.recipe).task
        return {task.main_metric: task.greater_is_better}


def shortened(recipe: Recipe, share: float, whole: set[str]) -> Recipe:
    """``recipe`` with only so large a share of the epochs, or steps, of its stages; those in ``whole`` stay."""
    if share >= WHOLE:
        return recipe
    stages = {name: stage if name in whole else _shorter(stage, share) for name, stage in recipe.stages.items()}
    return recipe.model_copy(update={"stages": stages})


def _shorter(stage: Stage, share: float) -> Stage:
    training = dict(stage.training)
    steps = int(training.get("max_steps", -1))
    if steps > 0:
        training["max_steps"] = max(1, round(share * steps))
    else:
        training["num_train_epochs"] = share * float(training.get("num_train_epochs", DEFAULT_EPOCHS))
    return stage.model_copy(update={"training": training})


class Bar:
    """What finished trials teach of whether another may still be worth it (several objectives, or constraints).

    A trial's value after a rung is taken to improve, until the end, by as much as the best that any finished trial
    improved from the same rung. If even then a finished trial dominates it, or a constraint is broken, it may stop.
    """

    def __init__(self, goals: Goals):
        self.goals = goals

    def optimistic(self, rung: str, figures: Figures, finished: Sequence[Mapping[str, Figures]]) -> Figures | None:
        """``figures`` after the share ``rung`` as they may be at the end; None where no finished trial tells.

        Args:
            finished: of each finished trial, share -> figures.
        """
        return self._at_end(rung, figures, finished, lambda gains, maximize: max(gains) if maximize else min(gains))

    def expected(self, rung: str, figures: Figures, finished: Sequence[Mapping[str, Figures]]) -> Figures | None:
        """As `optimistic`, but as they are likely to be: improved as much as finished trials did on average."""
        return self._at_end(rung, figures, finished, lambda gains, maximize: statistics.fmean(gains))

    def _at_end(
        self,
        rung: str,
        figures: Figures,
        finished: Sequence[Mapping[str, Figures]],
        choose: Callable[[Sequence[float], bool], float],
    ) -> Figures | None:
        both = [(trial[rung], trial[str(WHOLE)]) for trial in finished if rung in trial and str(WHOLE) in trial]
        if not both:
            return None
        wanted = {goal.name: goal.maximize for goal in self.goals.objectives}
        wanted.update({bound.name: bound.at_least for bound in self.goals.constraints})
        found = {}
        for name, maximize in wanted.items():
            if name in MEASURED and name != "training_seconds":
                # an export is measured at the end only, and what it is faster by differs little between trials
                ratios = [after[name] / before[name] for before, after in both if before.get(name)]
                found[name] = figures[name] * (choose(ratios, maximize) if ratios else 1.0)
            else:
                gains = [after[name] - before[name] for before, after in both]
                found[name] = figures[name] + choose(gains, maximize)
        return found

    def hopeless(self, rung: str, figures: Figures, finished: Sequence[Mapping[str, Figures]]) -> str:
        """Why the trial need not go on; empty where it may be worth it."""
        best = self.optimistic(rung, figures, finished)
        if best is None:
            return ""
        for constraint in self.goals.constraints:
            if constraint.excess(best) > 0:
                return f"{constraint} will not be kept: {best[constraint.name]:.4g} at the very best"
        mine = self.goals.values(best)
        for trial in finished:
            figures_then = trial.get(str(WHOLE))
            if figures_then is not None and self.goals.dominates(self.goals.values(figures_then), mine):
                return "another trial is better by all objectives, whatever is still gained"
        return ""


def unknown_names(goals: Goals, figures: Figures) -> None:
    """Refuse objectives that a trial does not tell.

    Raises:
        ConfigError: names the first.
    """
    try:
        goals.require(figures)
    except ConfigError as error:
        raise ConfigError(
            f"{error}; speeds and bytes beside the task's metrics: {', '.join(sorted(MEASURED))}"
        ) from None

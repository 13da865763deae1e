"""Run a recipe: train its stages one after the other, measure before and after, keep everything in one folder.

Layout of `runs/<recipe>/<time>/`::

    recipe.yaml     as resolved, overrides included
    run.json        status, seed, versions, machine
    stages/<name>/  checkpoints while it trains, then final/
    metrics.json    validation and test metrics, before and after
    report.json, report.md, report.png, training.png
    final/          the model and its card: AutoModel...from_pretrained("runs/.../final")
    exported/       the same for another runtime, where the recipe says so: exported_pipeline("runs/.../exported")
    app/            what the recipe's app prepared for `hf-efficient serve`
"""

import logging
from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path

from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from transformers import set_seed

from hf_efficient.errors import ConfigError
from hf_efficient.files import atomic_folder, read_json, remove_leftovers, write_text
from hf_efficient.job import FINISHED, RUNNING, Job, RunResult, write_status
from hf_efficient.recipe import Recipe
from hf_efficient.resumption import AUTO
from hf_efficient.tuning import Tuning

logger = logging.getLogger(__name__)

RECIPE = "recipe.yaml"
_NEW_SECONDS = 60.0
"""Longer than it takes to make the folder of a run: what is older was left by a process that died at it."""


def run(
    recipe: Recipe | str | Path,
    overrides: Sequence[str] = (),
    *,
    runs: str | Path = "runs",
    resume: bool | str = False,
    say: Callable[[str], None] = logger.info,
) -> RunResult | None:
    """Run ``recipe`` (bundled name, YAML path or object) with ``key.key=value`` overrides.

    Args:
        runs: folder that holds the run folders.
        resume: continue the newest unfinished run of this recipe: finished stages are skipped. ``"auto"`` starts a new
            run where there is none.
        say: as for `Job.run`.

    Returns:
        the result; None on processes other than the main one.

    Raises:
        ConfigError, DataError, MissingDependencyError: before anything is written, where the cause is bad input.
        ExportError: the export does not compute what the model does; the run is finished but for it.
        Preempted: SIGTERM came; what to resume from is saved.
    """
    if not isinstance(recipe, Recipe):
        recipe = Recipe.load(recipe, overrides)
    elif overrides:
        raise ConfigError("overrides go with a recipe's name or path, not with a Recipe object")
    else:
        recipe.check()  # `load` has done so for the others
    folder = None
    if resume:
        folder, recipe = _to_resume(Path(runs), recipe, bool(overrides), resume == AUTO)
    job = Job.prepare(recipe)
    return job.run(folder or _new_folder(Path(runs), recipe), say)


def run_in(recipe: Recipe, runs: Path, prepare: Callable[[Path], None]) -> RunResult:
    """Run ``recipe`` after ``prepare`` has put into the run's folder what is there already; in one process.

    A run of the very same recipe that did not finish is continued.

    Args:
        prepare: leaves alone what it has put there before.

    Raises:
        ConfigError, DataError, ExportError, MissingDependencyError: as for `run`.
    """
    job = Job.prepare(recipe)
    folder = _to_resume(runs, recipe, False, True)[0] or _new_folder(runs, recipe)
    prepare(folder)
    result = job.run(folder)
    assert result is not None
    return result


def autotune(recipe: str | Path, overrides: Sequence[str] = (), *, folder: Path) -> Tuning | None:
    """What autotune finds for the first stage of ``recipe``, with ``overrides``, written to ``folder``; nothing trains.

    Returns:
        the choice; None on processes other than the main one.

    Raises:
        ConfigError, DataError, MissingDependencyError: bad input.
    """
    stage = next(iter(Recipe.load(recipe, overrides).stages))
    job = Job.prepare(Recipe.load(recipe, [*overrides, f"stages.{stage}.training.autotune=true"]))
    set_seed(job.recipe.seed)
    trainer = job.trainer(job.task.load_model(job.recipe.model), job.arguments(stage, folder))
    return trainer.tuning if PartialState().is_main_process else None


def _to_resume(runs: Path, recipe: Recipe, changed: bool, auto: bool) -> tuple[Path | None, Recipe]:
    """The newest unfinished run of ``recipe``, cleared of what a killed process left, and the recipe it was started
    with.

    Args:
        changed: by overrides.
        auto: only a run of the very same recipe, or none.

    Raises:
        ConfigError: there is none, or it was started with other settings.
    """
    found = unfinished(runs, recipe.name)
    if auto:
        found = [folder for folder in found if _is_of(folder, recipe)]
        if not found:
            return None, recipe
    if not found:
        raise ConfigError(
            f"nothing to resume: no unfinished run of '{recipe.name}' in {runs / recipe.name}; start one without "
            f"--resume, or with --resume {AUTO}"
        )
    folder = found[0]
    known = Recipe.load(folder / RECIPE)
    if changed and known != recipe:
        raise ConfigError("--resume continues a run with the settings it was started with; drop the overrides")
    if PartialState().is_main_process:
        remove_leftovers(folder)
    PartialState().wait_for_everyone()
    return folder, known


def _is_of(folder: Path, recipe: Recipe) -> bool:
    """Whether a run was started with ``recipe``; one whose recipe cannot be read was not."""
    try:
        return Recipe.load(folder / RECIPE) == recipe
    except ConfigError:
        return False


def unfinished(runs: Path, name: str) -> list[Path]:
    """Folders of the runs of recipe ``name`` that did not finish, newest first."""
    files = sorted((runs / name).glob("*/run.json"), reverse=True)
    return [file.parent for file in files if read_json(file).get("status") != FINISHED]


def _new_folder(runs: Path, recipe: Recipe) -> Path:
    shared = [datetime.now().strftime("%Y-%m-%dT%H-%M-%S.%f")[:-3]]
    if PartialState().num_processes > 1:
        broadcast_object_list(shared)
    folder = runs / recipe.name / shared[0]
    if PartialState().is_main_process:
        remove_leftovers(folder.parent, deep=False, older_s=_NEW_SECONDS)
        with atomic_folder(folder) as temporary:
            write_text(temporary / RECIPE, recipe.to_yaml())
            write_status(temporary, recipe, RUNNING)
    PartialState().wait_for_everyone()
    return folder

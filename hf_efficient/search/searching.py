"""Run a search, with one worker or several, and put its result in place."""

import logging
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accelerate import PartialState

from hf_efficient.errors import ConfigError
from hf_efficient.files import remove_leftovers, write_text
from hf_efficient.machine import available_cores
from hf_efficient.recipe import Recipe
from hf_efficient.run import run_in
from hf_efficient.search.earlier import STUDY
from hf_efficient.search.goals import Rule
from hf_efficient.search.result import CHOSEN, Found, chosen_recipe, put_in_place
from hf_efficient.search.study import Search

logger = logging.getLogger(__name__)

RECIPE = "search.yaml"
NAME = "search"


@dataclass
class SearchResult:
    """What a search leaves.

    Attributes:
        folder: of the search.
        found: its trials, and which is chosen.
        recipe: path of the chosen trial's recipe; None where no trial keeps the constraints.
        run: folder of its finished run; None where that was not asked for.
    """

    folder: Path
    found: Found
    recipe: Path | None = None
    run: Path | None = None


def search(
    recipe: str | Path,
    overrides: Sequence[str] = (),
    *,
    trials: int | None = None,
    runs: str | Path = "runs",
    name: str = NAME,
    storage: str | None = None,
    workers: int = 1,
    pick: str | None = None,
    finish: bool = True,
    say: Callable[[str], None] = logger.info,
) -> SearchResult:
    """Search ``recipe`` until its study has ``trials`` finished trials, those of earlier calls counted.

    Args:
        recipe, overrides: as for `run`; the recipe has a ``search:`` block (`SearchSettings`).
        trials: in all; None runs none, and looks at those that are there.
        runs: folder of run folders; the search lies in ``<runs>/<recipe>/<name>``.
        storage: URL of an Optuna storage, or a file ending in .log; None: SQLite in that folder.
        workers: processes on this machine; others may work on the same storage.
        pick: rule by which a trial is chosen, such as ``accuracy >= 0.92, min latency_ms``.
        finish: whether the chosen trial becomes a finished run, with report and card.
        say: told of each trial.

    Raises:
        ConfigError, DataError, MissingDependencyError: bad input, or nothing that could be chosen.
        KeyboardInterrupt: after what is there was written.
    """
    if (trials is not None and trials < 1) or workers < 1:
        raise ConfigError(f"a search takes at least one trial and one worker, got {trials} and {workers}")
    if PartialState().num_processes > 1:
        raise ConfigError(
            "a search itself is one process: start it without accelerate launch, and let it start the training of its "
            "trials with --launch 'accelerate launch ...'"
        )
    began = time.time()
    loaded = Recipe.load(recipe, overrides)
    folder = Path(runs) / loaded.name / name
    one = Search(loaded, folder, storage)
    rule = None if pick is None else Rule.parse(pick, one.known)
    if trials is None and not (folder / STUDY).is_file():
        raise ConfigError(f"there is no search in {folder} yet; say how many --trials to run")
    study = one.open(trials or 1, workers > 1)
    write_text(folder / RECIPE, loaded.to_yaml())
    say(f"sampler: {one.reason}")
    try:
        if trials is None:
            pass
        elif workers == 1:
            one.work(study, trials, say)
        else:
            _work_apart(folder, storage, trials, workers)
    except KeyboardInterrupt:
        found = Found.of(study, one.goals)
        found.save(folder, study, _title(loaded), ["Interrupted."])
        say(f"interrupted; what is there: {folder / 'study.md'}; go on with the same command")
        raise
    found = Found.of(study, one.goals, rule)
    # What is older than this search was left by one that was killed; other machines may be writing what is newer
    remove_leftovers(folder, deep=False, older_s=time.time() - began)
    result = _written(one, found, study)
    used = {key for trial in found.trials if _stays(trial, found) for key in trial["stages"]}
    one.trials.store.keep(used)
    if finish and found.chosen is not None:
        result.run = _finished(loaded, found, folder, Path(runs))
    return result


def _stays(trial: dict[str, Any], found: Found) -> bool:
    return trial["as_given"] or trial["number"] == found.chosen or trial["number"] in found.front


def _title(recipe: Recipe) -> str:
    return f"{recipe.name}: search"


def _written(one: Search, found: Found, study: Any) -> SearchResult:
    notes = [f"Sampler: {one.reason}."]
    recipe = None
    if found.chosen is None:
        notes.append("No trial keeps all constraints.")
    else:
        notes.append(f"Chosen: trial {found.chosen}, {found.rule}.")
        recipe = one.folder / CHOSEN
        write_text(recipe, chosen_recipe(one.recipe, found.trial(found.chosen)["values"]).to_yaml())
    found.save(one.folder, study, _title(one.recipe), notes)
    return SearchResult(one.folder, found, recipe)


def _finished(recipe: Recipe, found: Found, folder: Path, runs: Path) -> Path:
    assert found.chosen is not None
    chosen = chosen_recipe(recipe, found.trial(found.chosen)["values"])
    result = run_in(chosen, runs, lambda path: put_in_place(chosen, found, folder, path))
    return result.folder


def _work_apart(folder: Path, storage: str | None, trials: int, workers: int) -> None:
    """Let ``workers`` processes run trials, each with its part of the cores.

    Raises:
        ConfigError: none of them came to an end.
    """
    threads = str(max(1, available_cores() // workers))
    command = [
        sys.executable,
        "-m",
        "hf_efficient.search.worker",
        str(folder),
        str(trials),
        *([storage] if storage else []),
    ]
    started = [subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": threads}) for _ in range(workers)]
    try:
        codes = [process.wait() for process in started]
    except KeyboardInterrupt:
        _wait(started)
        raise
    if all(codes):
        raise ConfigError(f"all {workers} workers failed; what they said is above")


def _wait(processes: Iterable["subprocess.Popen[bytes]"]) -> None:
    for process in processes:  # who interrupts at a terminal interrupts them, too
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

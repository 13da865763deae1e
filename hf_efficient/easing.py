"""A stage that loses more than it may is undone, and trained anew with a change about half as large.

What is undone lies in `undone/<stage>-<number>` of the run: how many there are says, after a restart too, how often the
stage was eased.
"""

import logging
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from accelerate import PartialState

from hf_efficient.errors import TrainingError
from hf_efficient.files import read_json, write_json
from hf_efficient.outcome import STAGE_FILE
from hf_efficient.phase import FINAL
from hf_efficient.recipe import eased
from hf_efficient.wording import details

if TYPE_CHECKING:
    from hf_efficient.job import Job

logger = logging.getLogger(__name__)

TRIES = 4
"""How often a stage is trained at most."""
UNDONE = "undone"
LOSS = "loss.json"


def train_within(job: "Job", name: str, folder: Path, model: str) -> None:
    """Train stage ``name`` of ``job`` from ``model`` so that it loses no more than its `max_drop`; ``job`` goes by
    eased settings from then on.

    Raises:
        TrainingError: it loses more however little it changes.
    """
    limit = job.recipe.stages[name].max_drop
    for _ in _undone(folder):
        _ease(job, name)
    while True:
        if not (folder / STAGE_FILE).is_file():
            job.train(name, folder, model)
        if limit is None:
            return
        lost = _loss(job, name, folder, model)
        if lost["drop"] <= limit:
            return
        told = (
            f"loses {lost['drop']:.4f} of {job.task.main_metric} with {details(lost['changed'])} (max_drop: {limit:g})"
        )
        tries = len(_undone(folder)) + 1
        if tries == TRIES or not eased(lost["changed"], f"stages.{name}.optimizations"):
            raise TrainingError(
                f"stages.{name} {told}, the mildest of {tries} tries; allow more, train longer, or list distillation"
            )
        logger.warning("stage %s %s: it is undone, and trained with less", name, told)
        _undo(folder)
        _ease(job, name)


def notes_of_undone(folder: Path, name: str) -> Iterator[str]:
    """What the report of the run in ``folder`` says of each time that stage ``name`` was undone."""
    for path in _undone(folder / "stages" / name):
        lost = read_json(path / LOSS)
        yield f"{name} was undone: it lost {lost['drop']:.4f} at {details(lost['changed'])}."


def _ease(job: "Job", name: str) -> None:
    where = f"stages.{name}.optimizations"
    job.recipe = job.recipe.changed({where: eased(job.recipe.stages[name].optimizations, where)})


def _loss(job: "Job", name: str, folder: Path, model: str) -> dict[str, Any]:
    """By how much the finished stage is worse than what it began with, by the main metric on validation data."""
    if not (folder / LOSS).is_file():
        before, after = (job.validated(path, folder)[job.task.main_metric] for path in (model, folder / FINAL))
        drop = before - after if job.task.greater_is_better else after - before
        changed = job.recipe.stages[name].optimizations
        if PartialState().is_main_process:
            write_json(folder / LOSS, {"drop": drop, "before": before, "after": after, "changed": changed})
        PartialState().wait_for_everyone()
    found: dict[str, Any] = read_json(folder / LOSS)
    return found


def _undone(folder: Path) -> list[Path]:
    return sorted((folder.parents[1] / UNDONE).glob(f"{folder.name}-*"))


def _undo(folder: Path) -> None:
    """Put the stage in ``folder`` aside, all at once; only what it came to is kept."""
    PartialState().wait_for_everyone()
    if PartialState().is_main_process:
        aside = folder.parents[1] / UNDONE / f"{folder.name}-{len(_undone(folder)) + 1}"
        aside.parent.mkdir(exist_ok=True)
        folder.rename(aside)
        for path in aside.iterdir():
            if path.is_dir():
                shutil.rmtree(path)
    PartialState().wait_for_everyone()

"""Run a recipe: train its stages one after the other, measure before and after, keep everything in one folder.

Layout of `runs/<recipe>/<time>/`::

    recipe.yaml     as resolved, overrides included
    run.json        status, seed, versions, machine
    stages/<name>/  checkpoints while it trains, then final/
    metrics.json    validation and test metrics, before and after
    report.json, report.md, report.png
    final/          the model: AutoModel...from_pretrained("runs/.../final")
"""

import dataclasses
import json
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from datasets import DatasetDict
from transformers import set_seed

from hf_efficient import __version__
from hf_efficient.arguments import EfficientTrainingArguments
from hf_efficient.data import load
from hf_efficient.errors import ConfigError
from hf_efficient.files import atomic_folder, write_json, write_text
from hf_efficient.measure import Measurement, PeakMemory, TorchRuntime, machine, measure, peak_memory_mb
from hf_efficient.optimization import Context
from hf_efficient.phase import FINAL
from hf_efficient.plan import Plan, build_optimizations
from hf_efficient.recipe import STAGE_DEFAULTS, Recipe, training_values
from hf_efficient.report import Report
from hf_efficient.settings import parse
from hf_efficient.task import Task, get_task
from hf_efficient.trainer import EfficientTrainer

MEASURED_EXAMPLES = 256
"""Real examples on which latency and throughput are measured."""

FINISHED, RUNNING = "finished", "running"


@dataclass
class RunResult:
    """What a run leaves.

    Attributes:
        folder: the run folder.
        model: the finished model's folder.
        metrics: ``{"validation" or "test": {"before": {...}, "after": {...}}}``.
        report: before and after, measured on this machine.
    """

    folder: Path
    model: Path
    metrics: dict[str, dict[str, dict[str, float]]]
    report: Report


def run(
    recipe: Recipe | str | Path,
    overrides: Sequence[str] = (),
    *,
    runs: str | Path = "runs",
    resume: bool = False,
) -> RunResult | None:
    """Run ``recipe`` (bundled name, YAML path or object) with ``key.key=value`` overrides.

    Args:
        runs: folder that holds the run folders.
        resume: continue the newest unfinished run of this recipe: finished stages are skipped.

    Returns:
        the result; None on processes other than the main one.

    Raises:
        ConfigError, DataError, MissingDependencyError: before anything is written, where the cause is bad input.
    """
    if not isinstance(recipe, Recipe):
        recipe = Recipe.load(recipe, overrides)
    elif overrides:
        raise ConfigError("overrides go with a recipe's name or path, not with a Recipe object")
    folder = None
    if resume:
        folder = newest_unfinished(Path(runs), recipe.name)
        if overrides:
            raise ConfigError("--resume continues a run with the settings it was started with; drop the overrides")
        recipe = Recipe.load(folder / "recipe.yaml")
    job = _Job.prepare(recipe)
    return job.run(folder or _new_folder(Path(runs), recipe))


def newest_unfinished(runs: Path, name: str) -> Path:
    """The newest run folder of recipe ``name`` that did not finish.

    Raises:
        ConfigError: there is none.
    """
    for file in sorted((runs / name).glob("*/run.json"), reverse=True):
        if json.loads(file.read_text(encoding="utf-8"))["status"] != FINISHED:
            return file.parent
    raise ConfigError(f"nothing to resume: no unfinished run of '{name}' in {runs / name}; start one without --resume")


def _new_folder(runs: Path, recipe: Recipe) -> Path:
    shared = [datetime.now().strftime("%Y-%m-%dT%H-%M-%S.%f")[:-3]]
    if PartialState().num_processes > 1:
        broadcast_object_list(shared)
    folder = runs / recipe.name / shared[0]
    if PartialState().is_main_process:
        write_text(folder / "recipe.yaml", recipe.to_yaml())
        _write_status(folder, recipe, RUNNING)
    PartialState().wait_for_everyone()
    return folder


def _write_status(folder: Path, recipe: Recipe, status: str) -> None:
    packages = ("torch", "transformers", "accelerate", "datasets")
    versions = {"hf_efficient": __version__, **{name: metadata.version(name) for name in packages}}
    state = {"status": status, "recipe": recipe.name, "seed": recipe.seed, "versions": versions, "machine": machine()}
    write_json(folder / "run.json", state)


@dataclass
class _Job:
    """A recipe with its task, data and processor loaded: everything that can be refused has been."""

    recipe: Recipe
    task: Task
    data: DatasetDict
    encoded: DatasetDict
    processor: Any

    @classmethod
    def prepare(cls, recipe: Recipe) -> "_Job":
        recipe.check()
        task_class = get_task(recipe.task)
        settings = parse(task_class.data_settings, recipe.data, "data")
        data = load(settings, seed=recipe.seed)
        task = task_class(settings)
        task.check(data)
        processor = task.load_processor(recipe.model)
        encoded = DatasetDict({name: task.encode(split) for name, split in data.items()})
        job = cls(recipe, task, data, encoded, processor)
        set_seed(recipe.seed)
        model = task.load_model(recipe.model)
        for name in recipe.stages:
            args = job._arguments(name, Path("unused"))
            plan = Plan(build_optimizations(args.optimizations, f"stages.{name}.optimizations"))
            plan.check(Context(args=args, model=model))
        return job

    def run(self, folder: Path) -> RunResult | None:
        timings: dict[str, dict[str, Any]] = {}
        changes: list[dict[str, Any]] = []
        model_path = self.recipe.model
        for name in self.recipe.stages:
            stage = folder / "stages" / name
            if not (stage / FINAL).is_dir():
                timings[name], described = self._train(name, stage, model_path)
                changes += described
                write_json(stage / "stage.json", {"training": timings[name], "changes": described})
            model_path = str(stage / FINAL)
        first, last = (folder / "stages" / name / FINAL for name in (next(iter(self.recipe.stages)), name))
        metrics = self._metrics(first, last, folder)
        result = None
        if PartialState().is_main_process:
            result = self._finish(folder, first, last, metrics)
        PartialState().wait_for_everyone()
        return result

"""A recipe at work: its stages trained, its models judged, measured and put in place, in one folder."""

import contextlib
import itertools
import logging
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from transformers import EvalPrediction, set_seed

from hf_efficient import __version__
from hf_efficient.accounting import account, starved, training_figures
from hf_efficient.app import parse_app, prepare_app
from hf_efficient.before_after import plain_metrics
from hf_efficient.candidates import require_choice
from hf_efficient.card import write_card
from hf_efficient.data import load
from hf_efficient.easing import notes_of_undone, train_within
from hf_efficient.errors import ConfigError, ExportError, MissingDependencyError
from hf_efficient.example_cache import FOLDER as EXAMPLE_CACHE
from hf_efficient.export import ExportResult
from hf_efficient.exported import exported_pipeline, pipeline_of
from hf_efficient.failures import explained
from hf_efficient.files import atomic_folder, atomic_path, read_json, write_json
from hf_efficient.measure import PeakMemory, machine
from hf_efficient.optimization import Context
from hf_efficient.outcome import STAGE_FILE, Outcome
from hf_efficient.phase import FINAL, save_final
from hf_efficient.plan import Plan, build_optimizations
from hf_efficient.predictor import EXPORTED, Predictor
from hf_efficient.preemption import preemptible
from hf_efficient.recipe import STAGE_DEFAULTS, Recipe, training_values, with_stages
from hf_efficient.report import Report
from hf_efficient.resumption import AUTO
from hf_efficient.settings import parse
from hf_efficient.task import get_task
from hf_efficient.wording import details

logger = logging.getLogger(__name__)

FINISHED, RUNNING = "finished", "running"


@dataclass
class RunResult:
    """What a run leaves.

    Attributes:
        folder: the run folder.
        model: the finished model's folder.
        metrics: ``{"validation" or "test": {"before": {...}, "after": {...}}}``, and of the split that the report
            speaks of ``"exported"`` where there is an export, ``"baseline"`` where the task has one.
        report: before and after, measured on this machine.
        exported: the export; None where the recipe asks for none.
    """

    folder: Path
    model: Path
    metrics: dict[str, dict[str, dict[str, float]]]
    report: Report
    exported: ExportResult | None = None
    sample: str | dict[str, str] | None = None
    """A question of the judged data, where the task's inputs are text."""

    def answer(self) -> list[dict[str, Any]]:
        """What the export says to `sample`, through its pipeline; empty without them."""
        if self.exported is None or self.sample is None:
            return []
        answers = exported_pipeline(self.exported.folder)(self.sample)
        return [answers] if isinstance(answers, dict) else answers


def write_status(folder: Path, recipe: Recipe, status: str) -> None:
    packages = ("torch", "transformers", "accelerate", "datasets")
    versions = {"hf_efficient": __version__, **{name: metadata.version(name) for name in packages}}
    state = {"status": status, "recipe": recipe.name, "seed": recipe.seed, "versions": versions, "machine": machine()}
    write_json(folder / "run.json", state)


@dataclass
class Job(Outcome):
    """A recipe with its task, data and processor loaded: everything that can be refused has been."""

    @classmethod
    def prepare(cls, recipe: Recipe) -> "Job":
        task_class = get_task(recipe.task)
        settings = parse(task_class.data_settings, recipe.data, "data")
        data = load(settings, seed=recipe.seed)
        task = task_class(settings)
        task.check(data)
        processor = task.load_processor(recipe.model)
        job = cls(recipe, task, data, task.encode_all(data), processor)
        job.check()
        if recipe.app is not None:
            app, app_settings = parse_app(recipe.app, recipe.task)
            with _told_where_missing(app.name):
                app.check(app_settings, task, data)
        return job

    def check(self) -> None:
        """Refuse stages and an export that cannot work with the model.

        Raises:
            ConfigError, MissingDependencyError: names the setting.
        """
        recipe, model = self.recipe, self.task.load_model(self.recipe.model)
        for name, stage in recipe.stages.items():
            where = f"stages.{name}"
            plan = Plan(build_optimizations(stage.optimizations, f"{where}.optimizations"))
            plan.check(Context(args=self.arguments(name, Path("runs")), model=model, processor=self.processor))
        if recipe.export is not None:
            require_choice(recipe.export.format, recipe.export.quantize)
            pipeline_of(type(model).__name__)

    def arguments(self, stage: str, folder: Path, earlier: Mapping[str, str] | None = None) -> Any:
        """Training arguments of a stage, of the task's class.

        Args:
            earlier: name of each stage before it -> the folder of its finished model; None: beside ``folder``.
        """
        where = f"stages.{stage}.training"
        own = training_values(self.recipe.stages[stage].training, where, self.task.arguments_class)
        values = {**STAGE_DEFAULTS, **_device(), **self.task.arguments(), **own}
        if values["load_best_model_at_end"]:
            values.setdefault("metric_for_best_model", self.task.main_metric)
            values.setdefault("greater_is_better", self.task.greater_is_better)
        if earlier is None:
            before = itertools.takewhile(lambda name: name != stage, self.recipe.stages)
            earlier = {name: str(folder.parent / name / FINAL) for name in before}
        optimizations = self.recipe.stages[stage].optimizations
        try:
            return self.task.arguments_class(
                output_dir=str(folder),
                seed=self.recipe.seed,
                optimizations=with_stages(optimizations, earlier, f"stages.{stage}.optimizations"),
                measure_seconds=0,  # the run measures its first and last stage itself
                **values,
            )
        except ValueError as error:
            raise ConfigError(f"{where}: {error}") from error

    def trainer(self, model: Any, args: Any) -> Any:
        return self.task.trainer(
            model=model,
            args=args,
            train_dataset=self.encoded["train"],
            eval_dataset=self.encoded["validation"],
            processing_class=self.processor,
        )

    def run(self, folder: Path, say: Callable[[str], None] = logger.info) -> RunResult | None:
        """
        Args:
            say: told, on the main process, where the run lies, and what begins.
        """
        model, models = self.recipe.model, {}
        say = say if PartialState().is_main_process else logger.debug
        say(f"run {folder}")
        for number, (name, settings) in enumerate(self.recipe.stages.items(), 1):
            listed = [each for each, given in settings.optimizations.items() if given is not False]
            say(f"stage {name} ({number} of {len(self.recipe.stages)}): {', '.join(listed) or 'plain training'}")
            stage = folder / "stages" / name
            train_within(self, name, stage, model)
            if PartialState().is_main_process:
                clear_stage(stage)
            models[name] = stage / FINAL
            model = str(stage / FINAL)
        say("judging and measuring the first stage's model and the last's")
        before, after = next(iter(models.values())), Path(model)
        metrics, classes = self.judge(before, after, folder)
        try:
            return self.finish(folder, before, after, metrics, classes) if PartialState().is_main_process else None
        finally:  # also where the export is refused: the others must not wait for ever
            PartialState().wait_for_everyone()

    def train(self, name: str, folder: Path, model: str, earlier: Mapping[str, str] | None = None) -> None:
        """Train one stage from ``model`` and leave it in `<folder>/final`, with `stage.json` to say it is done.

        Args:
            earlier: as for `arguments`.
        """
        self.use(model)
        set_seed(self.recipe.seed)
        trainer = self.trainer(self.task.load_model(model), self.arguments(name, folder, earlier))
        trainer.seals = True
        # With optimizations, its phase accounts for itself
        accounted = contextlib.nullcontext() if trainer.optimizations else account(trainer)
        with explained(), PeakMemory() as memory, accounted, preemptible(trainer):
            output = trainer.train(resume_from_checkpoint=AUTO)
        if trainer.finished is None:
            save_final(trainer, folder)
        if PartialState().is_main_process:
            training = {**training_figures(output, trainer.accounts.figures()), "peak_memory_mb": memory.peak_mb}
            if trainer.tuning is not None:
                training["autotune_seconds"] = trainer.tuning.tuning_s
            changes = Plan(trainer.optimizations).describe()
            history = trainer.state.log_history
            write_json(folder / STAGE_FILE, {"training": training, "changes": changes, "history": history})
        PartialState().wait_for_everyone()

    def judge(
        self, before: Path, after: Path, folder: Path
    ) -> tuple[dict[str, dict[str, dict[str, float]]], dict[str, dict[str, float]]]:
        """Metrics of both models on validation data and, once, on test data; and what each recognises of each class."""
        found: dict[str, dict[str, dict[str, float]]] = {}
        classes: dict[str, dict[str, float]] = {}
        for label, path in (("before", before), ("after", after)):
            trainer = self.judging(path, folder)
            for split in ("validation", "test"):
                if split in self.encoded:
                    said = trainer.predict(self.encoded[split], metric_key_prefix=split)
                    found.setdefault(split, {})[label] = plain_metrics(said.metrics or {}, split)
                    if split == self.judged and said.label_ids is not None:
                        rows: Any = self.data[split]
                        prediction = EvalPrediction(said.predictions, said.label_ids, rows)
                        classes[label] = self.task.per_class(prediction)
                        if PartialState().is_main_process:
                            _write_files(self.task.details(prediction), folder / label)
        return found, classes

    def validated(self, model: str | Path, folder: Path) -> dict[str, float]:
        """Metrics of ``model``, by folder or by name, on validation data."""
        said = self.judging(model, folder).predict(self.encoded["validation"], metric_key_prefix="validation")
        return plain_metrics(said.metrics or {}, "validation")

    def judging(self, model: str | Path, folder: Path) -> Any:
        """A trainer that judges ``model``, by folder or by name."""
        self.use(model)
        settings = {"report_to": "none", "disable_tqdm": False, **_device(), **self.task.arguments()}
        args = self.task.arguments_class(str(folder), **settings)
        return self.trainer(self.task.load_model(str(model)), args)

    def finish(
        self, folder: Path, before: Path, after: Path, metrics: dict[str, Any], classes: dict[str, dict[str, float]]
    ) -> RunResult:
        """Measure, write report and metrics, put the model in place, mark the run finished."""
        stages = {name: read_json(folder / "stages" / name / STAGE_FILE) for name in self.recipe.stages}
        _write_files(self.task.training_details({name: stage["history"] for name, stage in stages.items()}), folder)
        exported, refused = None, None
        try:
            exported = self.export(after, folder / EXPORTED)
        except ExportError as error:  # the training is finished and worth its report all the same
            refused = error
        notes = [f"Metrics on {self.judged} data ({len(self.data[self.judged])} examples)."]
        if (baseline := self.task.baseline(self.data, self.judged)) is not None:
            name, metrics[self.judged]["baseline"] = baseline
            notes.append(f"Without any model ({name}): {details(baseline[1])}.")
        if exported is not None:
            metrics[self.judged]["exported"], classes["exported"] = self.judge_export(exported)
            notes.append(f"Export ({exported.format}, quantize {exported.quantize}): {exported.comparison}.")
        judged = metrics[self.judged]
        measured = self.measurements(*dict.fromkeys((before, after)))  # of one stage, the same to the bit
        training = {name: stage["training"] for name, stage in stages.items()}
        notes += [*starved(training), *(note for name in stages for note in notes_of_undone(folder, name))]
        report = Report(
            title=f"{self.recipe.name}: before and after",
            before=measured[0],
            after=measured[-1],
            exported=exported.measurement if exported else None,
            metrics_before=judged["before"],
            metrics_after=judged["after"],
            metrics_exported=judged.get("exported", {}),
            training=training,
            changes=[{"stage": name, **change} for name, stage in stages.items() for change in stage["changes"]],
            classes={side: found for side, found in classes.items() if found},
            notes=notes if refused is None else [*notes, f"No export: {refused}"],
        )
        report.save(folder)
        write_json(folder / "metrics.json", metrics)
        with atomic_folder(folder / FINAL) as path:
            shutil.copytree(after, path, dirs_exist_ok=True, ignore=shutil.ignore_patterns("training_args.bin"))
            write_card(path, report, self.about())
        self.prepare_app(folder)
        write_status(folder, self.recipe, FINISHED)
        if refused is not None:
            raise refused
        return RunResult(folder, folder / FINAL, metrics, report, exported, self.sample)

    def prepare_app(self, folder: Path) -> None:
        """Let the recipe's app learn from the data what it needs to serve."""
        if self.recipe.app is None:
            return
        cls, settings = parse_app(self.recipe.app, self.recipe.task)
        with _told_where_missing(cls.name):
            prepare_app(cls(settings, Predictor.load(folder), folder), self.data)


@contextlib.contextmanager
def _told_where_missing(app: str) -> Iterator[None]:
    """A run without the packages that serve it is worth something all the same."""
    try:
        yield
    except MissingDependencyError as error:
        logger.warning("the app '%s' is not prepared: %s. `hf-efficient serve` will then prepare it", app, error)


def _write_files(files: dict[str, str | bytes], folder: Path) -> None:
    for name, content in files.items():
        with atomic_path(folder / name) as temporary:
            temporary.write_bytes(content if isinstance(content, bytes) else content.encode())


def clear_stage(folder: Path) -> None:
    """Remove what only the training of a stage needed, now that nothing resumes from it."""
    for checkpoint in folder.glob("checkpoint-*"):
        shutil.rmtree(checkpoint)
    shutil.rmtree(folder / EXAMPLE_CACHE, ignore_errors=True)


def _device() -> dict[str, Any]:
    """Training arguments by the device.

    Pinned memory speeds copies to an accelerator up; without one, asking for it only warns. Several processes without
    an accelerator train together only where CPUs are asked for: else each trains alone, and writes into the files of
    the others.
    """
    if torch.accelerator.is_available():
        return {"dataloader_pin_memory": True}
    return {"dataloader_pin_memory": False, "use_cpu": int(os.environ.get("WORLD_SIZE", "1")) > 1}

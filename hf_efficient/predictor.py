"""A finished run at work: raw inputs in, plain answers out."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hf_efficient.errors import ConfigError
from hf_efficient.phase import FINAL
from hf_efficient.recipe import Recipe
from hf_efficient.runtimes import MANIFEST, load_runtime
from hf_efficient.settings import parse
from hf_efficient.task import Task, get_task
from hf_efficient.timing import Runtime

EXPORTED = "exported"
"""Folder of the export in a run."""


class Predictor:
    """The model of a finished run: its export where it has one, else the model in PyTorch.

    Not for several threads at a time.

    Attributes:
        task: with processor and `label_names`.
        runtime: what computes.
        folder: of the model.
    """

    def __init__(self, task: Task, runtime: Runtime, folder: str | Path):
        self.task, self.runtime, self.folder = task, runtime, Path(folder)

    @classmethod
    def load(
        cls, run: str | Path, *, model: str | None = None, threads: int | None = None, alone: bool = True
    ) -> "Predictor":
        """The model of the run folder ``run``.

        Args:
            model: folder in the run, "exported" or "final"; None takes the export where there is one.
            threads: CPU threads; None leaves the choice to the runtime.
            alone: whether no other model computes on the same cores (`ExportedRuntime`).

        Raises:
            ConfigError: not a finished run, or one without such a model.
            MissingDependencyError: the runtime of the export is not installed.
        """
        run = Path(run)
        recipe = Recipe.load(run / "recipe.yaml")
        task_class = get_task(recipe.task)
        task = task_class(parse(task_class.data_settings, recipe.data, "data"))
        folder = run / (model or (EXPORTED if (run / EXPORTED / MANIFEST).is_file() else FINAL))
        if not folder.is_dir():
            raise ConfigError(
                f"{run} has no folder '{folder.name}': the run is not finished; continue it with --resume"
            )
        task.load_processor(str(folder))
        if (folder / MANIFEST).is_file():
            return cls(task, load_runtime(folder, threads, alone=alone), folder)
        runtime = task.runtime(task.load_model(str(folder)).eval())
        if threads is not None:
            runtime.set_threads(threads)
        return cls(task, runtime, folder)

    @property
    def labels(self) -> list[str]:
        """Names of the outputs, by their index."""
        return self.task.label_names

    def logits(self, inputs: Sequence[Any]) -> np.ndarray:
        """The model's logits for raw inputs (`Task.raw`), in one batch; shape (inputs, ...)."""
        return self.task.logits(self.runtime, inputs)

    def answers(self, inputs: Sequence[Any]) -> list[dict[str, Any]]:
        """Plain values for each of some raw inputs, in one batch.

        Raises:
            ConfigError: models of this task have no such answers.
        """
        return self.task.answers(self.runtime, inputs)


def newest_finished(path: str | Path) -> Path:
    """``path`` where it is a run's folder; of a folder of runs, the newest that has finished.

    Raises:
        ConfigError: neither.
    """
    path = Path(path)
    for folder in (path, *sorted((file.parent for file in path.glob("*/run.json")), reverse=True)):
        if (folder / "run.json").is_file() and (folder / FINAL).is_dir():
            return folder
    raise ConfigError(
        f"{path} is no finished run; name its folder (runs/<recipe>/<time>) or that of a recipe's runs "
        "(runs/<recipe>), or make one with `hf-efficient run`"
    )

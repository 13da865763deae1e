"""A run, or a saved model and real data for it, as several commands take them."""

import argparse
from pathlib import Path
from typing import Any

_DEEPEST = 3
"""How far below a run's folder its models lie: `final`, `stages/<name>/final`."""


def add_run(parser: argparse.ArgumentParser) -> None:
    """Options of commands that work with a finished run."""
    parser.add_argument("run", help="folder of a run, or of a recipe's runs (the newest finished one is taken)")
    parser.add_argument("--threads", type=int, help="CPU threads of the model (default: the runtime's choice)")
    parser.add_argument("--model", choices=("exported", "final"), help="default: the export where there is one")


def prepare(folder: str, task_name: str | None, data: list[str]) -> tuple[Any, Any, dict[str, Any]]:
    """Task with its processor, model, and the rows of every split that ``data`` (``data.key=value``) names.

    Raises:
        ConfigError: no split named, settings beside ``data``, or a model whose task must be named.
        DataError: a source that cannot be read.
    """
    from transformers import AutoConfig

    from hf_efficient.data import SPLITS, load_split
    from hf_efficient.errors import ConfigError
    from hf_efficient.pretrained import load_pretrained, resolve_model
    from hf_efficient.recipe import set_value
    from hf_efficient.settings import parse
    from hf_efficient.task import get_task

    values: dict[str, Any] = {"data": {}}
    for setting in data:
        set_value(values, setting)
    if set(values) > {"data"}:
        raise ConfigError(f"only data.key=value and options go here, got {' '.join(data)}")
    config = load_pretrained(AutoConfig, resolve_model(folder))
    architectures = config.architectures or ["(none)"]
    task_class = get_task(task_name or _task_of_run(Path(folder)) or _task_of(architectures[0]))
    named = [split for split in SPLITS if values["data"].get(split)]
    if not named:
        raise ConfigError("real inputs are needed: add data.test=FILE (or data.validation, data.train)")
    settings = parse(task_class.data_settings, {"train": values["data"][named[-1]], **values["data"]}, "data")
    splits = {split: load_split(settings, split) for split in named}
    task = task_class(settings)
    task.load_processor(folder)
    return task, task.load_model(folder), splits


def _task_of_run(folder: Path) -> str | None:
    """What the recipe says of the run that the model in ``folder`` is of; None if it is of none."""
    from hf_efficient.errors import ConfigError
    from hf_efficient.recipe import Recipe
    from hf_efficient.run import RECIPE

    above = (parent / RECIPE for parent in list(folder.absolute().parents)[:_DEEPEST])
    try:
        return next((Recipe.load(file).task for file in above if file.is_file()), None)
    except ConfigError:  # somebody else's file
        return None


def _task_of(architecture: str) -> str:
    from hf_efficient.errors import ConfigError
    from hf_efficient.exported import pipeline_of
    from hf_efficient.task import TASKS

    try:
        return pipeline_of(architecture)[0]
    except ConfigError:
        raise ConfigError(f"a {architecture} does not tell its task; name it: --task {', '.join(TASKS)}") from None


def judged_split(splits: dict[str, Any]) -> tuple[str, Any]:
    """Name and rows of the split to judge a model on: test, else validation, else train."""
    name = next(name for name in ("test", "validation", "train") if name in splits)
    return name, splits[name]

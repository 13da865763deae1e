"""Recipes: a whole scenario (task, model, data, stages) as one YAML file that dotted overrides can change."""

import dataclasses
import functools
import re
import typing
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from hf_efficient.app import parse_app
from hf_efficient.arguments import EfficientTrainingArguments
from hf_efficient.candidates import check_choice
from hf_efficient.communication import Communication
from hf_efficient.errors import ConfigError, unknown
from hf_efficient.plan import build_optimizations, optimization_class
from hf_efficient.search_settings import SearchSettings
from hf_efficient.settings import parse
from hf_efficient.task import get_task

STAGE_DEFAULTS: dict[str, Any] = {
    "eval_strategy": "epoch",
    "save_strategy": "epoch",
    "save_total_limit": 1,
    "load_best_model_at_end": True,  # best on validation data, by the task's main metric
    "logging_strategy": "epoch",
    "report_to": "none",
    "disable_tqdm": False,
}
"""Training arguments of every stage unless its `training` block says otherwise."""

_MOST_VALUES, _MOST_LEVELS = 20_000, 40
_FOLDER_NAME = re.compile(r"\w[\w. +-]{0,99}")
_ANY_TYPE = ConfigDict(arbitrary_types_allowed=True)  # fields of arguments are of other libraries' classes, too
_SET_BY_RECIPE = ("dense_epochs", "measure_seconds", "optimizations", "output_dir", "seed")


class Stage(BaseModel):
    """One training phase."""

    model_config = ConfigDict(extra="forbid")

    training: dict[str, Any] = Field(default={}, description="fields of transformers.TrainingArguments")
    optimizations: dict[str, Any] = Field(default={}, description="name -> settings")
    max_drop: float | None = Field(
        default=None,
        description="greatest drop of the task's main metric on validation data; beyond it less is changed",
    )


class Export(BaseModel):
    """What the finished model is exported to, after the last stage."""

    model_config = ConfigDict(extra="forbid")

    format: str = "onnx"
    quantize: str = "none"
    max_drop: float = Field(default=0.01, description="greatest drop of the task's main metric on validation data")


class Recipe(BaseModel):
    """A scenario: what to train on which data, in which stages."""

    model_config = ConfigDict(extra="forbid")

    name: str = Field(description="names the folder of its runs")
    task: str
    model: str = Field(description="Hub id or folder")
    data: dict[str, Any] = Field(description="train, validation, test and the task's columns")
    stages: dict[str, Stage] = Field(min_length=1)
    export: Export | None = None
    app: dict[str, Any] | None = Field(default=None, description="what serves the finished model: its name, settings")
    search: SearchSettings | None = Field(default=None, description="what `hf-efficient search` looks for")
    seed: int = Field(default=42, ge=0, lt=2**32)

    @classmethod
    def load(cls, recipe: str | Path, overrides: Sequence[str] = ()) -> Self:
        """Read a bundled recipe by name, or a YAML file by path, and apply ``key.key=value`` overrides.

        Raises:
            ConfigError: unknown recipe, unreadable YAML, unknown key (with the nearest match), wrong type.
        """
        name, text = _read(recipe)
        values = {"name": name, **_parse_yaml(text, str(recipe))}
        for override in overrides:
            set_value(values, override)
        loaded = parse(cls, values, "")
        loaded.check()
        return loaded

    def changed(self, values: Mapping[str, Any]) -> Self:
        """This recipe with dotted keys set to other values.

        Raises:
            ConfigError: as for `load`.
        """
        plain = self.model_dump()
        for dotted, value in values.items():
            assign(plain, dotted, value)
        made = parse(type(self), plain, "")
        made.check()
        return made

    def check(self) -> None:
        """Refuse unknown keys and wrong types in every block, before anything is loaded or written."""
        if not _FOLDER_NAME.fullmatch(self.name):
            raise ConfigError(
                f"name: {self.name!r} names the folder of the recipe's runs; begin with a letter, digit or underscore, "
                "and go on with those, dots, dashes and blanks"
            )
        task = get_task(self.task)
        parse(task.data_settings, self.data, "data")
        earlier: dict[str, str] = {}
        for name, stage in self.stages.items():
            if not name.isidentifier():
                raise ConfigError(f"stages: '{name}' names a folder; use letters, digits and underscores")
            training_values(stage.training, f"stages.{name}.training", task.arguments_class)
            build_optimizations(stage.optimizations, f"stages.{name}.optimizations")
            with_stages(stage.optimizations, earlier, f"stages.{name}.optimizations")
            if stage.max_drop is not None and not eased(stage.optimizations, f"stages.{name}.optimizations"):
                raise ConfigError(
                    f"stages.{name}.max_drop needs an optimization that can change the model less: shares or a target "
                    "of structured_pruning, pruning without a pattern, weight_fusion"
                )
            earlier[name] = name
        if self.export is not None:
            try:
                check_choice(**self.export.model_dump())
            except ConfigError as error:
                raise ConfigError(f"export: {error}") from None
        if self.app is not None:
            parse_app(self.app, self.task)

    def to_yaml(self) -> str:
        return yaml.safe_dump(self.model_dump(), sort_keys=False, allow_unicode=True)


def bundled() -> dict[str, str]:
    """Name of each bundled recipe -> its purpose (the first comment line of its file)."""
    files = [file for file in resources.files("hf_efficient.recipes").iterdir() if file.name.endswith(".yaml")]
    purposes = {_name(file.name): file.read_text(encoding="utf-8").splitlines()[0].lstrip("# ") for file in files}
    return dict(sorted(purposes.items()))


def source(recipe: str | Path) -> str:
    """Text of a bundled recipe or a YAML file."""
    return _read(recipe)[1]


def training_values(
    values: Mapping[str, Any], where: str, arguments: type = EfficientTrainingArguments
) -> dict[str, Any]:
    """``values`` coerced to the types that the class ``arguments`` declares (YAML reads ``3e-5`` as text).

    Raises:
        ConfigError: unknown key, a key that the recipe sets itself, or a wrong type.
    """
    hints = _training_hints(arguments)
    coerced = {}
    for key, value in values.items():
        if key in _SET_BY_RECIPE:
            raise ConfigError(f"{where}.{key}: a recipe sets this itself (seed, stages and their optimizations)")
        if key not in hints:
            raise ConfigError(f"{where}: {unknown('key', key, hints)}")
        try:
            coerced[key] = TypeAdapter(hints[key], config=_ANY_TYPE).validate_python(value)
        except ValidationError as error:
            expected = error.errors()[0]["msg"]
            raise ConfigError(f"{where}.{key}: {expected[0].lower()}{expected[1:]}, got {value!r}") from None
    if coerced.get("communication") is not None:
        parse(Communication, coerced["communication"], f"{where}.communication")
    return coerced


def eased(optimizations: Mapping[str, Any], where: str) -> dict[str, Any]:
    """``optimizations`` that change the model about half as much; empty where none can."""
    milder = {one.name: one.milder() for one in build_optimizations(optimizations, where)}
    given = {name: settings if isinstance(settings, Mapping) else {} for name, settings in optimizations.items()}
    changed = {name: {**given[name], **settings} for name, settings in milder.items() if settings}
    return {**optimizations, **changed} if changed else {}


def with_stages(optimizations: Mapping[str, Any], earlier: Mapping[str, str], where: str) -> dict[str, Any]:
    """``optimizations`` with the folders of earlier stages in the place of their names (`stage_settings`).

    Args:
        earlier: name of each stage before this one -> the folder of its finished model.

    Raises:
        ConfigError: a name that could be a stage's, and is none of an earlier one.
    """
    changed = dict(optimizations)
    for name, settings in optimizations.items():
        if not isinstance(settings, Mapping):
            continue
        cls = optimization_class(name, where)
        defaults = {field.name: field.default for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
        given = {key: settings[key] for key in cls.stage_settings.intersection(settings)}
        found = {
            key: [_stage_folder(one, earlier, defaults[key], f"{where}.{name}.{key}") for one in value]
            if isinstance(value, list)
            else _stage_folder(value, earlier, defaults[key], f"{where}.{name}.{key}")
            for key, value in given.items()
        }
        changed[name] = {**settings, **found}
    return changed


def _stage_folder(value: str, earlier: Mapping[str, str], default: Any, where: str) -> str:
    if value in earlier:
        return earlier[value]
    # a stage's name is an identifier; Hub ids have an owner or a dash, paths a slash
    if value == default or not value.isidentifier() or Path(value).is_dir():
        return value
    raise ConfigError(
        f"{where}: {unknown('stage before this one', value, earlier)}; or name a folder, or a model on the Hub "
        "(owner/name)"
    )


@functools.cache
def _training_hints(arguments: type) -> dict[str, Any]:
    hints = typing.get_type_hints(arguments)
    settable = (field.name for field in dataclasses.fields(arguments) if field.init)
    return {name: hints[name] for name in settable if name not in _SET_BY_RECIPE}


def _name(file_name: str) -> str:
    return file_name.removesuffix(".yaml").replace("_", "-")


def _read(recipe: str | Path) -> tuple[str, str]:
    """Name and YAML text."""
    path = Path(recipe)
    if path.suffix in (".yaml", ".yml"):
        if not path.is_file():
            raise ConfigError(f"no recipe file at {path}")
        try:
            return path.stem.replace("_", "-"), path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"cannot read the recipe {path}: {error}") from error
    if str(recipe) not in bundled():
        raise ConfigError(f"{unknown('recipe', str(recipe), bundled())}, or a path ending in .yaml")
    file = resources.files("hf_efficient.recipes") / f"{str(recipe).replace('-', '_')}.yaml"
    return str(recipe), file.read_text(encoding="utf-8")


def _parse_yaml(text: str, where: str) -> dict[str, Any]:
    try:
        values = _plain_yaml(text)
    except ValueError as error:
        raise ConfigError(f"{where} is not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{where} must hold keys and values, got {str(values)[:80]!r}")
    return values


def _plain_yaml(text: str) -> Any:
    """Plain values of limited depth and number: aliases could stand for more than any memory holds.

    Raises:
        ValueError: it is something else, or no YAML.
    """
    try:
        values = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from None
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    waiting, count = [(values, 0)], 0
    while waiting:
        value, depth = waiting.pop()
        count += 1
        if count > _MOST_VALUES or depth > _MOST_LEVELS:
            raise ValueError(f"it holds more than {_MOST_VALUES} values, aliases included, or {_MOST_LEVELS} levels")
        if isinstance(value, dict):
            if wrong := [key for key in value if not isinstance(key, str)]:
                raise ValueError(f"keys are text, and {wrong[0]!r} is not; quote it")
            waiting += [(inner, depth + 1) for inner in value.values()]
        elif isinstance(value, list):
            waiting += [(inner, depth + 1) for inner in value]
    return values


def set_value(values: dict[str, Any], override: str) -> None:
    """Set one dotted key in place; ``override`` is ``key.key=value``, the value read as YAML."""
    dotted, equals, text = override.partition("=")
    if not equals or not dotted:
        raise ConfigError(f"overrides look like data.train=my.csv, got '{override}'")
    try:
        value = _plain_yaml(text)
    except ValueError:
        raise ConfigError(f"{dotted}: the value {text!r} is not valid YAML; quote it") from None
    assign(values, dotted, value)


def assign(values: dict[str, Any], dotted: str, value: Any) -> None:
    """Set one dotted key in place.

    Raises:
        ConfigError: the key goes through what is no block.
    """
    *parents, last = dotted.split(".")
    for key in parents:
        if values.get(key) is None:
            values[key] = {}
        values = values[key]
        if not isinstance(values, dict):
            raise ConfigError(f"cannot set {dotted}: '{key}' is a value ({values!r}), not a block of keys")
    values[last] = value

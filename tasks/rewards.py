"""Rewards of completions: a bundled toy, and functions of the user's own, held to what they promise."""

import importlib
import importlib.util
import inspect
import math
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from numbers import Real
from pathlib import Path
from types import ModuleType
from typing import Any

from hf_efficient.errors import ConfigError, DataError, unknown

TRUST = "HF_EFFICIENT_TRUST_CODE"
"""Environment variable: 1 lets recipes name functions whose code is run. Who runs a recipe says so, not the recipe."""

GIVEN = ("prompts", "completions", "completion_ids", "trainer_state", "log_extra", "log_metric")
"""What TRL's GRPOTrainer hands to a reward function beside the columns."""

SHORT = 8
"""Characters as which a shorter completion counts, so that nothing is won by saying next to nothing."""


def wanted_characters(completions: list[str], wanted: list[str], **columns: Any) -> list[float]:
    """A toy, easily checked: the share of a completion's characters, spaces aside, that are among those ``wanted``.

    Args:
        wanted: for each completion the characters to be written; a column of the data.
    """
    said = ["".join(text.split()) for text in completions]
    return [
        sum(character in some for character in text) / max(len(text), SHORT)
        for text, some in zip(said, wanted, strict=True)
    ]


REWARDS: dict[str, Callable[..., Any]] = {"wanted_characters": wanted_characters}
"""Those that are bundled."""


class Reward:
    """A reward function as TRL calls it, that answers for what it returns: a finite number for each completion.

    Attributes:
        name: as the recipe has it.
    """

    def __init__(self, name: str, function: Callable[..., Any]):
        self.name = name
        self.function = function
        self.__name__ = name.rpartition(":")[2]  # TRL logs it by this

    def __call__(self, completions: list[str], **columns: Any) -> list[float]:
        values = self.function(completions=completions, **columns)
        values = values.tolist() if hasattr(values, "tolist") else values
        is_list = isinstance(values, Sequence) and len(values) == len(completions)
        if not is_list or not all(isinstance(value, Real) and math.isfinite(value) for value in values):
            raise ConfigError(
                f"reward '{self.name}' returned {_shown(values)} for {len(completions)} completions; let it return a "
                "list with one finite number for each"
            )
        return [float(value) for value in values]

    def of(
        self, rows: Sequence[Mapping[str, Any]], completions: list[str], completion_ids: list[list[int]]
    ) -> list[float]:
        """Rewards outside of training, where there is no state, and nothing is logged.

        Args:
            rows: with the column ``prompt`` and others; one for each completion.
        """
        columns = {name: [row[name] for row in rows] for name in rows[0]}
        given = {"trainer_state": None, "log_extra": _ignore, "log_metric": _ignore, "completion_ids": completion_ids}
        return self(completions, prompts=columns.pop("prompt"), **columns, **given)

    def check(self, columns: Sequence[str], where: str) -> None:
        """Refuse ``columns`` that the function cannot be called with.

        Raises:
            ConfigError: it does not take what TRL hands to it.
            DataError: it asks for a column that is not there; names ``where``.
        """
        if inspect.iscoroutinefunction(self.function):
            raise ConfigError(f"reward '{self.name}' is async; give a plain function")
        taken = inspect.signature(self.function).parameters.values()
        if not any(one.kind is one.VAR_KEYWORD for one in taken):
            raise ConfigError(f"reward '{self.name}' must take every column; add **columns to its parameters")
        required = [one.name for one in taken if one.default is one.empty and one.kind is not one.VAR_KEYWORD]
        for name in required:
            if name not in (*GIVEN, *columns):
                raise DataError(f"{where}: reward '{self.name}' asks for a column: {unknown('column', name, columns)}")

    def try_on(self, row: Mapping[str, Any]) -> None:
        """Call it once, on an empty completion of ``row``: a model may say nothing at all.

        Raises:
            ConfigError: it fails, or returns something else than a reward.
        """
        try:
            self.of([row], [""], [[]])
        except ConfigError:
            raise
        except Exception as error:  # whatever the user's code raises
            reason = f"{type(error).__name__}: {error}"
            raise ConfigError(
                f"reward '{self.name}' fails on an empty completion of the first row ({reason}); correct it: a model "
                "may say nothing"
            ) from error


def load_reward(name: str) -> Reward:
    """The reward called ``name``: one of `REWARDS`, or ``module:function`` or ``path.py:function``, whose code is run.

    Raises:
        ConfigError: there is none, its code cannot be imported, or `TRUST` does not allow it.
    """
    source, colon, function = name.rpartition(":")
    if not colon:
        if name not in REWARDS:
            raise ConfigError(
                f"data.reward: {unknown('reward', name, REWARDS)}; or name a function of your own, as module:function "
                "or path.py:function"
            )
        return Reward(name, REWARDS[name])
    if os.environ.get(TRUST) != "1":
        raise ConfigError(
            f"data.reward: '{name}' is code, which a recipe alone does not get to run: read it, then allow it with "
            f"{TRUST}=1 in the environment"
        )
    module = _imported(source)
    functions = {key: value for key, value in vars(module).items() if callable(value) and not isinstance(value, type)}
    if function not in functions:
        public = [key for key in functions if not key.startswith("_")]
        raise ConfigError(f"data.reward: '{source}': {unknown('function', function, public)}")
    return Reward(name, functions[function])


def _imported(source: str) -> ModuleType:
    """The module called ``source``, or the one in that file."""
    is_file = source.endswith(".py")
    path = Path(source).expanduser()
    if is_file and not path.is_file():
        raise ConfigError(f"data.reward: no file at {source}; name one, or a module that is installed")
    try:
        return _run(path) if is_file else importlib.import_module(source)
    except Exception as error:  # whatever the user's code raises
        raise ConfigError(
            f"data.reward: cannot import '{source}' ({type(error).__name__}: {error}); correct it, or name a file "
            "(path.py:function)"
        ) from error


def _run(path: Path) -> ModuleType:
    spec: Any = importlib.util.spec_from_file_location(f"hf_efficient_reward_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # as dataclasses and pickle want it
    spec.loader.exec_module(module)
    return module


def _ignore(*args: Any, **kwargs: Any) -> None:
    pass


def _shown(values: Any) -> str:
    if isinstance(values, str) or not isinstance(values, Sequence):
        return f"{type(values).__name__} {values!r}"[:80]
    wrong = [value for value in values if not isinstance(value, Real) or not math.isfinite(value)]
    return f"{len(values)} values" + (f", {wrong[0]!r} among them," if wrong else "")

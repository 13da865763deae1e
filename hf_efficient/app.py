"""App: a finished model at work for a person or a program (answering customers, marking entities, ...)."""

import importlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import BaseModel, ConfigDict

from hf_efficient.errors import ConfigError, unknown
from hf_efficient.files import atomic_folder
from hf_efficient.settings import parse

if TYPE_CHECKING:
    from datasets import DatasetDict

    from hf_efficient.predictor import Predictor

APPS = {
    "customer-service": "hf_efficient.tasks.apps.customer_service:CustomerService",
    "entities": "hf_efficient.tasks.apps.entities:EntityMarking",
    "finance-monitor": "hf_efficient.tasks.apps.finance_monitor:FinanceMonitor",
    "labels": "hf_efficient.tasks.apps.labels:Labels",
    "recommendation": "hf_efficient.tasks.apps.recommendation:ItemRecommendation",
}
"""Name -> where the class lives. Strings, so that the core imports no instance."""

DEFAULTS = ("labels", "entities")
"""Those that need no settings."""

Ask = Callable[[Mapping[str, Any]], Mapping[str, Any]]
"""From a request as plain values to its answer, through the queue of the service.

Raises RequestError for what the app refuses and BusyError where the queue is full, both in words for the user.
"""


class AppSettings(BaseModel):
    """The ``app`` block of a recipe, but for its ``name``; each app adds its own."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class Request(BaseModel):
    """What is asked of an app; each has its own, whose types and limits are checked before it waits in a queue."""

    model_config = ConfigDict(extra="forbid")


PREPARED = "app"
"""Folder of a run: what its app prepared."""


class App(ABC):
    """What serves a finished run. Used in this order::

        CustomerService.check(settings, task, data)   before anything is trained: refuse what cannot work
        app = CustomerService(settings, predictor, run)
        prepare_app(app, data)          once, when the run ends: what must be learnt from data, written to <run>/app
        app.start()                     before the first request: read what was prepared, open what is open
        app.answer([request, ...])      batch by batch, always on the same thread
        app.stop()

    Attributes:
        settings: an instance of `settings_class`.
        predictor: the finished model.
        prepared: folder of what `prepare` wrote.
        state: folder for what is written while serving, such as a database.
    """

    name: ClassVar[str]
    """Key in `APPS` and recipes."""

    tasks: ClassVar[tuple[str, ...]]
    """Names of the tasks whose models it serves."""

    settings_class: ClassVar[type[AppSettings]] = AppSettings

    request_class: ClassVar[type[Request]]

    body_bytes: ClassVar[int | None] = None
    """Most bytes that a request may hold over HTTP; None for what is usual."""

    needs_data: ClassVar[bool] = True
    """Whether `prepare` reads data; else `start` makes up for what was not prepared."""

    stays: ClassVar[frozenset[str]] = frozenset()
    """Prepared files that hold data of whoever trained: a Space does not get them."""

    alone: ClassVar[bool] = True
    """Whether the run's model is the only one that computes."""

    words: ClassVar[Mapping[str, Mapping[str, str]]] = {}
    """Texts of the page: language ("en", "zh-CN") -> name of a text -> the text."""

    def __init__(self, settings: AppSettings, predictor: "Predictor", run: str | Path):
        self.settings, self.predictor = settings, predictor
        self.prepared, self.state = Path(run) / PREPARED, Path(run) / "served"

    @classmethod
    def check(cls, settings: Any, task: Any, data: "DatasetDict") -> None:
        """Refuse what `prepare` could not work with, such as files that are not there.

        Args:
            settings: an instance of `settings_class`.
            task: that of the run, with its labels known.

        Raises:
            ConfigError, DataError: settings or data that do not fit.
            MissingDependencyError: a package that serving takes is not installed.
        """

    def prepare(self, data: "DatasetDict", folder: Path) -> None:
        """Write to ``folder`` what serving needs and only data can tell, such as thresholds and indices.

        Args:
            data: the run's splits, as rows. Choices are made on train and validation.

        Raises:
            ConfigError, DataError: settings or data that do not fit.
        """

    def start(self) -> None:
        """Read what was prepared.

        Raises:
            ConfigError: it is missing or damaged.
        """

    def stop(self) -> None:
        """Close what `start` opened; everything that was answered has been kept by then."""

    @abstractmethod
    def answer(self, requests: Sequence[Any]) -> list[dict[str, Any]]:
        """Plain values for each of ``requests``, instances of `request_class`, computed in one batch.

        Called on one thread, never twice at a time.

        Raises:
            RequestError: one of them cannot be answered; each is then asked again by itself.
        """

    def text(self, name: str) -> Any:
        """A text of `words` in the language of whoever opens the page."""
        import gradio

        return gradio.I18n(**{language: dict(words) for language, words in self.words.items()})(name)

    def page(self, ask: Ask) -> Any:
        """A page to try it: `gradio.Blocks`; None for none."""
        return None

    def add_routes(self, api: Any) -> None:
        """Further endpoints on ``api``, a `fastapi.APIRouter`; they run on other threads than `answer`."""


def get_app(name: str) -> type[App]:
    """The class behind a name of `APPS`.

    Raises:
        ConfigError: unknown name.
    """
    if name not in APPS:
        raise ConfigError(f"app.name: {unknown('app', name, APPS)}")
    module, _, attribute = APPS[name].partition(":")
    return getattr(importlib.import_module(module), attribute)


def default_app(task: str) -> str:
    """Name of the app that serves models of ``task`` where a recipe names none.

    Raises:
        ConfigError: there is none.
    """
    for name in DEFAULTS:
        if task in get_app(name).tasks:
            return name
    others = [name for name in APPS if task in get_app(name).tasks]
    if others:
        raise ConfigError(f"no app serves models of {task} by itself; name one: app.name={', '.join(others)}")
    raise ConfigError(f"no app serves models of {task}; use transformers' pipeline, or write one (docs/apps)")


def parse_app(block: Mapping[str, Any], task: str) -> tuple[type[App], AppSettings]:
    """Class and settings of the ``app`` block of a recipe.

    Raises:
        ConfigError: no name, an unknown one, one that does not serve ``task``, or settings that do not fit.
    """
    values = dict(block)
    if "name" not in values:
        raise ConfigError(f"app.name is missing; add one of {', '.join(APPS)}")
    cls = get_app(str(values.pop("name")))
    if task not in cls.tasks:
        raise ConfigError(f"app.name: '{cls.name}' serves {' and '.join(cls.tasks)}, and the recipe's task is {task}")
    return cls, parse(cls.settings_class, values, "app")


def prepare_app(app: App, data: "DatasetDict") -> None:
    """Let ``app`` write what it learns from ``data`` to its folder, whole or not at all."""
    with atomic_folder(app.prepared) as folder:
        app.prepare(data, folder)

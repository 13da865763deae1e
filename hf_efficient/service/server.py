"""A run as a service."""

import contextlib
import ipaddress
import logging
import os
import secrets
import signal
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hf_efficient.app import App, default_app, parse_app, prepare_app
from hf_efficient.data import load
from hf_efficient.errors import ConfigError, DataError, MissingDependencyError
from hf_efficient.predictor import Predictor, newest_finished
from hf_efficient.recipe import Recipe, set_value

logger = logging.getLogger(__name__)

TOKEN_VARIABLE = "HF_EFFICIENT_TOKEN"
STOP_SECONDS = 30
"""What a stop waits for requests that are being answered."""


@dataclass(frozen=True)
class ServiceSettings:
    """How an app is served.

    Attributes:
        host: where it listens; other machines reach it only if told so.
        port: 0 for any that is free.
        token: what every request must bring. None: none on loopback, a new one elsewhere.
        public: whether anybody may ask without a token, wherever it listens.
        page: whether there is a page beside the API.
        max_batch: requests that are answered at once.
        queue: requests that may wait; more are refused.
        threads: CPU threads of the model; None leaves the choice to the runtime.
        model: "exported" or "final"; None takes the export where there is one.
    """

    host: str = "127.0.0.1"
    port: int = 7860
    token: str | None = None
    public: bool = False
    page: bool = True
    max_batch: int = 32
    queue: int = 256
    threads: int | None = None
    model: str | None = None

    def __post_init__(self) -> None:
        for name in ("max_batch", "queue"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be 1 or more, got {getattr(self, name)}")

    def resolved_token(self) -> str | None:
        """The token, from the environment or made anew where one is needed."""
        given = self.token or os.environ.get(TOKEN_VARIABLE)
        return given or (None if self.public or is_loopback(self.host) else secrets.token_urlsafe(24))


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches ``host``."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


@contextlib.contextmanager
def open_app(run: str | Path, settings: ServiceSettings, overrides: Sequence[str] = ()) -> Iterator[App]:
    """The app of a run, started; stopped when the block ends.

    Args:
        run: a run's folder, or that of a recipe's runs, of which the newest finished one is taken.
        overrides: ``app.key=value``.

    Raises:
        ConfigError: no finished run, no app for it, settings that do not fit.
    """
    folder = newest_finished(run)
    recipe = Recipe.load(folder / "recipe.yaml")
    values = {"app": dict(recipe.app or {"name": default_app(recipe.task)})}
    for override in overrides:
        set_value(values, override)
    if set(values) > {"app"}:
        raise ConfigError(f"only app.key=value goes here, got {' '.join(overrides)}")
    cls, parsed = parse_app(values["app"], recipe.task)
    predictor = Predictor.load(folder, model=settings.model, threads=settings.threads, alone=cls.alone)
    app = cls(parsed, predictor, folder)
    if cls.prepare is not App.prepare and cls.needs_data and not app.prepared.is_dir():
        _prepare(app, recipe)
    app.start()
    try:
        yield app
    finally:
        app.stop()


def _prepare(app: App, recipe: Recipe) -> None:
    """What a run leaves undone that named another app, or none, or lacked packages.

    Raises:
        ConfigError: the data of the run is not there any more.
        DataError, ConfigError: settings of the app that do not fit.
    """
    task = app.predictor.task
    try:
        data = load(task.settings, seed=recipe.seed)
    except DataError as error:
        raise ConfigError(
            f"{app.prepared} is not there, and to prepare the app '{app.name}' takes the data of the run: {error}; run "
            f"the recipe again with app: {{name: {app.name}, ...}}"
        ) from None
    logger.info("preparing the app '%s', once", app.name)
    type(app).check(app.settings, task, data)
    prepare_app(app, data)


@dataclass(frozen=True)
class Address:
    """Where a service can be reached.

    Attributes:
        app, runtime: names of what answers.
        page: None where there is none.
        token: what requests must bring; None where they need none.
    """

    app: str
    runtime: str
    url: str
    page: str | None
    token: str | None

    def __str__(self) -> str:
        lines = [f"{self.app} with {self.runtime} on {self.url}"]
        lines += [f"page     {self.page}"] if self.page else []
        lines += [f"API      {self.url}/api/answer, described at {self.url}/docs"]
        lines += [f"token    {self.token}"] if self.token else []
        return "\n".join(lines)


def serve(
    run: str | Path,
    settings: ServiceSettings,
    overrides: Sequence[str] = (),
    *,
    announce: Callable[["Address"], Any] = print,
) -> None:
    """Serve the app of ``run`` until the process is told to stop (SIGTERM, Ctrl-C); what is under way is answered.

    Args:
        announce: is told where it can be reached.

    Raises:
        ConfigError: as for `open_app`; or the address is taken.
        MissingDependencyError: a package of the extra `apps` is not installed.
    """
    try:
        import uvicorn
    except ImportError as error:
        raise MissingDependencyError("serving", "uvicorn", "apps") from error
    from hf_efficient.service.api import build_api
    from hf_efficient.service.batching import Batcher
    from hf_efficient.service.metrics import Metrics
    from hf_efficient.service.page import mount_page

    with open_app(run, settings, overrides) as app:
        metrics = Metrics(lambda: len(batcher))
        batcher = Batcher(app.answer, max_batch=settings.max_batch, capacity=settings.queue, on_batch=metrics.batch)
        token = settings.resolved_token()
        api = build_api(app, batcher, metrics, token)
        has_page = settings.page and mount_page(api, app, batcher)
        config = uvicorn.Config(
            api,
            host=settings.host,
            port=settings.port,
            log_level="warning",
            timeout_graceful_shutdown=STOP_SECONDS,
        )
        sockets = [_bound(config)]
        port = sockets[0].getsockname()[1]
        url = f"http://{settings.host}:{port}"
        page = f"{url}/" + (f"?token={token}" if token else "") if has_page else None
        announce(Address(app.name, app.predictor.runtime.name, url, page, token))
        with _stops_quietly():
            uvicorn.Server(config).run(sockets)


def _bound(config: Any) -> Any:
    """The socket that ``config`` asks for.

    Raises:
        ConfigError: the address is taken, or is none of this machine.
    """
    import socket

    family = socket.AF_INET6 if ":" in config.host else socket.AF_INET
    sock = socket.socket(family)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        sock.bind((config.host, config.port))
        sock.listen(config.backlog)  # who hears the address may ask at once
    except OSError as error:
        sock.close()
        raise ConfigError(
            f"cannot listen on {config.host}:{config.port}: {error.strerror}; name another --port"
        ) from None
    return sock


@contextlib.contextmanager
def _stops_quietly() -> Iterator[None]:
    """Uvicorn raises the signal that stopped it once more when it is done; that one is to end nothing else."""
    before = signal.signal(signal.SIGTERM, lambda number, frame: None)
    try:
        yield
    except KeyboardInterrupt:
        pass
    finally:
        signal.signal(signal.SIGTERM, before)

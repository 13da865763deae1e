"""Where a study is kept, and its errors in plain words."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_efficient.errors import ConfigError, EfficientError, MissingDependencyError

if TYPE_CHECKING:
    import optuna

LOCKED_SECONDS = 60.0
"""How long a database that another program locks is waited for."""


def storage_at(url: str | None, folder: Path) -> "optuna.storages.BaseStorage":
    """A storage that several workers may share.

    Args:
        url: of an Optuna storage, or a path ending in .log for a journal file; None: SQLite in ``folder``.

    Raises:
        ConfigError: it cannot be reached.
        MissingDependencyError: Optuna is not installed.
    """
    try:
        import optuna
    except ImportError as error:
        raise MissingDependencyError("a search", "optuna", "search") from error
    optuna.logging.set_verbosity(optuna.logging.ERROR)  # trials are told by us
    folder.mkdir(parents=True, exist_ok=True)
    with reachable():
        if url is not None and url.endswith(".log"):
            from optuna.storages.journal import JournalFileBackend

            Path(url).parent.mkdir(parents=True, exist_ok=True)
            return optuna.storages.JournalStorage(JournalFileBackend(url))
        url = url or f"sqlite:///{(folder / 'study.db').absolute()}"
        if not url.startswith("sqlite"):
            return optuna.storages.RDBStorage(url)
        made = optuna.storages.RDBStorage(url, engine_kwargs={"connect_args": {"timeout": LOCKED_SECONDS}})
        _one_at_a_time(made.engine)
        return made


def _one_at_a_time(engine: Any) -> None:
    """Let transactions of SQLite begin with the lock that they write under.

    By default they begin at their first write. Optuna looks whether a trial is waiting and then takes it, so that two
    workers which look at the same moment both take it: of 60 waiting trials three workers took 8 to 16 twice.
    """
    from sqlalchemy import event

    @event.listens_for(engine, "connect")
    def by_hand(connection: Any, record: Any) -> None:
        connection.isolation_level = None  # the driver begins none

    @event.listens_for(engine, "begin")
    def begin(connection: Any) -> None:
        connection.exec_driver_sql("BEGIN IMMEDIATE")

    engine.dispose()  # connections that are there were made without


@contextmanager
def reachable(anything: bool = True) -> Iterator[None]:
    """Tell in plain words of a storage's errors.

    Args:
        anything: whether every error is the storage's, since each has errors of its own; else those that Optuna says
            are, also where it (5.0) fails once more over them.
    """
    try:
        yield
    except EfficientError:
        raise
    except Exception as error:
        cause = error if anything else _of_storage(error)
        if cause is None:
            raise
        words = " ".join(str(cause).split())[:200]
        raise ConfigError(
            f"the storage of the study cannot be used ({type(cause).__name__}: {words}); is it locked by another "
            "program, reachable, and writable?"
        ) from error


def _of_storage(error: BaseException | None) -> BaseException | None:
    import optuna

    while error is not None and not isinstance(error, optuna.exceptions.StorageInternalError):
        error = error.__context__
    return error

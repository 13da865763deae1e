"""A database for what is kept while serving: any URL of SQLAlchemy."""

from pathlib import Path
from typing import Any

from hf_efficient.errors import ConfigError, MissingDependencyError

_WAIT_MS = 10_000  # of SQLite for another process that writes


def sqlalchemy(feature: str) -> Any:
    """The package.

    Raises:
        MissingDependencyError: it is not installed.
    """
    try:
        import sqlalchemy as package
    except ImportError as error:
        raise MissingDependencyError(feature, "sqlalchemy", "apps") from error
    return package


def opened(url: str, tables: Any) -> Any:
    """An engine for ``url``, with ``tables`` (a `sqlalchemy.MetaData`), which are made where they are missing.

    Raises:
        ConfigError: a database that cannot be opened.
    """
    sa = sqlalchemy("keeping what is served")
    try:
        engine = sa.create_engine(url)
        if engine.dialect.name == "sqlite":
            sa.event.listen(engine, "connect", _set_up_sqlite)
            if engine.url.database:
                Path(engine.url.database).parent.mkdir(parents=True, exist_ok=True)
        tables.create_all(engine)
    except (sa.exc.SQLAlchemyError, ImportError, OSError) as error:
        words = str(error).strip().splitlines()[0]
        raise ConfigError(
            f"app.database: it cannot be opened ({words}); give a URL of SQLAlchemy, such as sqlite:///kept.sqlite, "
            "of a database that is there and may be written"
        ) from None
    return engine


def _set_up_sqlite(connection: Any, record: Any) -> None:
    """Readers beside a writer, and a commit that outlasts a killed process without waiting for the disk."""
    cursor = connection.cursor()
    for pragma in ("journal_mode=WAL", "synchronous=NORMAL", "foreign_keys=ON", f"busy_timeout={_WAIT_MS}"):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()

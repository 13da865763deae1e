"""What the monitor keeps: items, how far sources have been read, detectors and alarms, in any database of SQLAlchemy.

A batch is one transaction: its items, the position of its source behind them, and what the detectors made of them. A
process that is killed leaves all of that or nothing, so what is read next is what was not counted yet.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hf_efficient.errors import ConfigError, MissingDependencyError
from hf_efficient.tasks.apps.stream import Item, Refused
from hf_efficient.tasks.apps.surge import Surges

HOUR = 3600
_KEYS_AT_ONCE = 500
"""Databases limit the values of one query."""


@dataclass(frozen=True)
class Marked:
    """An item with what was found in it.

    Attributes:
        score: probability of `label`.
    """

    item: Item
    label: str
    score: float
    topic: str
    entity: str | None


@dataclass(frozen=True)
class Alarm:
    """A surge of negatives, as it is sent to webhooks.

    Attributes:
        topic: empty where it is one of all topics together.
        time: of the item that gave alarm; as `began` in seconds since 1970.
        began: when the surge did, as far as can be told.
        items: since then, with a share `share` of negatives; `before` it was that.
    """

    id: int
    topic: str
    time: float
    began: float
    items: int
    share: float
    before: float

    def __str__(self) -> str:
        told = f"{self.share:.0%} of the last {self.items} items are negative, {self.before:.0%} before"
        return f"surge of negatives in {self.topic or 'all topics'}: {told}"


class Store:
    """A database of the monitor. Readable by several processes and threads; writers take turns.

    Args:
        url: of SQLAlchemy, such as ``sqlite:////var/lib/monitor.db`` or ``postgresql+psycopg://...``.

    Raises:
        ConfigError: no such database, or no driver for it.
    """

    def __init__(self, url: str):
        try:
            import sqlalchemy as sql
        except ImportError as error:
            raise MissingDependencyError("the finance monitor", "sqlalchemy", "apps") from error
        self.sql, self.shown_url = sql, _without_password(url)
        try:
            self.engine = sql.create_engine(url)
            self._tables()
            if self.engine.dialect.name == "sqlite":
                _take_turns_in_sqlite(sql, self.engine)
            self.tables.create_all(self.engine)
        except (sql.exc.SQLAlchemyError, ImportError, ValueError) as error:
            words = str(error).splitlines()[0]
            raise ConfigError(
                f"app.database: cannot open '{self.shown_url}' ({words}); give a URL of SQLAlchemy such as "
                "sqlite:////folder/monitor.db, and install its driver"
            ) from error

    def _tables(self) -> None:
        sql = self.sql
        self.tables = sql.MetaData()
        number = sql.BigInteger().with_variant(sql.Integer(), "sqlite")  # only INTEGER counts up there
        self.items = sql.Table(
            "monitor_items",
            self.tables,
            sql.Column("id", number, primary_key=True),
            sql.Column("key", sql.String(40), unique=True),
            sql.Column("source", sql.Text, nullable=False),
            sql.Column("time", sql.Double, nullable=False),
            sql.Column("hour", sql.Integer, nullable=False, index=True),
            sql.Column("text", sql.Text, nullable=False),
            sql.Column("topic", sql.String(200), nullable=False),
            sql.Column("entity", sql.String(200)),
            sql.Column("label", sql.String(200), nullable=False),
            sql.Column("score", sql.Double, nullable=False),
        )
        self.refused = sql.Table(
            "monitor_refused",
            self.tables,
            sql.Column("id", number, primary_key=True),
            sql.Column("source", sql.Text, nullable=False),
            sql.Column("line", sql.Text, nullable=False),
            sql.Column("reason", sql.Text, nullable=False),
        )
        self.states = sql.Table(
            "monitor_states",
            self.tables,
            sql.Column("kind", sql.String(20), primary_key=True),  # "source", "surge" or "lock"
            sql.Column("name", sql.String(500), primary_key=True),
            sql.Column("state", sql.Text, nullable=False),
        )
        self.alarms = sql.Table(
            "monitor_alarms",
            self.tables,
            sql.Column("id", number, primary_key=True),
            sql.Column("topic", sql.String(200), nullable=False),
            *(sql.Column(name, sql.Double, nullable=False) for name in ("time", "began", "share", "before")),
            sql.Column("items", sql.Integer, nullable=False),
            sql.Column("sent", sql.Boolean, nullable=False),
            sql.Column("tries", sql.Integer, nullable=False),
            sql.Column("next_try", sql.Double, nullable=False),
        )

    @contextmanager
    def _writing(self) -> Iterator[Any]:
        """A transaction that has the database's writers to itself.

        Raises:
            ConfigError: the database fails; nothing of the transaction was kept.
        """
        try:
            with self.engine.connect().execution_options(monitor_writes=True) as connection, connection.begin():
                if self.engine.dialect.name != "sqlite":  # where BEGIN IMMEDIATE has done it
                    locks = self.sql.select(self.states).where(self.states.c.kind == "lock").with_for_update()
                    if connection.execute(locks).first() is None:
                        connection.execute(self.states.insert().values(kind="lock", name="writer", state=""))
                yield connection
        except self.sql.exc.OperationalError as error:
            raise ConfigError(
                f"the database {self.shown_url} fails ({error.orig}); nothing of the last items was counted, so put "
                "it right and start again"
            ) from error

    def record(
        self,
        source: str,
        marked: Sequence[Marked],
        refused: Sequence[Refused],
        was: Mapping[str, Any],
        now: Mapping[str, Any],
        surges: Callable[[Mapping[str, Mapping[str, Any]]], Surges],
        negative: str,
        due: bool,
    ) -> tuple[int, list[Alarm]]:
        """Commit a batch that was read from ``source``: count what is not known yet, let the detectors see it.

        Args:
            was, now: position of the source before and behind the batch.
            surges: makes the detectors from their states.
            negative: label that they watch.
            due: alarms are to be sent.

        Returns:
            the number of items that were counted, and the alarms.

        Raises:
            ConfigError: another process has read from the source meanwhile; nothing was counted.
        """
        with self._writing() as connection:
            if self._position(connection, source) != was:
                raise ConfigError(
                    f"another process has read from {source} with this database; stop one of them, or give it another "
                    "app.database"
                )
            fresh = self._fresh(connection, source, marked)
            rows = connection.execute(self.sql.select(self.states).where(self.states.c.kind == "surge"))
            watched = surges({row.name: json.loads(row.state) for row in rows})
            alarms = []
            for _, each in fresh:
                for topic, rise in watched.update(each.topic, each.label == negative, each.item.time):
                    told = {"topic": topic, "time": each.item.time, "began": rise.began, "items": rise.items}
                    told |= {"share": rise.share, "before": rise.before}
                    waits = {"sent": not due, "tries": 0, "next_try": 0.0}
                    made = connection.execute(self.alarms.insert().values(**told, **waits))
                    alarms.append(Alarm(made.inserted_primary_key[0], **told))
            if fresh:
                connection.execute(self.items.insert(), [_row(source, key, each) for key, each in fresh])
                for topic, state in watched.states().items():
                    self._put(connection, "surge", topic, state)
            if refused:
                rows = [{"source": source, "line": each.line, "reason": each.reason} for each in refused]
                connection.execute(self.refused.insert(), rows)
            if now != was:
                self._put(connection, "source", source, now)
        return len(fresh), alarms

    def _fresh(self, connection: Any, source: str, marked: Sequence[Marked]) -> list[tuple[str | None, Marked]]:
        """Those whose id has not been counted yet, in their order, each with its key; without an id, all."""
        keys = [None if each.item.id is None else _key(source, each.item.id) for each in marked]
        wanted, seen = [key for key in keys if key is not None], set()
        for start in range(0, len(wanted), _KEYS_AT_ONCE):
            some = self.items.c.key.in_(wanted[start : start + _KEYS_AT_ONCE])
            seen.update(connection.scalars(self.sql.select(self.items.c.key).where(some)))
        fresh = []
        for key, each in zip(keys, marked, strict=True):
            if key is None or key not in seen:
                fresh.append((key, each))
                seen.add(key)
        return fresh

    def _put(self, connection: Any, kind: str, name: str, state: Mapping[str, Any]) -> None:
        own = (self.states.c.kind == kind) & (self.states.c.name == name)
        text = json.dumps(state)
        if not connection.execute(self.states.update().where(own).values(state=text)).rowcount:
            connection.execute(self.states.insert().values(kind=kind, name=name, state=text))

    def _position(self, connection: Any, source: str) -> dict[str, Any]:
        own = (self.states.c.kind == "source") & (self.states.c.name == source)
        found = connection.scalar(self.sql.select(self.states.c.state).where(own))
        return {} if found is None else json.loads(found)

    def position(self, source: str) -> dict[str, Any]:
        """How far ``source`` has been read; empty where it has not been."""
        with self.engine.begin() as connection:
            return self._position(connection, source)

    def count(self) -> int:
        """Items counted so far."""
        with self.engine.begin() as connection:
            return connection.scalar(self.sql.select(self.sql.func.count()).select_from(self.items))

    def newest(self) -> int:
        """Number of the item that was counted last; 0 without any."""
        with self.engine.begin() as connection:
            return connection.scalar(self.sql.select(self.sql.func.max(self.items.c.id))) or 0

    def count_refused(self) -> int:
        """Lines that could not be read as an item."""
        with self.engine.begin() as connection:
            return connection.scalar(self.sql.select(self.sql.func.count()).select_from(self.refused))

    def hourly(self, hours: int | None = None) -> list[tuple[int, str, str, int]]:
        """(hour since 1970, topic, label, items), ascending; of the last ``hours`` that have items up to the newest."""
        sql, c = self.sql, self.items.c
        query = sql.select(c.hour, c.topic, c.label, sql.func.count()).group_by(c.hour, c.topic, c.label)
        with self.engine.begin() as connection:
            if hours is not None:
                newest = connection.scalar(sql.select(sql.func.max(c.hour)))
                query = query.where(c.hour > (newest or 0) - hours)
            return [tuple(row) for row in connection.execute(query.order_by(c.hour, c.topic, c.label))]

    def entities(self, hours: int, most: int) -> list[tuple[str, str, int]]:
        """(entity, label, items) of the ``most`` frequent entities of the last ``hours``."""
        sql, c = self.sql, self.items.c
        with self.engine.begin() as connection:
            newest = connection.scalar(sql.select(sql.func.max(c.hour))) or 0
            recent = (c.hour > newest - hours) & c.entity.is_not(None)
            counted = sql.select(c.entity).where(recent).group_by(c.entity).order_by(sql.func.count().desc(), c.entity)
            names = list(connection.scalars(counted.limit(most)))
            query = sql.select(c.entity, c.label, sql.func.count()).where(recent & c.entity.in_(names))
            return [tuple(row) for row in connection.execute(query.group_by(c.entity, c.label))]

    def newest_alarms(self, most: int = 50) -> list[Alarm]:
        """Newest first."""
        query = self.sql.select(self.alarms).order_by(self.alarms.c.id.desc()).limit(most)
        with self.engine.begin() as connection:
            return [_alarm(row) for row in connection.execute(query)]

    def claim(self, now: float, wait: Callable[[int], float]) -> list[Alarm]:
        """Alarms that are due to be sent, given to this caller alone: due again only after ``wait(tries)`` seconds."""
        alarms, claimed = self.alarms, []
        due = (alarms.c.sent.is_(False)) & (alarms.c.next_try <= now)
        with self.engine.begin() as connection:
            if connection.execute(self.sql.select(alarms.c.id).where(due).limit(1)).first() is None:
                return []
        with self._writing() as connection:
            for row in connection.execute(self.sql.select(alarms).where(due).order_by(alarms.c.id)).all():
                values = {"tries": row.tries + 1, "next_try": now + wait(row.tries)}
                connection.execute(alarms.update().where(alarms.c.id == row.id).values(**values))
                claimed.append(_alarm(row))
        return claimed

    def mark_sent(self, alarm: Alarm) -> None:
        with self._writing() as connection:
            connection.execute(self.alarms.update().where(self.alarms.c.id == alarm.id).values(sent=True))

    def close(self) -> None:
        self.engine.dispose()


def _row(source: str, key: str | None, marked: Marked) -> dict[str, Any]:
    item, entity = marked.item, marked.entity
    told = {"key": key, "source": source, "time": item.time, "hour": int(item.time // HOUR), "text": item.text}
    found = {"topic": marked.topic, "entity": entity, "label": marked.label, "score": marked.score}
    return {**told, **found}


def _key(source: str, id: str) -> str:
    return hashlib.blake2b(f"{source}\n{id}".encode("utf-8", "surrogatepass"), digest_size=20).hexdigest()


def _alarm(row: Any) -> Alarm:
    return Alarm(row.id, row.topic, row.time, row.began, row.items, row.share, row.before)


def _without_password(url: str) -> str:
    """``url`` as it may be shown."""
    start, at, rest = url.rpartition("@")
    return f"{start.partition('://')[0]}://...@{rest}" if at else url


def _take_turns_in_sqlite(sql: Any, engine: Any) -> None:
    """Transactions that write begin as such, so that two never wait for each other; the driver's own begin too late."""

    def connected(connection: Any, record: Any) -> None:
        connection.isolation_level = None
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA busy_timeout=60000")  # ms

    def began(connection: Any) -> None:
        writes = connection.get_execution_options().get("monitor_writes")
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")

    sql.event.listen(engine, "connect", connected)
    sql.event.listen(engine, "begin", began)


def sqlite_url(path: Path) -> str:
    return f"sqlite:///{path.absolute()}"

"""Conversations, answers and feedback in a database (SQLAlchemy: SQLite or any other)."""

import csv
import io
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

from hf_efficient.errors import RequestError
from hf_efficient.tasks.apps.database import opened, sqlalchemy

HANDOVER = "handover"
"""Kind of an answer that a person has to give."""


class Conversations:
    """What was said, kept before it is answered to anybody.

    Tables: ``messages`` (what a customer wrote and was answered; `kind` tells how, ``intents`` what was recognised)
    and ``feedback`` (on a message, the newest counts).

    Args:
        url: of SQLAlchemy, e.g. ``sqlite:///conversations.sqlite`` or ``postgresql+psycopg://...``.

    Raises:
        ConfigError: a database that cannot be opened.
        MissingDependencyError: SQLAlchemy is not installed.
    """

    def __init__(self, url: str):
        self._sa = sa = sqlalchemy("keeping conversations")
        tables = sa.MetaData()
        self._messages = sa.Table(
            "messages",
            tables,
            sa.Column("id", sa.String(32), primary_key=True),
            sa.Column("conversation", sa.String(64), index=True, nullable=False),
            sa.Column("at", sa.DateTime(timezone=True), nullable=False),
            sa.Column("text", sa.Text, nullable=False),
            sa.Column("kind", sa.String(16), index=True, nullable=False),
            sa.Column("intents", sa.JSON, nullable=False),
            sa.Column("answer", sa.Text, nullable=False),
            sa.Column("reply", sa.Text),  # of a person
        )
        self._feedback = sa.Table(
            "feedback",
            tables,
            sa.Column("number", sa.Integer, primary_key=True, autoincrement=True),
            sa.Column("message", sa.ForeignKey("messages.id"), index=True, nullable=False),
            sa.Column("at", sa.DateTime(timezone=True), nullable=False),
            sa.Column("helpful", sa.Boolean, nullable=False),
            sa.Column("intent", sa.String(200)),
        )
        self._engine = opened(url, tables)

    def close(self) -> None:
        self._engine.dispose()

    def keep(self, messages: Sequence[dict[str, Any]]) -> list[str]:
        """Keep ``messages`` (conversation, text, kind, intents, answer), all or none.

        Returns:
            their ids.
        """
        now = datetime.now(UTC)
        rows = [{**message, "id": new_id(), "at": now} for message in messages]
        with self._engine.begin() as connection:
            connection.execute(self._messages.insert(), rows)
        return [row["id"] for row in rows]

    def rate(self, message: str, helpful: bool, intent: str | None = None) -> None:
        """Keep what somebody thinks of the answer to ``message``.

        Args:
            intent: what the message was about.

        Raises:
            RequestError: no such message.
        """
        with self._engine.begin() as connection:
            self._message(connection, message)
            row = {"message": message, "at": datetime.now(UTC), "helpful": helpful, "intent": intent}
            connection.execute(self._feedback.insert(), row)

    def reply(self, message: str, text: str) -> None:
        """Keep a person's answer to ``message``, which then waits no more.

        Raises:
            RequestError: no such message.
        """
        table = self._messages
        with self._engine.begin() as connection:
            self._message(connection, message)
            connection.execute(table.update().where(table.c.id == message).values(reply=text))

    def waiting(self) -> list[dict[str, Any]]:
        """Messages that a person has to answer and has not, the oldest first."""
        table = self._messages
        chosen = table.select().where(table.c.kind == HANDOVER, table.c.reply.is_(None)).order_by(table.c.at)
        return self._rows(chosen)

    def conversation(self, name: str) -> list[dict[str, Any]]:
        """Its messages, the oldest first."""
        table = self._messages
        return self._rows(table.select().where(table.c.conversation == name).order_by(table.c.at))

    def labelled(self) -> list[tuple[str, str]]:
        """Texts with the intents that feedback gives or confirms: the newest word on each message counts."""
        sa, messages, feedback = self._sa, self._messages, self._feedback
        newest = sa.select(sa.func.max(feedback.c.number)).group_by(feedback.c.message)
        chosen = (
            sa.select(messages.c.text, messages.c.intents, feedback.c.helpful, feedback.c.intent)
            .join_from(feedback, messages)
            .where(feedback.c.number.in_(newest))
            .order_by(feedback.c.number)
        )
        with self._engine.connect() as connection:
            rows = connection.execute(chosen).all()
        found = [(text, intent or _only(intents) if helpful else intent) for text, intents, helpful, intent in rows]
        return [(text, intent) for text, intent in found if intent]

    def _message(self, connection: Any, message: str) -> None:
        table = self._messages
        if connection.execute(self._sa.select(table.c.id).where(table.c.id == message)).first() is None:
            raise RequestError(f"message: there is none with the id '{message}'; give the id that came with an answer")

    def _rows(self, chosen: Any) -> list[dict[str, Any]]:
        with self._engine.connect() as connection:
            rows = [dict(row) for row in connection.execute(chosen).mappings()]
        return [{**row, "at": row["at"].isoformat()} for row in rows]


def new_id() -> str:
    """An id that cannot be guessed."""
    return uuid4().hex


def as_csv(rows: Sequence[tuple[str, str]], columns: tuple[str, str]) -> str:
    """Two columns as a file that `hf_efficient.data` reads."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerows([columns, *rows])
    return text.getvalue()


def _only(intents: Sequence[dict[str, Any]]) -> str | None:
    """The intent, if it is one: a message of several teaches none of them."""
    return intents[0]["intent"] if len(intents) == 1 else None

"""What users took, and items that came, while an app served: kept in a database before anybody is told so."""

import csv
import io
from collections.abc import Iterator, Sequence

from hf_efficient.tasks.apps.catalogue import Item, shown_time
from hf_efficient.tasks.apps.database import opened, sqlalchemy
from hf_efficient.tasks.apps.interactions import Interaction

_AT_ONCE = 1000


class Taken:
    """Tables ``interactions`` and ``items``. For several threads at a time.

    Args:
        url: of SQLAlchemy.

    Raises:
        ConfigError: a database that cannot be opened.
        MissingDependencyError: SQLAlchemy is not installed.
    """

    def __init__(self, url: str):
        sa = self._sa = sqlalchemy("keeping interactions")
        tables = sa.MetaData()
        self._interactions = sa.Table(
            "interactions",
            tables,
            sa.Column("number", sa.Integer, primary_key=True, autoincrement=True),
            sa.Column("user", sa.String(200), nullable=False),
            sa.Column("item", sa.String(200), nullable=False),
            sa.Column("time", sa.Float(53), nullable=False),
        )
        self._items = sa.Table(
            "items",
            tables,
            sa.Column("number", sa.Integer, primary_key=True, autoincrement=True),
            sa.Column("item", sa.String(200), nullable=False),
            sa.Column("text", sa.Text, nullable=False),
            sa.Column("category", sa.String(200), nullable=False),
            sa.Column("price", sa.Float(53)),
            sa.Column("date", sa.Float(53)),
        )
        self._engine = opened(url, tables)

    def close(self) -> None:
        self._engine.dispose()

    def add(self, interactions: Sequence[Interaction]) -> None:
        """Keep all of them, or none."""
        with self._engine.begin() as connection:
            connection.execute(self._interactions.insert(), [one._asdict() for one in interactions])

    def add_items(self, items: Sequence[Item]) -> None:
        """Keep all of them, or none; of those with one id, the newest counts."""
        with self._engine.begin() as connection:
            connection.execute(self._items.insert(), [vars(item) for item in items])

    def interactions(self) -> Iterator[Interaction]:
        """As they came."""
        table = self._interactions
        chosen = self._sa.select(table.c.user, table.c.item, table.c.time).order_by(table.c.number)
        with self._engine.connect() as connection:
            for row in connection.execution_options(yield_per=_AT_ONCE).execute(chosen):
                yield Interaction(*row)

    def items(self) -> list[Item]:
        """As they came, each id once, as it was given last."""
        table = self._items
        columns = [column for column in table.c if column.name != "number"]
        with self._engine.connect() as connection:
            rows = connection.execute(self._sa.select(*columns).order_by(table.c.number)).all()
        return list({row.item: Item(*row) for row in rows}.values())

    def as_csv(self) -> Iterator[str]:
        """The interactions as pieces of a file that `read_log` reads."""
        yield "user,item,time\n"
        for one in self.interactions():
            line = io.StringIO()
            csv.writer(line, lineterminator="\n").writerow([one.user, one.item, shown_time(one.time)])
            yield line.getvalue()

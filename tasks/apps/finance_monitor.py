"""Finance-sentiment monitor: reads a stream of headlines, and gives alarm when negative ones surge."""

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field, field_validator

from hf_efficient.app import App, AppSettings, Ask, Request
from hf_efficient.errors import ConfigError, RequestError, unknown
from hf_efficient.tasks.apps.alarms import Sender
from hf_efficient.tasks.apps.monitor_page import WORDS, monitor_page
from hf_efficient.tasks.apps.monitor_store import Marked, Store, sqlite_url
from hf_efficient.tasks.apps.requests import Message
from hf_efficient.tasks.apps.stream import Chunk, Item, Source, make_item, read_time
from hf_efficient.tasks.apps.surge import Surges
from hf_efficient.tasks.apps.topics import Entities, EntitySettings, Topics, TopicSettings, export_encoder

if TYPE_CHECKING:
    from datasets import DatasetDict

logger = logging.getLogger(__name__)

BATCH = 32
"""Texts that the model reads at once."""

POSTED = "post"
"""Source of what comes over HTTP."""

IDLE_SECONDS = 0.5


class MonitorSettings(AppSettings):
    """What is watched, and when there is alarm."""

    database: str | None = None
    """URL of SQLAlchemy; null: SQLite in the run's folder."""

    negative: str = "negative"
    """Label whose surges give alarm."""

    topics: TopicSettings = TopicSettings()
    """How the topic of an item is found; without run or labels, only by what the item says itself."""

    entities: EntitySettings = EntitySettings()
    """How the entity of an item is found."""

    false_alarm_every: float = Field(default=1_000_000, ge=1_000, le=1e12)
    """Items from one false alarm to the next, on average, while items of all kinds come in no order."""

    smallest_surge: float = Field(default=0.1, ge=0.02, le=0.5)
    """Rise of the share of negatives that is worth an alarm: 0.1 is ten points."""

    webhook: str | None = None
    """URL that alarms are posted to as JSON."""

    window_hours: int = Field(default=24, ge=1)
    """Hours, up to the newest item, that shares are of."""

    shown_days: int = Field(default=30, ge=1)
    """Days, up to the newest item, that the picture shows."""

    @field_validator("webhook")
    @classmethod
    def _is_url(cls, value: str | None) -> str | None:
        if value is not None and value.partition("://")[0] not in ("http", "https"):
            raise ValueError(f"give a URL that begins with https:// or http://, got '{value}'")
        return value


class Headline(Request):
    """A headline to be counted."""

    text: Message
    """What it says."""

    time: str | float | None = None
    """When it came: an ISO date, or seconds since 1970; null is now."""

    id: str | None = Field(default=None, max_length=1000)
    """What tells it from others; sent again with the same one it is not counted again."""

    topic: str | None = Field(default=None, max_length=200)
    """Its topic, where that is known."""

    keep: bool = True
    """Whether it counts; else it is only answered."""

    @field_validator("time")
    @classmethod
    def _is_time(cls, value: str | float | None) -> str | float | None:
        if value is not None:
            try:
                read_time(value)
            except RequestError as error:
                raise ValueError(str(error)) from None
        return value


class FinanceMonitor(App):
    """Sentiment, topic and entity of headlines; shares over time, and alarms."""

    name = "finance-monitor"
    tasks = ("text-classification",)
    settings_class = MonitorSettings
    request_class = Headline
    needs_data = False
    alone = False
    words = WORDS

    settings: MonitorSettings

    @classmethod
    def check(cls, settings: MonitorSettings, task: Any, data: Any) -> None:
        if settings.negative not in task.label_names:
            raise ConfigError(f"app.negative: {unknown('label', settings.negative, task.label_names)}")

    def prepare(self, data: "DatasetDict", folder: Path) -> None:
        """Export the encoder that tells topics."""
        export_encoder(self.settings.topics, folder)

    def start(self) -> None:
        self.check(self.settings, self.predictor.task, None)
        self.topics = Topics(self.settings.topics, self.prepared)
        self.entities = Entities(self.settings.entities)
        url = self.settings.database
        if url is None:
            self.state.mkdir(parents=True, exist_ok=True)
            url = sqlite_url(self.state / "monitor.db")
        self.store = Store(url)
        self.sender = Sender(self.store, self.settings.webhook) if self.settings.webhook else None
        if self.sender is not None:
            self.sender.start()

    def stop(self) -> None:
        if self.sender is not None:
            self.sender.stop()
        self.store.close()

    def mark(self, items: Sequence[Item]) -> list[Marked]:
        """``items`` with label, topic and entity; those of like length are computed together."""
        by_length = sorted(range(len(items)), key=lambda index: len(items[index].text))
        found: dict[int, Marked] = {}
        for start in range(0, len(items), BATCH):
            some = by_length[start : start + BATCH]
            found.update(zip(some, self._mark([items[index] for index in some]), strict=True))
        return [found[index] for index in range(len(items))]

    def _mark(self, items: list[Item]) -> list[Marked]:
        texts = [item.text for item in items]
        said = self.predictor.answers(texts)
        unknown = [item.text for item in items if item.topic is None]
        topics = iter(self.topics(unknown) if unknown else [])
        return [
            Marked(item, answer["label"], answer["score"], item.topic or next(topics), entity)
            for item, answer, entity in zip(items, said, self.entities(texts), strict=True)
        ]

    def answer(self, requests: Sequence[Headline]) -> list[dict[str, Any]]:
        """What was found in each; those that are to be kept are counted by then."""
        items = [make_item(each.text, each.time, each.id, each.topic) for each in requests]
        marked = self.mark(items)
        kept = [one for one, request in zip(marked, requests, strict=True) if request.keep]
        if kept:
            self._record(POSTED, kept, Chunk({}), {})
        return [shown(one) for one in marked]

    def take(self, source: str, chunk: Chunk, was: Mapping[str, Any]) -> list[Marked]:
        """Mark and count what was read from ``source`` at the position ``was``; all of it is kept by then."""
        marked = self.mark(chunk.items)
        if len(chunk) or chunk.position != was:
            self._record(source, marked, chunk, was)
        return marked

    def _record(self, source: str, marked: list[Marked], chunk: Chunk, was: Mapping[str, Any]) -> None:
        for refused in chunk.refused:
            logger.warning("%s: left out: %s (%s)", source, refused.reason, refused.line[:80])
        _, alarms = self.store.record(
            source, marked, chunk.refused, was, chunk.position, self.surges, self.settings.negative,
            due=self.sender is not None,
        )  # fmt: skip
        for alarm in alarms:
            logger.warning("alarm %d: %s", alarm.id, alarm)

    def surges(self, states: Mapping[str, Mapping[str, Any]]) -> Surges:
        settings = self.settings
        return Surges(settings.smallest_surge, settings.false_alarm_every, states, settings.topics.other)

    def shares(self) -> dict[str, Any]:
        """Shares of the last `window_hours`: of each topic and of the most frequent entities."""
        topics = [(topic, label, n) for _, topic, label, n in self.store.hourly(self.settings.window_hours)]
        entities = self.store.entities(self.settings.window_hours, 20)
        return {"hours": self.settings.window_hours, "topics": self.by_name(topics), "entities": self.by_name(entities)}

    def by_name(self, counts: Sequence[tuple[str, str, int]]) -> list[dict[str, Any]]:
        """``name``, ``items`` and ``shares`` by label, those with most items first."""
        found: dict[str, dict[str, int]] = {}
        for name, label, number in counts:
            by_label = found.setdefault(name, dict.fromkeys(self.predictor.labels, 0))
            by_label[label] = by_label.get(label, 0) + number
        rows = []
        for name, by_label in found.items():
            total = sum(by_label.values())
            shares = {label: round(number / total, 4) for label, number in by_label.items()}
            rows.append({"name": name, "items": total, "shares": shares})
        return sorted(rows, key=lambda row: (-row["items"], row["name"]))

    def picture(self, title: str | None = None) -> bytes:
        """The time line of the last `shown_days` as PNG; ``title`` None takes its usual one."""
        from hf_efficient.tasks.apps.timeline import TITLE, png, timeline

        counts = self.store.hourly(24 * self.settings.shown_days)
        first = counts[0][0] * 3600 if counts else 0
        alarms = [alarm for alarm in self.store.newest_alarms() if alarm.time >= first]
        labels, negative = self.predictor.labels, self.settings.negative
        return png(timeline(counts, alarms, labels, negative, TITLE if title is None else title))

    def page(self, ask: Ask) -> Any:
        return monitor_page(self, ask)

    def add_routes(self, api: Any) -> None:
        from fastapi.responses import Response

        @api.get("/shares", summary="Shares by topic and entity")
        def get_shares() -> dict[str, Any]:
            return self.shares()

        @api.get("/alarms", summary="Alarms, newest first")
        def get_alarms() -> list[dict[str, Any]]:
            return [{**asdict(alarm), "text": str(alarm)} for alarm in self.store.newest_alarms()]

        @api.get("/timeline.png", summary="Shares over time", response_class=Response)
        def get_timeline() -> Any:
            return Response(self.picture(), media_type="image/png")


def shown(marked: Marked) -> dict[str, Any]:
    """What is said of an item."""
    told = {"label": marked.label, "score": round(marked.score, 4), "topic": marked.topic, "entity": marked.entity}
    return {"text": marked.item.text, "time": marked.item.time, "id": marked.item.id, **told}


def watch(
    app: FinanceMonitor,
    sources: Sequence[Source],
    tell: Callable[[Marked], Any] = lambda marked: None,
    is_over: Callable[[], bool] = lambda: False,
    most: int = 8 * BATCH,
) -> None:
    """Count what ``sources`` give until all have ended, or ``is_over``; what was told was kept before.

    Args:
        most: items of a transaction.
    """
    positions = {source.name: app.store.position(source.name) for source in sources}
    going = list(sources)
    while going and not is_over():
        is_idle = True
        for source in list(going):
            was = positions[source.name]
            chunk = source.read(was, most)
            for marked in app.take(source.name, chunk, was):
                tell(marked)
            positions[source.name] = dict(chunk.position)
            is_idle = is_idle and not len(chunk)
            if chunk.ended:
                going.remove(source)
        if is_idle and going:
            time.sleep(IDLE_SECONDS)

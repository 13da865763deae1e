"""The page of the monitor: time line, alarms, shares, and a headline to try."""

import io
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from hf_efficient.app import Ask
from hf_efficient.tasks.apps.requests import asked

if TYPE_CHECKING:
    from hf_efficient.tasks.apps.finance_monitor import FinanceMonitor

REFRESH_SECONDS = 15

WORDS: Mapping[str, Mapping[str, str]] = {
    "en": {
        "timeline": "Share of each sentiment over time",
        "alarms": "Alarms: surges of negative headlines, newest first (UTC)",
        "shares": "Topics in the last hours",
        "entities": "Entities in the last hours",
        "refresh": "Refresh",
        "headline": "Try a headline (it is not counted)",
        "ask": "Tell its sentiment",
        "sentiment": "Sentiment",
        "topic": "Topic",
        "entity": "Entity",
    },
    "zh-CN": {
        "timeline": "各类情绪随时间的占比",
        "alarms": "负面新闻激增的警报 (UTC)",
        "shares": "最近几小时的主题",
        "entities": "最近几小时的实体",
        "refresh": "刷新",
        "headline": "试试一条新闻标题 (不计入统计)",
        "ask": "判断情绪",
        "sentiment": "情绪",
        "topic": "主题",
        "entity": "实体",
    },
}


def monitor_page(app: "FinanceMonitor", ask: Ask) -> Any:
    """`gradio.Blocks` over the database of ``app``; its own texts and those of items are shown as text."""
    import gradio as gr

    def look(seen: Any) -> tuple[Any, ...]:
        now = app.store.newest()
        if now == seen:
            return tuple(gr.skip() for _ in range(5))
        from PIL import Image

        shares = app.shares()
        tables = (_table(shares[kind], app.predictor.labels) for kind in ("topics", "entities"))
        return now, Image.open(io.BytesIO(app.picture(title=" \n "))), alarm_rows(app), *tables

    def tell(text: str) -> tuple[Any, str, str]:
        answer = asked(ask, {"text": text, "keep": False})
        return {answer["label"]: answer["score"]}, answer["topic"], answer["entity"] or ""

    head = [*app.predictor.labels]
    with gr.Blocks(title="hf_efficient", delete_cache=(3600, 3600)) as page:
        picture = gr.Image(label=app.text("timeline"), interactive=False, buttons=["fullscreen", "download"])
        alarms = _frame(app.text("alarms"), ["time", "topic", "items", app.settings.negative, "before"])
        topics = _frame(app.text("shares"), ["topic", "items", *head])
        entities = _frame(app.text("entities"), ["entity", "items", *head])
        refresh = gr.Button(app.text("refresh"))
        text = gr.Textbox(label=app.text("headline"), lines=2, max_lines=4)
        button = gr.Button(app.text("ask"), variant="primary")
        with gr.Row():
            sentiment = gr.Label(label=app.text("sentiment"))
            topic = gr.Textbox(label=app.text("topic"), interactive=False)
            entity = gr.Textbox(label=app.text("entity"), interactive=False)
        seen = gr.State(None)
        shown = [seen, picture, alarms, topics, entities]
        gr.on([page.load, gr.Timer(REFRESH_SECONDS).tick], look, seen, shown, show_progress="hidden")
        refresh.click(lambda: look(None), None, shown)
        gr.on([button.click, text.submit], tell, text, [sentiment, topic, entity])
    return page


def alarm_rows(app: "FinanceMonitor") -> list[list[str]]:
    """Newest first; the topic is a star where the surge is one of all together."""
    return [
        [stamp(alarm.time), alarm.topic or "*", str(alarm.items), f"{alarm.share:.0%}", f"{alarm.before:.0%}"]
        for alarm in app.store.newest_alarms()
    ]


def stamp(seconds: float) -> str:
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M}"


def _frame(label: Any, headers: list[str]) -> Any:
    import gradio as gr

    widths = ["34%", *[f"{66 / (len(headers) - 1):.1f}%"] * (len(headers) - 1)]
    return gr.Dataframe(
        label=label, headers=headers, datatype="str", column_widths=widths, interactive=False, wrap=True
    )


def _table(rows: list[dict[str, Any]], labels: list[str]) -> list[list[str]]:
    return [[row["name"], str(row["items"]), *(f"{row['shares'][label]:.0%}" for label in labels)] for row in rows]

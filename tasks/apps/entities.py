"""Entity marking: the names in a text, highlighted and counted."""

from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hf_efficient.app import App, Ask, Request
from hf_efficient.tasks.apps.requests import Document, asked

SHOWN = 5
"""Different texts of a tag that the table names."""


class EntityRequest(Request):
    """A text."""

    text: Document
    """The text to be marked, of any kind of lines."""


class EntityMarking(App):
    """The entities in a text: where they are, and how many of each tag."""

    name = "entities"
    tasks = ("token-classification",)
    request_class = EntityRequest
    body_bytes = 1024 * 1024
    words = {
        "en": {
            "text": "Text",
            "ask": "Mark entities",
            "marked": "Marked text",
            "table": "Entities by tag",
        },
        "zh-CN": {
            "text": "文本",
            "ask": "标注实体",
            "marked": "标注结果",
            "table": "各类实体",
        },
    }

    def answer(self, requests: Sequence[EntityRequest]) -> list[dict[str, Any]]:
        answers = self.predictor.answers([request.text for request in requests])
        return [{**answer, "tags": tag_table(answer["entities"])} for answer in answers]

    def page(self, ask: Ask) -> Any:
        import gradio as gr

        def mark(text: str) -> tuple[Any, Any]:
            answer = asked(ask, {"text": text})
            rows = [[row["tag"], row["count"], ", ".join(row["texts"])] for row in answer["tags"]]
            return pieces(text, answer["entities"]), rows

        with gr.Blocks(title="hf_efficient") as page:
            text = gr.Textbox(label=self.text("text"), lines=5, max_lines=15, autofocus=True)
            file = gr.File(show_label=False, file_types=["text"], height=150)  # says itself what it is for
            button = gr.Button(self.text("ask"), variant="primary")
            marked = gr.HighlightedText(label=self.text("marked"), show_legend=True)
            table = gr.Dataframe(
                label=self.text("table"),
                headers=["tag", "number", "texts"],
                datatype="str",
                column_widths=["25%", "20%", "55%"],
                interactive=False,
                wrap=True,
            )
            file.upload(_read, file, text)
            button.click(mark, text, [marked, table])
        return page


def tag_table(entities: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Of each tag, the most frequent first: ``tag``, ``count``, and its most frequent ``texts``."""
    found: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for entity in entities:
        found[entity["entity"]][entity["text"]] += 1
    rows = [
        {"tag": tag, "count": texts.total(), "texts": [text for text, _ in texts.most_common(SHOWN)]}
        for tag, texts in found.items()
    ]
    return sorted(rows, key=lambda row: (-row["count"], row["tag"]))


def pieces(text: str, entities: Sequence[dict[str, Any]]) -> list[tuple[str, str | None]]:
    """``text`` cut at the ends of its entities: each piece with its tag, None outside of them."""
    found: list[tuple[str, str | None]] = []
    end = 0
    for entity in entities:
        if entity["start"] > end:
            found.append((text[end : entity["start"]], None))
        found.append((text[entity["start"] : entity["end"]], entity["entity"]))
        end = entity["end"]
    return [*found, (text[end:], None)] if end < len(text) else found


def _read(file: str) -> str:
    """The text in ``file``, for the page."""
    import gradio as gr

    try:
        return Path(file).read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise gr.Error(
            "The file is not text in UTF-8; save it as UTF-8, or paste its text", print_exception=False
        ) from None

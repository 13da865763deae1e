"""The page of the app: a list for a user, from which he takes, and which then changes."""

from typing import Any

from hf_efficient.app import App, Ask
from hf_efficient.tasks.apps.requests import asked

WORDS = {
    "en": {
        "user": "User (empty: somebody new)",
        "wish": "Looking for (may stay empty)",
        "ask": "Recommend",
        "list": "Recommended: tick what you would take",
        "take": "Take these, and recommend anew",
        "taken": "Taken on this page",
        "anew": "Start over",
    },
    "zh-CN": {
        "user": "用户, 留空表示新用户",
        "wish": "想找什么, 可不填",
        "ask": "推荐",
        "list": "推荐结果: 勾选你想要的",
        "take": "选好了, 重新推荐",
        "taken": "本页已选",
        "anew": "重新开始",
    },
}


def build_page(app: App, ask: Ask) -> Any:
    """`gradio.Blocks`; what is taken on it counts on it alone, and is not kept."""
    import gradio as gr

    def recommend(user: str, wish: str, taken: list[tuple[str, str]]) -> tuple[Any, ...]:
        given = {"user": user.strip() or None, "wish": wish.strip() or None, "history": [item for item, _ in taken]}
        rows = asked(ask, {name: value for name, value in given.items() if value is not None})["items"]
        choices = [(_line(row), row["item"]) for row in rows]
        shown = {item: text for text, item in choices}
        return gr.CheckboxGroup(choices=choices, value=[]), shown, [[text] for _, text in taken]

    def take(
        user: str, wish: str, taken: list[tuple[str, str]], chosen: list[str], shown: dict[str, str]
    ) -> tuple[Any, ...]:
        taken = [*taken, *((item, shown.get(item, item)) for item in chosen)]
        return taken, *recommend(user, wish, taken)

    with gr.Blocks(title="hf_efficient") as page:
        taken = gr.State([])
        shown = gr.State({})
        with gr.Row():
            user = gr.Textbox(label=app.text("user"), max_lines=1, autofocus=True)
            wish = gr.Textbox(label=app.text("wish"), max_lines=1)
        button = gr.Button(app.text("ask"), variant="primary")
        found = gr.CheckboxGroup(label=app.text("list"), choices=[], elem_id="recommended")
        with gr.Row():
            more = gr.Button(app.text("take"))
            anew = gr.Button(app.text("anew"))
        table = gr.Dataframe(
            label=app.text("taken"), headers=["item"], datatype="str", interactive=False, wrap=True, elem_id="taken"
        )
        gr.on([button.click, user.submit, wish.submit], recommend, [user, wish, taken], [found, shown, table])
        more.click(take, [user, wish, taken, found, shown], [taken, found, shown, table])
        anew.click(
            lambda: ([], gr.CheckboxGroup(choices=[], value=[]), [], "", ""), None, [taken, found, table, user, wish]
        )
    return page


def _line(row: dict[str, Any]) -> str:
    told = [row["text"], row["category"], "" if row["price"] is None else f"{row['price']:.2f}"]
    return " · ".join(text for text in told if text)

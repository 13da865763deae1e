"""The page of customer service: a conversation, and what it is worth."""

import html
from typing import TYPE_CHECKING, Any

from hf_efficient.app import Ask
from hf_efficient.errors import EfficientError
from hf_efficient.tasks.apps.requests import asked

if TYPE_CHECKING:
    from hf_efficient.tasks.apps.customer_service import CustomerService

WORDS = {
    "en": {
        "chat": "Conversation",
        "message": "Your message",
        "send": "Send",
        "hint": "Ask a question, or tell what went wrong.",
        "helped": "That helped",
        "not_helped": "That did not help",
        "anew": "New conversation",
    },
    "zh-CN": {
        "chat": "对话",
        "message": "您的留言",
        "send": "发送",
        "hint": "请描述您的问题。",
        "helped": "有帮助",
        "not_helped": "没有帮助",
        "anew": "新的对话",
    },
}

_MARKS = {"answer": "●", "knowledge": "◆", "handover": "▲"}
"""What an answer comes from, told without colours."""


def service_page(app: "CustomerService", ask: Ask) -> Any:
    """`gradio.Blocks` with a chat; everything in it is shown as text."""
    import gradio as gr

    def send(text: str, shown: list[Any], state: dict[str, Any]) -> tuple[Any, ...]:
        answer = asked(ask, {"text": text or "", "conversation": state.get("conversation")})
        said = [*shown, _bubble("user", text), _bubble("assistant", written(answer))]
        rated = gr.update(interactive=True)
        return "", said, {"conversation": answer["conversation"], "message": answer["message"]}, rated, rated

    def rate(helpful: bool, state: dict[str, Any]) -> tuple[Any, Any]:
        from hf_efficient.tasks.apps.customer_service import Feedback

        try:
            app.rate(Feedback(message=state["message"], helpful=helpful))
        except EfficientError as error:
            raise gr.Error(str(error), print_exception=False) from None
        return gr.update(interactive=False), gr.update(interactive=False)

    with gr.Blocks(title="hf_efficient") as page:
        state = gr.State({})
        chat = gr.Chatbot(
            label=app.text("chat"),
            height=420,
            render_markdown=False,
            layout="bubble",
            buttons=["copy"],
            feedback_options=None,
        )
        text = gr.Textbox(label=app.text("message"), placeholder=app.text("hint"), lines=1, max_lines=5, autofocus=True)
        with gr.Row():
            button = gr.Button(app.text("send"), variant="primary")
            yes = gr.Button(app.text("helped"), interactive=False)
            no = gr.Button(app.text("not_helped"), interactive=False)
            anew = gr.Button(app.text("anew"))
        gr.on([button.click, text.submit], send, [text, chat, state], [text, chat, state, yes, no])
        yes.click(lambda given: rate(True, given), state, [yes, no])
        no.click(lambda given: rate(False, given), state, [yes, no])
        off = gr.update(interactive=False)
        anew.click(lambda: ([], {}, off, off), None, [chat, state, yes, no])
    return page


def _bubble(role: str, text: str) -> dict[str, str]:
    """A message of the chat, which takes some markup for markup even where it renders none."""
    return {"role": role, "content": html.escape(text, quote=False)}


def written(answer: Any) -> str:
    """An answer as text: with its intents, or its sources, below it."""
    lines = [f"{_MARKS[answer['kind']]} {answer['text']}"]
    if answer["intents"]:
        told = [f"{each['intent']} {100 * each['confidence']:.0f} %" for each in answer["intents"]]
        lines.append(f"({', '.join(told)})")
    lines += [""] if answer["sources"] else []
    for number, source in enumerate(answer["sources"], start=1):
        lines.append(" ".join(filter(None, (f"[{number}]", source["title"], source["source"]))))
    return "\n".join(lines)

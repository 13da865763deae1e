"""What requests of several apps hold, and how their pages ask."""

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import AfterValidator, Field

from hf_efficient.app import Ask
from hf_efficient.errors import EfficientError


def _written(text: str) -> str:
    if not text.strip():
        raise ValueError("it is empty; write something")
    return text


LONGEST = 20_000
"""Characters of a message."""

Message = Annotated[str, Field(max_length=LONGEST), AfterValidator(_written)]
"""A text that somebody wrote."""

Document = Annotated[str, Field(max_length=200_000), AfterValidator(_written)]
"""A text that may come from a file."""


def asked(ask: Ask, values: Mapping[str, Any]) -> Mapping[str, Any]:
    """The answer for a page; what is refused comes as the notice that Gradio shows."""
    import gradio as gr

    try:
        return ask(values)
    except EfficientError as error:
        raise gr.Error(str(error), print_exception=False) from None

"""Labels: what a classifier says of a text or an image."""

import base64
import binascii
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import field_validator

from hf_efficient.app import App, AppSettings, Ask, Request
from hf_efficient.errors import RequestError
from hf_efficient.tasks.apps.requests import Message, asked

PIXELS = 50_000_000
"""Most that an image may hold: a small file can unpack to more than memory."""


class TextRequest(Request):
    """A text, or a pair of texts."""

    text: Message
    """What is to be labelled."""

    text_pair: Message | None = None
    """The second text, for models of pairs."""


class ImageRequest(Request):
    """An image."""

    image: bytes
    """The file (PNG, JPEG, ...) in base64."""

    @field_validator("image")
    @classmethod
    def _unpacked(cls, value: bytes) -> bytes:
        try:
            return base64.b64decode(value, validate=True)
        except binascii.Error:
            raise ValueError("this is not base64; encode the bytes of the image's file") from None


class Labels(App):
    """The labels of a text or an image, with their probabilities."""

    name = "labels"
    tasks = ("text-classification", "image-classification")
    words = {
        "en": {"text": "Text", "pair": "Second text", "image": "Image", "ask": "Label it", "labels": "Labels"},
        "zh-CN": {"text": "文本", "pair": "第二段文本", "image": "图片", "ask": "分类", "labels": "标签"},
    }

    def __init__(self, settings: AppSettings, predictor: Any, run: str | Path):
        super().__init__(settings, predictor, run)
        self._is_of_images = predictor.task.name == "image-classification"
        self._is_of_pairs = bool(getattr(predictor.task.settings, "text_pair", None))
        self.request_class = ImageRequest if self._is_of_images else TextRequest
        self.body_bytes = 8 * 1024 * 1024 if self._is_of_images else None

    def answer(self, requests: Sequence[Any]) -> list[dict[str, Any]]:
        return self.predictor.answers([self._raw(request) for request in requests])

    def _raw(self, request: Any) -> Any:
        if isinstance(request, ImageRequest):
            return _opened(request.image, self.predictor.task.mode)
        if self._is_of_pairs != (request.text_pair is not None):
            given = "needs text_pair beside text" if self._is_of_pairs else "takes text alone, without text_pair"
            raise RequestError(f"text_pair: this model {given}")
        return {"text": request.text, "text_pair": request.text_pair} if self._is_of_pairs else request.text

    def page(self, ask: Ask) -> Any:
        import gradio as gr

        def label(first: Any, second: str | None = None) -> Mapping[str, float] | None:
            if self._is_of_images:
                values = {"image": base64.b64encode(Path(first).read_bytes()) if first else b""}
            else:
                values = {"text": first or "", **({"text_pair": second or ""} if self._is_of_pairs else {})}
            answer = asked(ask, values)
            return answer.get("scores") or {str(answer.get("value")): 1.0}

        with gr.Blocks(title="hf_efficient") as page:
            if self._is_of_images:
                given = [gr.Image(type="filepath", label=self.text("image"))]
            else:
                given = [gr.Textbox(label=self.text("text"), lines=3, autofocus=True)]
                if self._is_of_pairs:
                    given.append(gr.Textbox(label=self.text("pair"), lines=3))
            button = gr.Button(self.text("ask"), variant="primary")
            labels = gr.Label(label=self.text("labels"), num_top_classes=5)
            gr.on([button.click, *(box.submit for box in given if hasattr(box, "submit"))], label, given, labels)
        return page


def _opened(content: bytes, mode: str) -> Any:
    """The image in a file's bytes, upright.

    Raises:
        RequestError: no image, or one too large.
    """
    from PIL import Image, ImageOps, UnidentifiedImageError

    try:
        image = Image.open(io.BytesIO(content))
        if image.width * image.height > PIXELS:
            raise RequestError(f"image: {image.width} x {image.height} pixels are more than {PIXELS}; make it smaller")
        return ImageOps.exif_transpose(image).convert(mode)
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        if isinstance(error, RequestError):
            raise
        raise RequestError("image: this is no image that can be read; send a PNG, JPEG or WebP file") from None

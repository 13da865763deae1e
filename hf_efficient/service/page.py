"""The page of an app, beside its API."""

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from hf_efficient.app import App, Ask
from hf_efficient.errors import MissingDependencyError, RequestError
from hf_efficient.service.api import worded
from hf_efficient.service.batching import Batcher

CSS = """
.gradio-container {width: 100%; max-width: 56rem !important; margin: auto}
:focus-visible {outline: 3px solid var(--color-accent) !important; outline-offset: 2px}
"""
FONTS = ["system-ui", "Noto Sans CJK SC", "sans-serif"]
WAIT_SECONDS = 60


def asking(app: App, batcher: Batcher) -> Ask:
    """What a page asks through: the same checks and the same queue as the API's."""

    def ask(values: Mapping[str, Any]) -> Mapping[str, Any]:
        try:
            request = app.request_class.model_validate(dict(values))
        except ValidationError as error:
            raise RequestError(worded(error.errors())) from None
        return batcher.submit(request).result(WAIT_SECONDS)

    return ask


def mount_page(api: Any, app: App, batcher: Batcher) -> bool:
    """Put the page of ``app`` at ``/`` of ``api``; False where it has none.

    Raises:
        MissingDependencyError: Gradio is not installed.
    """
    try:
        import gradio
    except ImportError as error:
        raise MissingDependencyError("the page", "gradio", "apps") from error
    page = app.page(asking(app, batcher))
    if page is None:
        return False
    page.analytics_enabled = False
    page.queue(max_size=batcher.capacity, default_concurrency_limit=batcher.max_batch, api_open=False)
    gradio.mount_gradio_app(
        api,
        page,
        path="/",
        footer_links=[],
        theme=gradio.themes.Default(font=FONTS, font_mono=["monospace"]),  # those of the machine: no network is asked
        css=CSS,
        i18n=gradio.I18n(**{language: dict(words) for language, words in app.words.items()}) if app.words else None,
        max_file_size=app.body_bytes,
    )
    return True

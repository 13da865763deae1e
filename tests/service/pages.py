"""Apps served with their pages in a thread, and a real browser to open them."""

import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from hf_efficient.app import App
from hf_efficient.service import Batcher, ServiceSettings, open_app
from hf_efficient.service.api import build_api
from hf_efficient.service.metrics import Metrics
from hf_efficient.service.page import mount_page

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
SECONDS = 60
"""To wait for anything on a page, on a machine with much else to do."""


@contextmanager
def served_page(run: Path, *overrides: str) -> Iterator[str]:
    """Address of the page of the app of ``run``."""
    with open_app(run, ServiceSettings(), overrides) as app, served_app(app) as url:
        yield url


@contextmanager
def served_app(app: App) -> Iterator[str]:
    """Address of the page of ``app``, which has been started."""
    import uvicorn

    batcher = Batcher(app.answer)
    api = build_api(app, batcher, Metrics(lambda: 0))
    assert mount_page(api, app, batcher)
    server = uvicorn.Server(uvicorn.Config(api, port=0, log_level="error"))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        until = time.monotonic() + SECONDS
        while not server.started:
            assert time.monotonic() < until, "the server did not start"
            time.sleep(0.05)
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}/"
    finally:
        server.should_exit = True
        thread.join(SECONDS)


@contextmanager
def browser() -> Iterator[Any]:
    """A headless Chromium; skips the test where there is none."""
    path = next(filter(None, map(shutil.which, BROWSERS)), None)
    if path is None:
        pytest.skip(f"no browser ({', '.join(BROWSERS)}); install Debian's package chromium")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as tool:
        opened = tool.chromium.launch(executable_path=path, args=["--no-sandbox", "--disable-gpu"])
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    with browser() as opened_one:
        yield opened_one


@contextmanager
def opened(browser: Any, url: str, *, locale: str = "en-US", width: int = 1100) -> Iterator[Any]:
    """The page at ``url``, ready for input; fails on errors of its scripts and on requests to other machines."""
    context = browser.new_context(locale=locale, viewport={"width": width, "height": 900})
    page = context.new_page()
    page.set_default_timeout(SECONDS * 1000)
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("request", lambda request: errors.append(request.url) if not _is_local(request.url, url) else None)
    page.on("dialog", lambda dialog: errors.append(f"dialog: {dialog.message}"))
    page.goto(url)
    page.locator("textarea:visible, input:visible").first.wait_for()
    yield page
    context.close()
    assert not errors


def _is_local(asked: str, url: str) -> bool:
    return asked.startswith((url, "data:", "blob:"))


def fits(page: Any) -> bool:
    """Whether the page is no wider than the window."""
    return bool(page.evaluate("document.documentElement.scrollWidth <= window.innerWidth"))

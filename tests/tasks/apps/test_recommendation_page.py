"""The page of recommendation in a real browser, on the width of a phone."""

import shutil
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from hf_efficient.service.api import build_api
from hf_efficient.service.batching import Batcher
from hf_efficient.service.metrics import Metrics
from hf_efficient.service.page import mount_page
from hf_efficient.tasks.apps.recommendation import ItemGiven
from tests.tasks.apps.shop import prepared

MARKUP = "<img src=x onerror=document.title='broken'> my card is lost"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    path = shutil.which("chromium")
    if path is None:
        pytest.skip("no chromium here: install Debian's package `chromium`")
    api = pytest.importorskip("playwright.sync_api")
    with api.sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield found
        found.close()


@pytest.fixture(scope="module")
def address(browser: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Where a page is served whose newest item has markup in its text."""
    uvicorn = pytest.importorskip("uvicorn")
    app = prepared(tmp_path_factory.mktemp("shop"))
    app.start()
    app.add_items([ItemGiven(item="odd", text=MARKUP, category="card", price=10.0)])
    batcher = Batcher(app.answer)
    api = build_api(app, batcher, Metrics(lambda: 0))
    assert mount_page(api, app, batcher)
    server = uvicorn.Server(uvicorn.Config(api, port=0, log_level="error", timeout_graceful_shutdown=1))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        thread.join(0.05)
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}/"
    server.should_exit = True
    thread.join()
    app.stop()


def expect_taken(page: Any, text: str) -> None:
    from playwright.sync_api import expect

    expect(page.locator("#taken")).to_contain_text(text, use_inner_text=True, timeout=60_000)


def test_by_keyboard_on_a_phone(address: str, browser: Any) -> None:
    page = browser.new_page(locale="zh-CN", viewport={"width": 375, "height": 800})
    page.goto(address, timeout=60_000)
    page.get_by_label("用户, 留空表示新用户").wait_for(timeout=60_000)
    page.get_by_label("想找什么, 可不填").focus()
    page.keyboard.type("my card is lost")
    page.keyboard.press("Enter")
    boxes = page.locator("#recommended input[type=checkbox]")
    boxes.first.wait_for(timeout=60_000)
    assert boxes.count() == 10
    boxes.first.focus()
    page.keyboard.press("Space")
    chosen = page.locator("#recommended label").first.inner_text().strip()
    button = page.get_by_role("button", name="选好了")
    button.focus()
    page.keyboard.press("Enter")
    expect_taken(page, chosen)
    assert chosen not in page.locator("#recommended").inner_text()
    assert page.evaluate("document.documentElement.scrollWidth") <= 375


def test_texts_are_shown_as_they_are(address: str, browser: Any) -> None:
    page = browser.new_page(locale="en-US")
    page.goto(address, timeout=60_000)
    page.get_by_label("Looking for (may stay empty)").fill(f"card | {MARKUP}")
    page.get_by_role("button", name="Recommend", exact=True).click()
    box = page.get_by_label(MARKUP)
    box.wait_for(timeout=60_000)
    box.check()
    page.get_by_role("button", name="Take these").click()
    expect_taken(page, MARKUP)
    assert page.title() != "broken"
    assert page.locator("img[src=x]").count() == 0

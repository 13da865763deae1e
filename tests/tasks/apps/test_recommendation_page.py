"""The page of recommendation in a real browser, on the width of a phone."""

from collections.abc import Iterator
from typing import Any

import pytest

from hf_efficient.tasks.apps.recommendation import ItemGiven
from tests.service.pages import SECONDS, fits, opened, served_app
from tests.service.pages import chromium as chromium
from tests.tasks.apps.shop import prepared

MARKUP = "<img src=x onerror=document.title='broken'> my card is lost"


@pytest.fixture(scope="module")
def address(chromium: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Where a page is served whose newest item has markup in its text."""
    app = prepared(tmp_path_factory.mktemp("shop"))
    app.start()
    app.add_items([ItemGiven(item="odd", text=MARKUP, category="card", price=10.0)])
    with served_app(app) as url:
        yield url
    app.stop()


def expect_taken(page: Any, text: str) -> None:
    from playwright.sync_api import expect

    expect(page.locator("#taken")).to_contain_text(text, use_inner_text=True, timeout=1000 * SECONDS)


def test_by_keyboard_on_a_phone(address: str, chromium: Any) -> None:
    with opened(chromium, address, locale="zh-CN", width=375) as page:
        page.get_by_label("用户, 留空表示新用户").wait_for()
        page.get_by_label("想找什么, 可不填").focus()
        page.keyboard.type("my card is lost")
        page.keyboard.press("Enter")
        boxes = page.locator("#recommended input[type=checkbox]")
        boxes.first.wait_for()
        assert boxes.count() == 10
        boxes.first.focus()
        page.keyboard.press("Space")
        chosen = page.locator("#recommended label").first.inner_text().strip()
        page.get_by_role("button", name="选好了").focus()
        page.keyboard.press("Enter")
        expect_taken(page, chosen)
        assert chosen not in page.locator("#recommended").inner_text()
        assert fits(page)


def test_texts_are_shown_as_they_are(address: str, chromium: Any) -> None:
    with opened(chromium, address) as page:
        page.get_by_label("Looking for (may stay empty)").fill(f"card | {MARKUP}")
        page.get_by_role("button", name="Recommend", exact=True).click()
        box = page.get_by_label(MARKUP)
        box.wait_for()
        box.check()
        page.get_by_role("button", name="Take these").click()
        expect_taken(page, MARKUP)
        assert page.title() != "broken"
        assert page.locator("img[src=x]").count() == 0

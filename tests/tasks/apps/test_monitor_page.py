"""The page of the monitor in a real browser."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hf_efficient.tasks.apps import surge
from hf_efficient.tasks.apps.finance_monitor import FinanceMonitor, Headline, watch
from hf_efficient.tasks.apps.stream import Followed
from tests.service.pages import chromium as chromium
from tests.service.pages import fits, opened, served_app
from tests.tasks.apps.monitor import headlines, monitor

MARKUP = "<img src=x onerror=document.title='broken'> bad ACME news"


@pytest.fixture(scope="module")
def app(chromium: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[FinanceMonitor]:
    """A monitor that has seen a surge, and an item whose topic is markup."""
    folder: Path = tmp_path_factory.mktemp("monitor")
    stream = folder / "stream.jsonl"
    stream.write_text("".join(headlines(1200, bad_after=1000)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(surge, "STREAMS", 200)
        patch.setattr(surge, "HORIZON", 2_000)
        surge.threshold.cache_clear()
        made = monitor(folder, entities={"names": ["ACME"]})
        watch(made, [Followed(stream, whole=True)], lambda marked: None)
        made.answer([Headline(text="flat", time=60.0 * 1200, topic="<b>odd</b>")])
        yield made
        made.stop()
    surge.threshold.cache_clear()


@pytest.fixture(scope="module")
def address(app: FinanceMonitor) -> Iterator[str]:
    with served_app(app) as url:
        yield url


def test_it_shows_the_time_line_alarms_and_shares(app: FinanceMonitor, address: str, chromium: Any) -> None:
    assert app.store.newest_alarms()
    with opened(chromium, address) as page:
        page.get_by_role("gridcell", name="east").first.wait_for()
        assert page.get_by_text("Alarms: surges of negative headlines").count()
        picture = page.locator("img").first
        picture.wait_for()
        assert picture.evaluate("image => image.naturalWidth") > 300
        page.get_by_role("gridcell", name="<b>odd</b>").first.wait_for()


def test_a_headline_by_keyboard_on_a_phone(app: FinanceMonitor, address: str, chromium: Any) -> None:
    seen = app.store.count()
    with opened(chromium, address, locale="zh-CN", width=375) as page:
        page.get_by_label("试试一条新闻标题 (不计入统计)").focus()
        page.keyboard.type(MARKUP)
        page.keyboard.press("Tab")
        page.keyboard.press("Enter")
        page.get_by_test_id("label-output-value").get_by_text("negative").wait_for()
        assert page.get_by_label("实体", exact=True).input_value() == "ACME"
        assert page.title() != "broken"
        assert page.locator("img[src=x]").count() == 0
        assert fits(page)
    assert app.store.count() == seen


def test_what_comes_in_is_shown_on_refresh(app: FinanceMonitor, address: str, chromium: Any) -> None:
    with opened(chromium, address) as page:
        page.get_by_role("gridcell", name="east").first.wait_for()
        app.answer([Headline(text="good", time=60.0 * 1201, topic="north")])
        page.get_by_role("button", name="Refresh").click()
        page.get_by_role("gridcell", name="north").first.wait_for()

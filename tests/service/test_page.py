"""The pages in a real browser: type, submit, see the answer; by keyboard, on a phone, in Chinese; markup stays text."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.runs import entity_run, text_run
from tests.service.pages import chromium as chromium
from tests.service.pages import fits, opened, served_page

MARKUP = "<img src=x onerror=alert(1)> <b>my card is lost</b>"


@pytest.fixture(scope="module")
def labels(tmp_path_factory: pytest.TempPathFactory, chromium: Any) -> Iterator[str]:
    with served_page(text_run(tmp_path_factory.mktemp("run"))) as url:
        yield url


@pytest.fixture(scope="module")
def entities(tmp_path_factory: pytest.TempPathFactory, chromium: Any) -> Iterator[str]:
    with served_page(entity_run(tmp_path_factory.mktemp("run"))) as url:
        yield url


def test_labels_by_keyboard_alone(chromium: Any, labels: str) -> None:
    with opened(chromium, labels) as page:
        page.keyboard.type("how do i pay")  # the box has the focus already
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.innerText") == "Label it"
        page.keyboard.press("Enter")
        page.get_by_test_id("label-output-value").get_by_text("pay").wait_for()
        assert page.get_by_text("card").count() == 1  # the other class, with its probability


def test_markup_is_shown_as_text(chromium: Any, labels: str, entities: str) -> None:
    with opened(chromium, labels) as page:
        page.locator("textarea").first.fill(MARKUP)
        page.get_by_role("button", name="Label it").click()
        page.get_by_test_id("label-output-value").wait_for()
    with opened(chromium, entities) as page:
        page.locator("textarea").first.fill(MARKUP)
        page.get_by_role("button", name="Mark entities").click()
        page.get_by_role("gridcell", name="thing").first.wait_for()
        assert page.get_by_text("onerror", exact=True).count() == 1
        assert page.locator("img[src=x]").count() == 0


@pytest.mark.parametrize("width", [1100, 360])
def test_entities_in_chinese(width: int, chromium: Any, entities: str) -> None:
    with opened(chromium, entities, locale="zh-CN", width=width) as page:
        page.get_by_label("文本", exact=True).fill("my card is lost")
        page.get_by_role("button", name="标注实体").click()
        page.get_by_role("gridcell", name="thing").first.wait_for()
        assert fits(page)


def test_a_file_is_marked(chromium: Any, entities: str, tmp_path: Path) -> None:
    file = tmp_path / "text.txt"
    file.write_text("where is my card")
    with opened(chromium, entities) as page:
        page.locator("input[type=file][accept='text/*']").set_input_files(file)
        page.wait_for_function("document.querySelector('textarea').value.includes('card')")
        page.get_by_role("button", name="Mark entities").click()
        page.get_by_role("gridcell", name="thing").first.wait_for()


def test_what_is_refused_is_told(chromium: Any, labels: str) -> None:
    with opened(chromium, labels) as page:
        page.get_by_role("button", name="Label it").click()
        page.get_by_text("it is empty; write something").wait_for()

"""Customer service on a tiny run: answers, passages, handovers, feedback, and what it is set up with."""

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from hf_efficient import ConfigError, DataError, Recipe
from hf_efficient.run import run as start
from hf_efficient.service import Batcher, ServiceSettings, open_app
from hf_efficient.service.api import build_api
from hf_efficient.service.metrics import Metrics
from hf_efficient.tasks.apps.customer_service import read_answers
from tests.runs import LABELS, TEXTS, text_data, text_run
from tests.runs import made_app as made
from tests.service.pages import browser, fits, opened, served_page

ANSWERS = {"card": "We send you a new card.", "pay": "Pay in the app."}
PAGES = [
    {"title": "Hours", "text": "The shop is open from nine to five. On Sundays it is closed.", "source": "help/hours"},
    {"title": "Parking", "text": "There is free parking behind the house.", "source": "help/parking"},
]
STRANGE = ["what is the capital of peru", "sing me a song", "how tall is a giraffe", "is the moon made of cheese"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, quick_export: None) -> Path:
    folder = tmp_path_factory.mktemp("run")
    (folder / "answers.json").write_text(json.dumps(ANSWERS))
    (folder / "pages.jsonl").write_text("".join(json.dumps(page) + "\n" for page in PAGES))
    rows = [f"{text},{split}" for text in STRANGE for split in ("validation", "test")]
    (folder / "strange.csv").write_text("\n".join(["text,split", *rows]))
    app = {
        "name": "customer-service",
        "answers": str(folder / "answers.json"),
        "knowledge": str(folder / "pages.jsonl"),
        "knowledge_title": "title",
        "knowledge_source": "source",
        "out_of_scope": str(folder / "strange.csv"),
    }
    return text_run(folder, app, steps=12)  # else its logits are all alike


@pytest.fixture
def client(run: Path, tmp_path: Path) -> Iterator[TestClient]:
    with open_app(run, ServiceSettings(), [f"app.database=sqlite:///{tmp_path / 'kept.sqlite'}"]) as app:
        metrics = Metrics(lambda: 0)
        with TestClient(build_api(app, Batcher(app.answer), metrics)) as client:
            yield client


def ask(client: TestClient, text: str, **more: Any) -> dict[str, Any]:
    response = client.post("/api/answer", json={"text": text, **more})
    assert response.status_code == 200, response.text
    return response.json()


def test_known_messages_get_their_answer(client: TestClient) -> None:
    for text, label in zip(TEXTS[:4], LABELS * 2, strict=True):
        found = ask(client, text)
        assert (found["kind"], found["text"]) == ("answer", ANSWERS[label])
        assert found["intents"][0]["intent"] == label
        assert 0.5 <= found["intents"][0]["confidence"] <= 1


def test_questions_about_a_page_get_its_sentences(client: TestClient) -> None:
    found = ask(client, "is the shop open on sundays?")
    assert found["kind"] == "knowledge"
    assert "On Sundays it is closed. [1]" in found["text"]
    assert found["sources"][0] == {"title": "Hours", "source": "help/hours", "similarity": pytest.approx(0.7, abs=0.3)}


def test_anything_else_goes_to_a_person(client: TestClient) -> None:
    found = ask(client, "what is the capital of Peru, and how tall are giraffes")
    assert (found["kind"], found["intents"], found["sources"]) == ("handover", [], [])
    (waiting,) = client.get("/api/handovers").json()
    assert waiting["id"] == found["message"]
    assert client.post("/api/handovers", json={"message": found["message"], "text": "Lima"}).status_code == 200
    assert client.get("/api/handovers").json() == []
    (row,) = client.get(f"/api/conversations/{found['conversation']}").json()
    assert row["reply"] == "Lima"


def test_two_intents_in_one_message(client: TestClient) -> None:
    found = ask(client, "my card is lost. how do i pay?")
    assert [each["intent"] for each in found["intents"]] == ["card", "pay"]
    assert found["text"] == f"{ANSWERS['card']}\n\n{ANSWERS['pay']}"


def test_a_conversation_goes_on(client: TestClient) -> None:
    first = ask(client, "my card is lost a")
    second = ask(client, "how do i pay b", conversation=first["conversation"])
    assert second["conversation"] == first["conversation"]
    rows = client.get(f"/api/conversations/{first['conversation']}").json()
    assert [row["text"] for row in rows] == ["my card is lost a", "how do i pay b"]
    assert ask(client, "my card")["conversation"] != first["conversation"]


def test_feedback_is_training_data(client: TestClient, tmp_path: Path) -> None:
    """Base data and what was learnt, in a file that trains."""
    found = ask(client, "my card is lost z")
    assert client.post("/api/feedback", json={"message": found["message"], "helpful": True}).status_code == 200
    other = ask(client, "how do i pay z")
    told = {"message": other["message"], "helpful": False, "intent": "card"}
    assert client.post("/api/feedback", json=told).status_code == 200
    rows = list(csv.reader(client.get("/api/training-data.csv").text.splitlines()))
    train = text_data()["train"]
    assert rows[0] == ["text", "label"]
    assert [row[0] for row in rows[1:25]] == list(train["text"])
    assert rows[25:] == [["my card is lost z", "card"], ["how do i pay z", "card"]]


def test_bad_feedback_is_told(client: TestClient) -> None:
    found = ask(client, "my card")
    for told, said in (
        ({"message": "none", "helpful": True}, "there is none with the id"),
        ({"message": found["message"], "helpful": False, "intent": "crad"}, "did you mean 'card'"),
        ({"message": found["message"]}, "helpful: Field required"),
    ):
        response = client.post("/api/feedback", json=told)
        assert response.status_code == 422
        assert said in response.json()["error"]


def test_answers_of_a_batch_are_those_of_each(run: Path) -> None:
    app = made(run)
    app.start()
    texts = [*TEXTS[:5], "is the shop open on sundays?", STRANGE[0], "my card is lost. how do i pay?"]
    together, alone = app.said(texts), [app.said([text])[0] for text in texts]
    for one, other in zip(together, alone, strict=True):
        assert (one["kind"], one["text"]) == (other["kind"], other["text"])
    app.stop()


def test_without_knowledge_a_person_answers(run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    text_run(folder, {"name": "customer-service", "answers": str(run / "answers.json")})
    app = made(folder)
    app.start()
    assert app.said(["sing me a song about giraffes"])[0]["kind"] == "handover"
    assert app.said(["my card is lost q"])[0]["kind"] == "answer"
    app.stop()
    assert (folder / "served" / "conversations.sqlite").is_file()


def test_bad_answers(tmp_path: Path) -> None:
    file = tmp_path / "answers.json"
    for content, said in (
        ("{", "is not valid JSON"),
        ('["a"]', "must hold a text for each intent"),
        ('{"card": ""}', "must hold a text for each intent"),
        ('{"card": "a"}', "has no answer to pay"),
        ('{"card": "a", "pay": "b", "pey": "c"}', "unknown intent 'pey'; did you mean 'pay'"),
    ):
        file.write_text(content)
        with pytest.raises(DataError) as caught:
            read_answers(str(file), LABELS)
        assert said in str(caught.value)


def test_what_was_not_prepared_is_when_it_is_served(run: Path, tmp_path: Path) -> None:
    """A run of a recipe that named no app; without its data it says so."""
    csv_file = tmp_path / "train.csv"
    text_data()["train"].to_csv(str(csv_file))
    overrides = ["app.name=customer-service", f"app.answers={run / 'answers.json'}"]
    folder = text_run(tmp_path / "run", train=str(csv_file))
    with open_app(folder, ServiceSettings(), overrides) as app:
        assert app.answer([app.request_class(text="my card is lost")])[0]["kind"] == "answer"
    lost = text_run(tmp_path / "lost", steps=1)
    said = r"takes the data of the run: .*none\.csv.*run the recipe again"
    with pytest.raises(ConfigError, match=said), open_app(lost, ServiceSettings(), overrides):
        pass


def test_bad_settings_are_refused_before_the_training(run: Path, tmp_path: Path) -> None:
    """And leave nothing."""
    recipe = Recipe.load("customer-service", ["app.knowledge=none.jsonl", "app.confidence=0.7"])
    with pytest.raises(DataError, match=r"app\.knowledge: no file none\.jsonl"):
        start(recipe, runs=tmp_path / "runs")
    assert not (tmp_path / "runs").exists()
    with pytest.raises(ConfigError, match="unknown key 'confidense'; did you mean 'confidence'"):
        Recipe.load("customer-service", ["app.confidense=0.7"])


@pytest.mark.parametrize(("locale", "width", "helped"), [("en-US", 1100, "That helped"), ("zh-CN", 360, "有帮助")])
def test_a_conversation_on_its_page(locale: str, width: int, helped: str, run: Path, tmp_path: Path) -> None:
    markup = "<img src=x onerror=alert(1)> sing me a song of giraffes and cheese"
    database = f"sqlite:///{tmp_path / 'kept.sqlite'}"
    with (
        browser() as chromium,
        served_page(run, f"app.database={database}") as url,
        opened(chromium, url, locale=locale, width=width) as page,
    ):
        for text, answer in (("my card is lost", ANSWERS["card"]), (markup, "Let me pass you on")):
            page.locator("textarea").first.fill(text)
            page.keyboard.press("Enter")
            page.get_by_text(answer).wait_for()
        assert page.locator("img[src=x]").count() == 0
        assert page.get_by_text("onerror=alert(1)").count() == 1
        page.get_by_role("button", name=helped, exact=True).click()
        page.locator("button:disabled", has_text=helped).first.wait_for()
        assert fits(page)

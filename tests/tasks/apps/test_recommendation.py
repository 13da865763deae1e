"""Recommendation as an app: prepared, started, asked, told what was taken, and started again."""

import asyncio
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from datasets import DatasetDict
from pydantic import ValidationError
from safetensors.numpy import load_file

from hf_efficient.app import APPS
from hf_efficient.errors import ConfigError, MissingDependencyError, RequestError
from hf_efficient.service.api import build_api
from hf_efficient.service.batching import Batcher
from hf_efficient.service.metrics import Metrics
from hf_efficient.tasks.apps.catalogue import to_seconds
from hf_efficient.tasks.apps.interactions import read_log
from hf_efficient.tasks.apps.item_vectors import embedder
from hf_efficient.tasks.apps.recommendation import (
    InteractionGiven,
    ItemGiven,
    ItemRecommendation,
    RecommendationRequest,
)
from tests.runs import made_app
from tests.tasks.apps.shop import START, prepared, run_folder
from tests.test_mind import folder as mind


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that has been prepared: to be read only."""
    folder = tmp_path_factory.mktemp("shop")
    prepared(folder)
    return folder


@pytest.fixture
def app(run: Path, tmp_path: Path) -> Any:
    """A started app that keeps what it is told in a folder of its own."""
    made = made_app(run)
    assert isinstance(made, ItemRecommendation)
    made.state = tmp_path / "served"
    made.start()
    yield made
    made.stop()


def ask(app: ItemRecommendation, **values: Any) -> dict[str, Any]:
    return app.answer([RecommendationRequest(**values)])[0]


def names(answer: dict[str, Any]) -> list[str]:
    return [row["item"] for row in answer["items"]]


def take(app: ItemRecommendation, user: str, *items: str) -> None:
    app.add_interactions([InteractionGiven(user=user, item=item) for item in items])


# Preparing


def test_it_is_listed() -> None:
    assert APPS["recommendation"].endswith(f":{ItemRecommendation.__name__}")


def test_vectors_are_those_of_the_model(run: Path, app: ItemRecommendation) -> None:
    kept = load_file(run / "app" / "vectors.safetensors")["vectors"]
    texts = [item.written for item in app.market.items]
    own = embedder(app.predictor, run / "none")(texts)
    assert kept.shape == (24, 32)
    assert np.allclose(kept, own, atol=1e-5), "ONNX Runtime made them"
    told = json.loads((run / "app" / "ranker.json").read_text())
    assert told["embedded_by"] == "ONNX Runtime"
    assert set(told["judged"]) == {"learnt", "popularity", "similarity"}


def test_without_onnx_items_are_embedded_by_pytorch(
    tmp_path: Path, run: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*args: Any) -> None:
        raise MissingDependencyError("export format 'onnx'", "onnxscript", "onnx")

    monkeypatch.setattr("hf_efficient.tasks.apps.encoder.Encoder.export", refuse)
    prepared(tmp_path)
    assert "items are embedded by PyTorch: export format 'onnx' needs the package `onnxscript`" in caplog.text
    ours, exported = (load_file(each / "app" / "vectors.safetensors")["vectors"] for each in (tmp_path, run))
    assert np.allclose(ours, exported, atol=1e-5)


def test_vectors_of_another_model_are_refused(run: Path, tmp_path: Path) -> None:
    shutil.copytree(run, tmp_path / "run")
    file = tmp_path / "run" / "final" / "config.json"
    file.write_text(file.read_text() + "\n")
    with pytest.raises(ConfigError, match=r"were made by another model than the one that serves; run the recipe again"):
        made_app(tmp_path / "run").start()
    (tmp_path / "run" / "app" / "items.jsonl").unlink()
    with pytest.raises(ConfigError, match=r"what was prepared in .* cannot be read"):
        made_app(tmp_path / "run").start()


def test_mind_from_end_to_end(tmp_path: Path) -> None:
    kinds = {"sports": "my card is lost", "food": "how do i pay"}
    news = [
        f"N{kind}{number}\t{kind}\tx\t{text} {'abcdef'[number]}\t\t\t\t"
        for kind, text in kinds.items()
        for number in range(6)
    ]
    behaviors = []
    for number in range(60):
        kind = list(kinds)[number % 2]
        day, first, second = 1 + number // 3, number % 6, (number + 1) % 6
        shown = f"N{kind}{second}-1 N{kind}{(number + 3) % 6}-0"
        behaviors.append(f"{number}\tU{number}\t11/{day}/2019 9:05:58 AM\tN{kind}{first}\t{shown}")
    folder = str(mind(tmp_path / "mind", behaviors, news))
    made = made_app(run_folder(tmp_path / "run", catalogue=folder, log=folder))
    made.prepared.mkdir()
    made.prepare(DatasetDict(), made.prepared)
    made.start()
    answer = ask(made, user="U0", count=3)
    assert answer["known"] == 2
    assert answer["candidates"] == 10
    assert len(answer["items"]) == 3
    assert answer["items"][0]["near"] in ("Nsports0", "Nsports1")
    made.stop()


# Asking


def test_who_took_a_kind_gets_more_of_it(app: ItemRecommendation) -> None:
    answer = ask(app, user="u1", count=1)
    assert answer["items"][0]["category"] == "app"
    assert answer["known"] == 6
    taken = {one.item for one in read_log(app.prepared / "log.parquet") if one.user == "u1"}
    everything = ask(app, user="u1", count=100)
    assert not taken & set(names(everything))
    assert everything["candidates"] == len(everything["items"]) == 21 - 6, "and none that comes later"
    scores = [row["score"] for row in everything["items"]]
    assert scores == sorted(scores, reverse=True)
    assert {row["near"] for row in everything["items"]} <= taken


def test_somebody_new_gets_what_many_take_and_then_what_is_like_it(app: ItemRecommendation) -> None:
    cold = ask(app, user="new", count=5)
    assert cold == ask(app, count=5) == {**cold, "known": 0}
    assert {row["near"] for row in cold["items"]} == {None}
    assert all(app.market.features([], app.market.now)[app.market.numbers[item], 6] > 0 for item in names(cold))
    take(app, "new", "money0", "money1")
    warm = ask(app, user="new", count=1)
    assert warm["known"] == 2
    assert warm["items"][0]["category"] == "money"
    assert ask(app, history=["money0", "money1"], count=1)["items"][0]["item"] == warm["items"][0]["item"]
    assert ask(app, user="other")["known"] == 0, "nobody else knows of it"


def test_batches_are_single_answers(app: ItemRecommendation) -> None:
    requests = [
        RecommendationRequest(user="u0"),
        RecommendationRequest(wish="where is my card", count=3),
        RecommendationRequest(history=["app1"], category="app"),
        RecommendationRequest(wish="money", user="u2", exclude=["money0", "never heard of"]),
    ]
    assert app.answer(requests) == [app.answer([request])[0] for request in requests]


def test_choices_of_the_request(app: ItemRecommendation) -> None:
    assert {row["category"] for row in ask(app, category="money", count=50)["items"]} == {"money"}
    first = names(ask(app, count=2))
    assert names(ask(app, count=1, exclude=first[:1])) == first[1:]
    with pytest.raises(RequestError, match=r"category: there is none called 'no'; allowed: app, card, money"):
        ask(app, category="no")
    with pytest.raises(
        RequestError, match=r"history: there is no item '<b>' in the catalogue; add it by POST /api/items"
    ):
        ask(app, history=["<b>"])
    for wrong in ({"count": 0}, {"count": 101}, {"user": ""}, {"wish": " "}, {"history": ["x" * 201]}, {"users": "u"}):
        with pytest.raises(ValidationError):
            RecommendationRequest(**wrong)


def test_what_was_taken_may_be_ranked_again(app: ItemRecommendation) -> None:
    app.settings = app.settings.model_copy(update={"again": True})
    assert ask(app, user="u1", count=100)["candidates"] == 21


# While serving


def test_new_items_rank_by_their_texts(app: ItemRecommendation) -> None:
    app.add_items([ItemGiven(item="fresh", text="the app is new h", category="app", price=20.0)])
    answer = ask(app, user="u1", count=100)
    assert "fresh" in names(answer)[:5]
    assert answer["candidates"] == 21 - 6 + 1
    take(app, "u1", "fresh")
    assert "fresh" not in names(ask(app, user="u1", count=100))
    app.add_items([ItemGiven(item="fresh", text="how do i pay money", price=1.5, date="2030-01-01")])
    assert ask(app, user="u2", count=100)["candidates"] == 21 - 6, "it is to come only in 2030"
    app.add_items([ItemGiven(item="fresh", text="how do i pay", date="2026-01-05")])
    app.add_items([ItemGiven(item="fresh", text="how do i pay money", price=1.5)])
    assert app.market.items[-1].date != to_seconds("2026-01-05"), "what was said is taken in with the next answer"
    (row,) = [row for row in ask(app, user="u2", count=100)["items"] if row["item"] == "fresh"]
    assert (row["text"], row["price"]) == ("how do i pay money", 1.5)
    assert app.market.items[-1].date == to_seconds("2026-01-05"), "a change alone makes nothing new"


def test_all_that_was_told_is_there_after_a_start(app: ItemRecommendation, run: Path) -> None:
    app.add_items([ItemGiven(item="fresh", text="the app is new h", category="app")])
    take(app, "new", "fresh", "app1")
    before = ask(app, user="new", count=30)
    other = made_app(run)  # as after a kill: the first was not stopped
    assert isinstance(other, ItemRecommendation)
    other.state = app.state
    other.start()
    after = ask(other, user="new", count=30)
    assert after["known"] == 2
    assert names(after) == names(before)
    other.stop()


def test_what_cannot_be_kept_is_refused_as_a_whole(app: ItemRecommendation) -> None:
    with pytest.raises(RequestError, match=r"interactions: there is no item 'nothing' in the catalogue"):
        take(app, "new", "card0", "nothing")
    with pytest.raises(
        RequestError, match=r"interactions: the time of 'card0' for 'new' is still to come; leave it out"
    ):
        app.add_interactions([InteractionGiven(user="new", item="card0", time="2099-01-01")])
    assert ask(app, user="new")["known"] == 0


def test_time_goes_on_from_the_end_of_the_log(app: ItemRecommendation) -> None:
    end = max(one.time for one in read_log(app.prepared / "log.parquet"))
    assert end <= app.now() < end + 600
    assert START < end < START + 30 * 86400


# Over HTTP


def call(app: ItemRecommendation, *calls: tuple[str, str, Any]) -> list[httpx.Response]:
    async def all_of_them() -> list[httpx.Response]:
        batcher = Batcher(app.answer)
        transport = httpx.ASGITransport(build_api(app, batcher, Metrics(lambda: 0)))
        async with httpx.AsyncClient(transport=transport, base_url="http://here") as client:
            found = [await client.request(method, path, json=body) for method, path, body in calls]
        await asyncio.to_thread(batcher.close)
        return found

    return asyncio.run(all_of_them())


def test_the_api_keeps_and_exports(app: ItemRecommendation, tmp_path: Path) -> None:
    time = "2026-01-20T00:00:00+00:00"
    rows = [{"user": "=1+1", "item": "card1", "time": time}, {"user": "new, user", "item": "fresh"}]
    item = {"item": "fresh", "text": "<script>alert(1)</script>", "price": 3}
    answers = call(
        app,
        ("POST", "/api/items", {"items": [item]}),
        ("POST", "/api/interactions", {"interactions": rows}),
        ("POST", "/api/answer", {"user": "new, user", "count": 2}),
        ("GET", "/api/interactions.csv", None),
    )
    assert [answer.status_code for answer in answers] == [200] * 4
    assert answers[0].json() == {"kept": 1}
    assert answers[1].json() == {"kept": 2}
    assert answers[2].json()["known"] == 1
    (tmp_path / "log.csv").write_text(answers[3].text)
    found = read_log(tmp_path / "log.csv")
    assert [(one.user, one.item) for one in found] == [("=1+1", "card1"), ("new, user", "fresh")]
    assert found[0].time == to_seconds(time)


def test_the_api_says_what_is_wrong(app: ItemRecommendation) -> None:
    bad: list[tuple[str, str, Any]] = [
        ("POST", "/api/interactions", {"interactions": []}),
        ("POST", "/api/interactions", {"interactions": [{"user": "u", "item": "card1", "time": "soon"}]}),
        ("POST", "/api/interactions", {"interactions": [{"user": "u", "item": "none"}]}),
        ("POST", "/api/items", {"items": [{"item": "x", "text": " "}]}),
        ("POST", "/api/items", {"items": [{"item": "x", "text": "y", "price": 0}]}),
        ("POST", "/api/answer", {"count": "many"}),
        ("POST", "/api/answer", {"history": ["none"]}),
    ]
    answers = call(app, *bad)
    assert [answer.status_code for answer in answers] == [422] * len(bad)
    said = " ".join(answer.json()["error"] for answer in answers)
    for words in (
        "at least 1 item",
        "the time 'soon' is neither",
        "no item 'none'",
        "it is empty",
        "no number above 0",
    ):
        assert words in said
    assert app._taken.items() == []
    assert list(app._taken.interactions()) == []


def test_a_database_elsewhere(run: Path, tmp_path: Path) -> None:
    made = made_app(run)
    made.settings = made.settings.model_copy(update={"database": f"sqlite:///{tmp_path}/new/taken.db"})
    made.start()
    made.stop()
    assert (tmp_path / "new" / "taken.db").is_file()
    made.settings = made.settings.model_copy(update={"database": "nothing://x"})
    with pytest.raises(ConfigError, match=r"app.database: it cannot be opened .*give a URL of SQLAlchemy"):
        made.start()


def test_without_sqlalchemy(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sqlalchemy", None)
    with pytest.raises(MissingDependencyError, match=r"needs the package `sqlalchemy`.*hf-efficient\[apps\]"):
        made_app(run).start()

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datasets import DatasetDict
from fastapi import APIRouter, FastAPI
from fastapi.testclient import TestClient
from pydantic import ValidationError

from hf_efficient import ConfigError
from hf_efficient.app import parse_app
from hf_efficient.errors import RequestError
from hf_efficient.tasks.apps import surge
from hf_efficient.tasks.apps.finance_monitor import FinanceMonitor, Headline, MonitorSettings, shown, watch
from hf_efficient.tasks.apps.stream import Followed
from tests.tasks.apps.monitor import Words, headlines, line, monitor

ROOT = Path(__file__).parents[3]


@pytest.fixture(autouse=True)
def fewer_streams(monkeypatch: pytest.MonkeyPatch) -> None:
    """A part of what thresholds are calibrated by."""
    monkeypatch.setattr(surge, "STREAMS", 200)
    monkeypatch.setattr(surge, "HORIZON", 2_000)
    surge.threshold.cache_clear()


@pytest.fixture
def app(tmp_path: Path) -> Any:
    made = monitor(tmp_path, entities={"names": ["ACME"]})
    yield made
    made.stop()


def follow(app: FinanceMonitor, path: Path, **settings: Any) -> list[dict[str, Any]]:
    """What is told of each item of the file."""
    told: list[dict[str, Any]] = []
    watch(app, [Followed(path, whole=True)], lambda marked: told.append(shown(marked)), **settings)
    return told


def test_what_is_said_of_an_item(app: FinanceMonitor) -> None:
    first, second = app.answer([Headline(text="bad ACME news"), Headline(text="good", time=5, topic="east")])
    assert (first["label"], first["score"], first["topic"], first["entity"]) == ("negative", 0.9, "other", "ACME")
    assert (second["label"], second["topic"], second["entity"], second["time"]) == ("positive", "east", None, 5)
    assert app.store.count() == 2


def test_a_headline_that_is_tried_does_not_count(app: FinanceMonitor) -> None:
    assert app.answer([Headline(text="bad", keep=False)])[0]["label"] == "negative"
    assert app.store.count() == 0
    app.answer([Headline(text="bad", id="1"), Headline(text="flat", keep=False)])
    app.answer([Headline(text="bad", id="1")])  # sent again: it was not sure that it had come
    assert app.store.count() == 1


def test_requests_that_cannot_be() -> None:
    for wrong in (
        {},
        {"text": ""},
        {"text": 5},
        {"text": "x" * 20_001},
        {"text": "x", "more": 1},
        {"text": "x", "time": "y"},
    ):
        with pytest.raises(ValidationError):
            Headline.model_validate(wrong)


def test_a_text_of_nothing_but_nulls(app: FinanceMonitor) -> None:
    with pytest.raises(RequestError, match="empty"):
        app.answer([Headline(text="\0")])


def test_settings_that_cannot_be(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"app\.negative: .*'bad'.*negative, neutral, positive"):
        monitor(tmp_path, negative="bad")
    for block, said in (
        ({"false_alarm_every": 10}, "greater than or equal to 1000"),
        ({"webhook": "example.org"}, "begins with https://"),
        ({"smallest_surge": 2}, "smallest_surge"),
        ({"topics": {"label": {}}}, "did you mean 'labels'"),
    ):
        with pytest.raises(ConfigError, match=said):
            parse_app({"name": "finance-monitor", **block}, "text-classification")
    with pytest.raises(ConfigError, match="serves text-classification"):
        parse_app({"name": "finance-monitor"}, "token-classification")


def test_what_a_run_prepares(tmp_path: Path) -> None:
    made = FinanceMonitor(MonitorSettings(), Words(), tmp_path)  # type: ignore[arg-type]
    made.prepare(DatasetDict(), tmp_path / "app")
    assert not (tmp_path / "app").exists()  # without topics to tell, nothing is needed
    with pytest.raises(ConfigError, match=r"app\.negative: "):  # before anything is trained
        FinanceMonitor.check(MonitorSettings(negative="bad"), Words.task, DatasetDict())


def test_a_surge_gives_alarm_once(app: FinanceMonitor, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "news.jsonl"
    path.write_text("".join(headlines(1200, bad_after=1000)))
    told = follow(app, path)
    assert [each["text"].split()[-1] for each in told] == [str(number) for number in range(1200)]
    alarms = app.store.newest_alarms()
    assert alarms
    assert all(1000 * 60 < alarm.time < 1200 * 60 for alarm in alarms)
    assert len(alarms) == len({alarm.topic for alarm in alarms})
    assert "surge of negatives in all topics" in caplog.text
    assert not follow(app, path)
    assert app.store.count() == 1200


def test_shares(app: FinanceMonitor, tmp_path: Path) -> None:
    path = tmp_path / "news.jsonl"
    day = 24 * 3600
    lines = [
        line("bad ACME", 5 * day, topic="east"),
        line("good", 5 * day, topic="east"),
        line("flat", 5 * day, topic="west"),
    ]
    path.write_text(line("bad", 3 * day, topic="old") + "".join(lines))
    follow(app, path)
    shares = app.shares()
    assert [(row["name"], row["items"]) for row in shares["topics"]] == [("east", 2), ("west", 1)]
    assert shares["topics"][0]["shares"] == {"negative": 0.5, "neutral": 0.0, "positive": 0.5}
    assert shares["entities"] == [
        {"name": "ACME", "items": 1, "shares": {"negative": 1.0, "neutral": 0.0, "positive": 0.0}}
    ]


def test_items_of_any_length_keep_their_order(app: FinanceMonitor, tmp_path: Path) -> None:
    chance = np.random.default_rng(0)
    texts = [f"{chance.choice(['bad', 'good', 'flat'])} {'x' * chance.integers(0, 300)} {n}" for n in range(200)]
    path = tmp_path / "news.jsonl"
    path.write_text("".join(line(text) for text in texts))
    told = follow(app, path, most=90)
    assert [each["text"] for each in told] == texts
    assert all((each["label"] == "negative") == each["text"].startswith("bad") for each in told)


def test_endpoints(app: FinanceMonitor, tmp_path: Path) -> None:
    api, routes = FastAPI(), APIRouter()
    app.add_routes(routes)
    api.include_router(routes)
    with TestClient(api) as client:
        assert client.get("/timeline.png").content.startswith(b"\x89PNG")  # also of nothing
        path = tmp_path / "news.jsonl"
        path.write_text("".join(headlines(1200, bad_after=1000)))
        follow(app, path)
        assert client.get("/shares").json()["topics"][0]["items"] > 0
        alarms = client.get("/alarms").json()
        assert [alarm["id"] for alarm in alarms] == sorted((alarm["id"] for alarm in alarms), reverse=True)
        assert "surge of negatives" in alarms[0]["text"]
        assert client.get("/timeline.png").headers["content-type"] == "image/png"


def test_a_page_is_made(app: FinanceMonitor) -> None:
    def ask(values: Any) -> Any:
        return app.answer([Headline(**values)])[0]

    page = app.page(ask)
    fns = {block.fn.__name__: block.fn for block in page.fns.values()}
    told = fns["tell"]("bad <b>news</b>")
    assert told == ({"negative": 0.9}, "other", "")
    assert app.store.count() == 0
    look = fns["look"]
    seen, picture, alarms, topics, _ = look(None)
    assert picture.size[0] > 500
    assert (alarms, topics) == ([], [])
    app.answer([Headline(text="bad <b>news</b>", topic="<i>x</i>")])
    assert look(seen)[3][0][0] == "<i>x</i>"
    assert set(app.words["en"]) == set(app.words["zh-CN"])


KILLED = """
import json, os, random, signal, sys, time
from pathlib import Path
from hf_efficient.tasks.apps import finance_monitor, surge
from hf_efficient.tasks.apps.stream import Followed
from tests.tasks.apps.monitor import monitor

folder, seed = Path(sys.argv[1]), int(sys.argv[2])
surge.STREAMS, surge.HORIZON = 100, 500
chance = random.Random(seed)

def work(pipe, point, after):
    app, count = monitor(folder), 0

    def reached(name):
        nonlocal count
        if name == point:
            count += 1
            if count == after:
                os.write(pipe, b"x")
                time.sleep(60)

    marks, record = app.mark, app.store.record
    app.mark = lambda items: (reached("marking"), marks(items))[1]
    app.store.record = lambda *a, **k: (record(*a, **k), reached("committed"))[0]
    app.store.sql.event.listen(app.store.engine, "commit", lambda connection: reached("commit"))
    app.store.sql.event.listen(app.store.engine, "after_cursor_execute", lambda *a: reached("statement"))
    finance_monitor.watch(app, [Followed(folder / "news.jsonl", whole=True)], most=40)
    app.stop()
    os.write(pipe, b"e")

kills = 0
for point in ["marking", "statement", "commit", "committed"] * 2 + ["none"]:
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        work(writing, point, chance.randint(1, 60 if point == "statement" else 3))
        os._exit(0)
    os.close(writing)
    ended = os.read(reading, 1)
    if ended == b"x":
        os.kill(child, signal.SIGKILL)
        kills += 1
    _, status = os.waitpid(child, 0)
    os.close(reading)
    assert ended == b"x" or (ended == b"e" and status == 0), (point, ended, status)
print(kills)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="kills a forked process")
def test_killed_at_any_point_nothing_is_lost_or_counted_twice(tmp_path: Path) -> None:
    """kill -9 while it marks, within a transaction, right before and after a commit; the same state at the end."""
    lines = headlines(900, bad_after=700)
    for name in ("killed", "whole"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "news.jsonl").write_text("".join(lines))
    command = [sys.executable, "-W", "ignore::DeprecationWarning", "-c", KILLED, str(tmp_path / "killed"), "0"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) == 8
    surge.STREAMS, surge.HORIZON = 100, 500
    apps = [monitor(tmp_path / name) for name in ("killed", "whole")]
    follow(apps[1], tmp_path / "whole" / "news.jsonl", most=40)
    found = [_everything(app) for app in apps]
    for app in apps:
        app.stop()
    assert [row[1] for row in found[0]["items"]] == [json.loads(text)["text"] for text in lines]
    assert found[0] == found[1]
    assert found[0]["alarms"]


def _everything(app: FinanceMonitor) -> dict[str, Any]:
    store = app.store
    items, alarms, states = store.items.c, store.alarms.c, store.states.c
    with store.engine.begin() as connection:

        def rows(*columns: Any, where: Any = True) -> list[tuple[Any, ...]]:
            query = store.sql.select(*columns).where(where).order_by(*columns[:2])
            return [tuple(row) for row in connection.execute(query)]

        return {
            "items": rows(items.id, items.text, items.label, items.topic),
            "alarms": rows(alarms.time, alarms.topic, alarms["items"], alarms.share),
            "states": rows(states.name, states.state, where=states.kind == "surge"),
        }

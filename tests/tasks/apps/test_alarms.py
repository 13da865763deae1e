import functools
import http.server
import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from hf_efficient.tasks.apps import surge
from hf_efficient.tasks.apps.alarms import Sender, wait
from hf_efficient.tasks.apps.finance_monitor import FinanceMonitor, watch
from hf_efficient.tasks.apps.stream import Followed
from tests.tasks.apps.monitor import headlines, monitor


@pytest.fixture(autouse=True)
def fewer_streams(monkeypatch: pytest.MonkeyPatch) -> None:
    """A part of what thresholds are calibrated by."""
    monkeypatch.setattr(surge, "STREAMS", 200)
    monkeypatch.setattr(surge, "HORIZON", 2_000)
    surge.threshold.cache_clear()


def follow(app: FinanceMonitor, path: Path) -> None:
    watch(app, [Followed(path, whole=True)])


@pytest.fixture
def receiver() -> Iterator[tuple[str, list[Any]]]:
    """A webhook on loopback that fails the first time, and what it got."""
    got: list[Any] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            got.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(500 if len(got) == 1 else 204)
            self.end_headers()

        def log_message(self, *args: Any) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=functools.partial(server.serve_forever, 0.01), daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/hook", got
    server.shutdown()
    server.server_close()
    thread.join()


class Receiver:
    """An `httpx.Client` of a webhook that answers as told."""

    def __init__(self, *answers: Any):
        self.answers, self.got = list(answers), []

    def post(self, url: str, json: Any, headers: Any) -> Any:
        answer = self.answers.pop(0) if self.answers else 200
        if isinstance(answer, Exception):
            raise answer
        self.got.append((json, headers))
        return httpx.Response(answer)

    def close(self) -> None:
        pass


def test_alarms_wait_for_their_receiver(tmp_path: Path) -> None:
    """Down, failing, and well again; a restart in between."""
    path = tmp_path / "news.jsonl"
    path.write_text("".join(headlines(1200, bad_after=1000)))
    app = monitor(tmp_path)
    app.sender = Sender(app.store, "http://127.0.0.1:9/", Receiver())  # type: ignore[arg-type]
    follow(app, path)
    waiting = len(app.store.newest_alarms())
    assert waiting
    down = Receiver(*[httpx.ConnectError("refused")] * waiting)
    sender = Sender(app.store, "http://x/", down)
    assert sender.send_due(now=1000.0) == 0
    assert sender.send_due(now=1000.5) == 0  # not due yet
    app.stop()
    app = monitor(tmp_path)
    failing = Receiver(*[503] * waiting)
    sender = Sender(app.store, "http://x/", failing)
    assert sender.send_due(now=1000.0 + wait(0)) == 0
    well = Receiver()
    sender = Sender(app.store, "http://x/", well)
    assert sender.send_due(now=5000.0) == waiting
    assert sender.send_due(now=1e9) == 0
    assert {body["id"] for body, _ in well.got} == {alarm.id for alarm in app.store.newest_alarms()}
    assert all(headers["Idempotency-Key"] == f"alarm-{body['id']}" for body, headers in well.got)
    assert "surge of negatives" in well.got[0][0]["text"]
    app.stop()
    assert [wait(tries) for tries in (0, 3, 50)] == [11.0, 18.0, 300.0]


def test_the_sender_works_beside(tmp_path: Path) -> None:
    app = monitor(tmp_path)
    receiver = Receiver(500)
    sender = Sender(app.store, "http://x/", receiver, poll_s=0.01)
    sender.start()
    sender.stop()
    app.stop()


def test_a_webhook_gets_alarms_while_the_monitor_runs(
    tmp_path: Path, receiver: tuple[str, list[Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    url, got = receiver
    monkeypatch.setattr("hf_efficient.tasks.apps.alarms._TIMEOUT", 0.01)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    path = tmp_path / "news.jsonl"
    path.write_text("".join(headlines(1200, bad_after=1000)))
    app = monitor(tmp_path, webhook=url)
    assert app.sender is not None
    app.sender.poll_s = 0.02
    follow(app, path)
    wanted = {alarm.id for alarm in app.store.newest_alarms()}
    end = time.monotonic() + 60
    while len(got) <= len(wanted) and time.monotonic() < end:  # one of them twice
        time.sleep(0.01)
    app.stop()
    assert wanted
    assert {body["id"] for body in got} == wanted
    assert len(got) == len(wanted) + 1

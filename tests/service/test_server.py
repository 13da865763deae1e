"""The server as a process: where it listens, what it says, and how it stops."""

import json
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from hf_efficient import ConfigError
from hf_efficient.service.server import Address, ServiceSettings, is_loopback, open_app, serve
from tests.runs import text_run


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return text_run(tmp_path_factory.mktemp("run"))


@contextmanager
def served(run: Path, *options: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Process and address."""
    command = [sys.executable, "-m", "hf_efficient", "serve", str(run), "--port", "0", "--no-page", "--json", *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        address = json.loads(process.stdout.readline())
        assert (address["page"], address["token"]) == (None, None)
        try:
            yield process, address["url"]
        finally:
            process.kill()


def test_stops_when_what_is_under_way_is_answered(run: Path) -> None:
    with served(run) as (process, url):
        with httpx.Client(base_url=url, timeout=60) as client:
            assert client.get("/health").json()["status"] == "ok"
            found: list[int] = []
            threads = [threading.Thread(target=ask, args=(url, found)) for _ in range(20)]
            for thread in threads:
                thread.start()
            while client.get("/metrics").text.count("batch_size_count 0"):  # until one has got in
                pass
            process.send_signal(signal.SIGTERM)
            for thread in threads:
                thread.join()
        assert process.wait(60) == 0
        assert set(found) <= {200, 503, 0}  # 0: came too late to be let in
        assert 200 in found


def ask(url: str, found: list[int]) -> None:
    try:
        found.append(httpx.post(f"{url}/api/answer", json={"text": "my card is lost"}, timeout=60).status_code)
    except httpx.TransportError:
        found.append(0)


def test_a_thousand_at_once(run: Path) -> None:
    """As many as may wait are answered; others are told when to come again, and nobody hears nothing."""
    with served(run, "--queue", "16", "--max-batch", "4") as (_, url):
        limits = httpx.Limits(max_connections=1000)
        found: list[httpx.Response] = []

        def many() -> None:
            with httpx.Client(base_url=url, timeout=60, limits=limits) as client:
                found.extend(client.post("/api/answer", json={"text": "my card"}) for _ in range(20))

        threads = [threading.Thread(target=many) for _ in range(50)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        statuses = [response.status_code for response in found]
        assert len(statuses) == 1000
        assert set(statuses) == {200, 503}
        assert all(response.headers["retry-after"] == "1" for response in found if response.status_code == 503)
        assert all(response.json()["label"] == "card" for response in found if response.status_code == 200)


def test_an_address_is_told_to_people() -> None:
    lines = str(Address("a", "ONNX", "http://h:1", "http://h:1/?token=t", "t")).splitlines()
    assert lines[0] == "a with ONNX on http://h:1"
    assert [line.split()[:2] for line in lines[1:]] == [
        ["page", "http://h:1/?token=t"],
        ["API", "http://h:1/api/answer,"],
        ["token", "t"],
    ]
    assert len(str(Address("a", "ONNX", "http://h:1", None, None)).splitlines()) == 2


def test_a_taken_port_is_told(run: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(
            ConfigError, match=f"cannot listen on 127.0.0.1:{port}: Address already in use; name another"
        ):
            serve(run, ServiceSettings(port=port, page=False))


@pytest.mark.parametrize(
    ("host", "expected"), [("127.0.0.1", True), ("::1", True), ("localhost", True), ("0.0.0.0", False), ("a.b", False)]
)
def test_loopback(host: str, expected: bool) -> None:
    assert is_loopback(host) == expected
    assert (ServiceSettings(host=host).resolved_token() is None) == expected


def test_what_is_no_run_is_refused(run: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is no finished run"), open_app(tmp_path, ServiceSettings()):
        pass
    for override, said in (
        ("app.name=label", "unknown app 'label'; did you mean 'labels'"),
        ("app.name=entities", "serves token-classification"),
        ("seed=1", "only app.key=value"),
    ):
        with pytest.raises(ConfigError) as caught, open_app(run, ServiceSettings(), [override]):
            pass
        assert said in str(caught.value)
    with pytest.raises(ConfigError, match="max_batch must be 1 or more"):
        ServiceSettings(max_batch=0)

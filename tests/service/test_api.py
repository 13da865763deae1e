"""The API over a real app: answers, and what bad input is told."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from hf_efficient.service import Batcher, ServiceSettings, open_app
from hf_efficient.service.api import build_api
from hf_efficient.service.metrics import Metrics
from tests.runs import TEXTS, text_run


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return text_run(tmp_path_factory.mktemp("run"))


def served(run: Path, token: str | None = None) -> Iterator[TestClient]:
    with open_app(run, ServiceSettings()) as app:
        metrics = Metrics(lambda: len(batcher))
        batcher = Batcher(app.answer, on_batch=metrics.batch)
        with TestClient(build_api(app, batcher, metrics, token)) as client:
            client.app_state["batcher"] = batcher
            yield client


@pytest.fixture(scope="module")
def client(run: Path) -> Iterator[TestClient]:
    yield from served(run)


def test_answers(client: TestClient) -> None:
    for text, label in zip(TEXTS[:2], ("card", "pay"), strict=True):
        answer = client.post("/api/answer", json={"text": text}).json()
        assert answer["label"] == label
        assert answer["score"] == max(answer["scores"].values()) > 0.5
        assert sum(answer["scores"].values()) == pytest.approx(1, abs=1e-3)


BAD = {
    "empty": ({"text": " "}, "text: it is empty; write something"),
    "missing": ({}, "text: Field required"),
    "unknown key": ({"text": "a", "txt": "b"}, "txt: Extra inputs are not permitted"),
    "wrong type": ({"text": 3}, "text: Input should be a valid string"),
    "list": ([1], "valid dictionary"),
    "too long": ({"text": "a" * 20_001}, "at most 20000 characters"),
    "pair": ({"text": "a", "text_pair": "b"}, "this model takes text alone"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_told_why(name: str, client: TestClient) -> None:
    body, said = BAD[name]
    response = client.post("/api/answer", json=body)
    assert response.status_code == 422
    assert said in response.json()["error"]


@pytest.mark.parametrize("body", [b"", b"\x00\xff\xfe", b"{", b"text"])
def test_what_is_no_json_is_refused(body: bytes, client: TestClient) -> None:
    response = client.post("/api/answer", content=body, headers={"content-type": "application/json"})
    assert response.status_code in (400, 422)
    assert response.json()["error"]


def test_a_megabyte_is_refused(client: TestClient) -> None:
    response = client.post("/api/answer", json={"text": "a" * 1_000_000})
    assert response.status_code == 413
    assert "more than 262144 bytes" in response.json()["error"]
    chunks = (b"a" * 100_000 for _ in range(10))  # and without a length told beforehand
    response = client.post("/api/answer", content=chunks, headers={"content-type": "application/json"})
    assert response.status_code == 413


def test_markup_is_text(client: TestClient) -> None:
    answer = client.post("/api/answer", json={"text": "<script>alert(1)</script> my card is lost"})
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "application/json"


def test_health_and_metrics(run: Path) -> None:
    for client in served(run):
        assert client.get("/health").json() == {"status": "ok", "app": "labels", "runtime": "PyTorch", "waiting": 0}
        client.post("/api/answer", json={"text": "my card"})
        client.post("/api/answer", json={"text": ""})
        told = client.get("/metrics").text
        assert 'hf_efficient_requests_total{status="200"} 1.0' in told
        assert 'hf_efficient_requests_total{status="422"} 1.0' in told
        assert "hf_efficient_batch_size_count 1.0" in told
        assert client.get("/docs").status_code == 200


def test_too_many_are_told_to_come_again(run: Path) -> None:
    for client in served(run):
        batcher = client.app_state["batcher"]
        batcher.capacity = 0
        response = client.post("/api/answer", json={"text": "my card"})
        assert response.status_code == 503
        assert response.headers["retry-after"] == "1"
        assert "wait already" in response.json()["error"]
        batcher.capacity = 1
        assert client.post("/api/answer", json={"text": "my card"}).status_code == 200


def test_token(run: Path) -> None:
    for client in served(run, token="right"):
        client.follow_redirects = False
        assert client.get("/health").status_code == 200
        refused = client.post("/api/answer", json={"text": "my card"})
        assert refused.status_code == 401
        assert "Authorization: Bearer TOKEN" in refused.json()["error"]
        for given in ("Bearer wrong", "Bearer ", "Bearer é"):
            headers = {"authorization": given.encode()}
            assert client.post("/api/answer", json={"text": "my card"}, headers=headers).status_code == 401
        right = {"authorization": "Bearer right"}
        assert client.post("/api/answer", json={"text": "my card"}, headers=right).status_code == 200
        assert client.get("/metrics", params={"token": "wrong"}).status_code == 401
        opened = client.get("/metrics", params={"token": "right", "x": "1"})
        assert (opened.status_code, opened.headers["location"]) == (303, "/metrics?x=1")
        assert "HttpOnly" in opened.headers["set-cookie"]
        assert client.get("/metrics").status_code == 200  # the cookie came along


def test_schema_describes_the_request(client: TestClient) -> None:
    schema = client.get("/openapi.json").json()
    assert "text" in json.dumps(schema["components"]["schemas"]["TextRequest"])

"""Whole files answered: order, what is resumed, and bad files."""

import json
from pathlib import Path
from typing import Any

import pytest

from hf_efficient import DataError
from hf_efficient.cli import main
from hf_efficient.predict import predict
from hf_efficient.predictor import Predictor
from tests.runs import LABELS, TEXTS, entity_run, text_run


@pytest.fixture(scope="module")
def predictor(tmp_path_factory: pytest.TempPathFactory) -> Predictor:
    return Predictor.load(text_run(tmp_path_factory.mktemp("run")))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "in.txt"
    path.write_text("\n".join(TEXTS))
    return path


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_rows_in_their_order(predictor: Predictor, file: Path, tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    to = tmp_path / "out.jsonl"
    assert predict(predictor, file, to, batch_size=3, progress=lambda *done: told.append(done)) == 0
    found = lines(to)
    assert [row["row"] for row in found] == list(range(1, len(TEXTS) + 1))
    assert [row["input"] for row in found] == TEXTS
    assert [row["label"] for row in found] == LABELS * (len(TEXTS) // 2)
    assert "scores" not in found[0]
    assert told[-1] == (len(TEXTS), len(TEXTS))
    assert {path.name for path in tmp_path.iterdir()} == {"in.txt", "out.jsonl"}


def test_columns_of_a_file(predictor: Predictor, tmp_path: Path) -> None:
    file = tmp_path / "in.csv"
    file.write_text("message,id\nmy card is lost,1\n")
    with pytest.raises(DataError, match=r"unknown column 'text'.*--text"):
        predict(predictor, file, tmp_path / "out.jsonl")
    with pytest.raises(DataError, match="unknown column 'mesage'; did you mean 'message'"):
        predict(predictor, file, tmp_path / "out.jsonl", text="mesage")
    predict(predictor, file, tmp_path / "out.jsonl", text="message", scores=True)
    (row,) = lines(tmp_path / "out.jsonl")
    assert row["label"] == "card"
    assert set(row["scores"]) == set(LABELS)


def test_goes_on_where_it_stopped(
    predictor: Predictor, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whole lines stay; the half one that a killed process left is written anew."""
    monkeypatch.setattr("hf_efficient.predict.CHUNK", 4)
    whole, to = tmp_path / "whole.jsonl", tmp_path / "out.jsonl"
    predict(predictor, file, whole)

    def stop(done: int, count: int) -> None:
        if done >= 12:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        predict(predictor, file, to, progress=stop)
    assert not to.exists()
    partial = tmp_path / "out.jsonl.partial"
    assert len(lines(partial)) == 12
    partial.write_text(partial.read_text() + '{"row": 13, "inp')
    assert predict(predictor, file, to) == 12
    assert to.read_text() == whole.read_text()


def test_another_file_begins_anew(
    predictor: Predictor, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hf_efficient.predict.CHUNK", 4)

    def stop(done: int, count: int) -> None:
        if done:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        predict(predictor, file, tmp_path / "out.jsonl", progress=stop)
    file.write_text("how do i pay\n")
    assert predict(predictor, file, tmp_path / "out.jsonl") == 0
    assert [row["label"] for row in lines(tmp_path / "out.jsonl")] == ["pay"]


def test_bad_files(predictor: Predictor, tmp_path: Path) -> None:
    for name, content, said in (
        ("a.txt", b"\xff\xfe", "is not UTF-8"),
        ("b.txt", b"", "has no rows"),
        ("c.csv", b"text\n", "c.csv"),
        ("d.doc", b"x", "unknown suffix"),
    ):
        file = tmp_path / name
        file.write_bytes(content)
        with pytest.raises(DataError, match=said):
            predict(predictor, file, tmp_path / "out.jsonl")
    with pytest.raises(DataError, match=r"no file .*none\.txt"):
        predict(predictor, tmp_path / "none.txt", tmp_path / "out.jsonl")


def test_entities_by_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = entity_run(tmp_path / "run")
    file = tmp_path / "in.jsonl"
    file.write_text(json.dumps({"note": "where is my card?"}) + "\n")
    assert main(["predict", str(run), str(file), "--text", "note"]) == 0
    (row,) = lines(tmp_path / "in.predicted.jsonl")
    assert [(each["entity"], each["text"], each["start"]) for each in row["entities"]] == [("thing", "card", 12)]
    assert "in.predicted.jsonl" in capsys.readouterr().out
    assert main(["predict", str(run), str(file), "--text", "note", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"file": str(tmp_path / "in.predicted.jsonl"), "rows_before": 0}
    assert main(["predict", str(run), str(file), "--text", "nota"]) == 2
    told = capsys.readouterr()
    assert "nota" in told.err
    assert told.out == "", "no bar before it is refused"

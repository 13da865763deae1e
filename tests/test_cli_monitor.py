"""`hf-efficient monitor` as a user meets it."""

import csv
import io
import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from hf_efficient.cli import main
from hf_efficient.tasks.apps import surge
from tests.tasks.apps.monitor import LABELS, Words, headlines, line
from tests.tasks.conftest import tiny_checkpoint

RECIPE = {"name": "r", "task": "text-classification", "model": "m", "data": {"train": "t.csv", "max_length": 16}}


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a finished run, whose model goes by words."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(surge, "STREAMS", 200)
    monkeypatch.setattr(surge, "HORIZON", 2_000)
    surge.threshold.cache_clear()
    monkeypatch.setattr("hf_efficient.predictor.Predictor.load", lambda *given, **settings: Words())
    return finished(tmp_path / "runs" / "r" / "now")


def finished(folder: Path, **more: Any) -> Path:
    for name in ("final", "app"):
        (folder / name).mkdir(parents=True)
    (folder / "run.json").write_text("{}")
    (folder / "recipe.yaml").write_text(yaml.safe_dump({**RECIPE, "stages": {"a": {}}, **more}))
    return folder


def lines_of(text: str) -> list[dict[str, Any]]:
    return [json.loads(each) for each in text.splitlines()]


def test_follows_files_and_feeds_once(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("news.jsonl").write_text(line("bad news") + "oops\n" + line("good news"))
    Path("feed.xml").write_text("<rss><channel><item><title>flat</title></item></channel></rss>")
    command = ["monitor", "runs/r", "--follow", "news.jsonl", "--feed", "feed.xml", "--once", "--print"]
    assert main(command) == 0
    told = capsys.readouterr()
    assert [each["label"] for each in lines_of(told.out)] == ["negative", "positive", "neutral"]
    assert "3 items kept in sqlite:///" in told.err
    with Path("news.jsonl").open("a") as handle:
        handle.write(line("bad again"))
    assert main(command) == 0
    told = capsys.readouterr()
    assert [each["text"] for each in lines_of(told.out)] == ["bad again", "flat"]  # the feed's is not counted again
    assert "4 items kept" in told.err
    assert (run / "served" / "monitor.db").is_file()


def test_reads_standard_input(run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    for _ in range(2):  # piped in again: ids tell
        piped = io.BytesIO((line("bad news", id="1") + line("flat", id="2")).encode())
        monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=piped))
        assert main(["monitor", str(run), "app.database=sqlite:///own.db", "--stdin"]) == 0
        assert "2 items kept in sqlite:///own.db" in capsys.readouterr().err
    monkeypatch.setattr("sys.stdin", None)
    Path("nothing.jsonl").touch()
    command = ["monitor", str(run), "app.database=sqlite:///own.db", "--follow", "nothing.jsonl", "--once", "--json"]
    assert main(command) == 0
    assert json.loads(capsys.readouterr().out) == {"items": 2, "database": "sqlite:///own.db"}
    assert Path("own.db").is_file()


def test_a_real_model(run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.undo()
    tiny_checkpoint(run / "final", LABELS)
    news = run.parent / "news.jsonl"
    news.write_text(line("my card is lost") + line("pay"))
    assert main(["monitor", str(run), "--follow", str(news), "--once", "--print"]) == 0
    told = lines_of(capsys.readouterr().out)
    assert [each["text"] for each in told] == ["my card is lost", "pay"]
    assert all(each["label"] in LABELS and 1 / 3 <= each["score"] <= 1 for each in told)


def test_back_test_of_a_dated_file(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = lines_of("".join(headlines(1200, bad_after=1000)))
    with Path("old.csv").open("w", newline="") as handle:
        table = csv.writer(handle)
        table.writerow(["headline", "date", "topic"])
        for row in reversed(rows):  # sorted by date first
            table.writerow(
                [row["text"], f"2026-01-01T{int(row['time']) // 3600:02}:{int(row['time']) // 60 % 60:02}", ""]
            )
        table.writerow(["no date", "", ""])
    command = ["monitor", "runs/r", "--backtest", "old.csv", "--text-column", "headline"]
    assert main(command) == 0
    printed = capsys.readouterr().out
    assert "1,200 items, 2026-01-01 00:00 to 2026-01-01 19:59" in printed
    assert "surge of negatives in all topics" in printed
    assert "1 rows without a text or a date were left out" in printed
    folder = run / "backtest" / "old"
    result = json.loads((folder / "backtest.json").read_text())
    assert (result["items"], result["left_out"], result["topics"][0]["items"]) == (1200, 1, 1200)
    assert result["alarms"][0]["at"].startswith("2026-01-01 1")
    assert (folder / "timeline.png").read_bytes().startswith(b"\x89PNG")
    with (folder / "shares.csv").open() as handle:
        assert [(row["day"], row["items"]) for row in csv.DictReader(handle)] == [("2026-01-01", "1200")]
    assert main([*command[:2], "app.negative=positive", *command[2:]]) == 0  # in the place of the earlier one
    assert "no alarm" in capsys.readouterr().out
    assert main([*command, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert Path(told.pop("folder")).samefile(folder)
    assert told == json.loads((folder / "backtest.json").read_text())
    assert not (run / "served").exists()


def test_dates_of_json_and_of_numbers(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("a.jsonl").write_text('{"text": "x", "published": "2026-01-02T10:00:00"}\n' * 3)
    Path("b.csv").write_text("text,timestamp\nx,86400\ny,0\n")
    for file, expected in (("a.jsonl", "2026-01-02 10:00"), ("b.csv", "1970-01-01 00:00 to 1970-01-02 00:00")):
        assert main(["monitor", "runs/r", "--backtest", file, "--to", file[0]]) == 0
        assert expected in capsys.readouterr().out


def test_bad_input(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("no-date.csv").write_text("text,more\nx,y\n")
    Path("bad-dates.csv").write_text("text,date\nx,soon\n")
    Path("full").mkdir()
    (Path("full") / "mine").write_text("")
    Path("fine.csv").write_text("text,date\nx,2026-01-01\n")
    finished(tmp_path / "other", app={"name": "labels"})
    for given, said in (
        ([], "give what to read: --stdin, --follow FILE"),
        (["--stdin", "--backtest", "fine.csv"], "give what to read"),
        (["--follow", "none.jsonl", "--once"], "no file"),
        (["--feed", "none.xml"], "no feed at 'none.xml'"),
        (["--backtest", "none.csv"], "no file none.csv"),
        (["--backtest", "no-date.csv"], "has no column 'time', only text, more"),
        (["--backtest", "bad-dates.csv"], "has no row with a text and a date; row 1: no time: 'soon'"),
        (["--backtest", "fine.csv", "--to", "full"], "would be replaced"),
        (["app.window=3", "--backtest", "fine.csv"], "did you mean 'window_hours'"),
        (["app.database=oracle:/x", "--stdin"], "app.database: cannot open"),
    ):
        assert main(["monitor", "runs/r", *given]) == 2
        assert said in capsys.readouterr().err
    assert main(["monitor", "other", "--stdin"]) == 2
    assert "a run with the app 'labels'" in capsys.readouterr().err
    assert main(["monitor", "nowhere", "--stdin"]) == 2
    assert "no finished run" in capsys.readouterr().err

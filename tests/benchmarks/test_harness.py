"""Cells are computed once, claims are medians, and the page says what the results say."""

import json
import multiprocessing
import os
from pathlib import Path

import pytest

from benchmarks import harness, report
from benchmarks.harness import Bench, Claim


def bench(tmp_path: Path, **options: object) -> Bench:
    return Bench("example", cache=tmp_path / "cache", **options)


def test_cells_are_computed_once(tmp_path: Path) -> None:
    calls = []

    def compute() -> dict[str, int]:
        calls.append(1)
        return {"value": len(calls)}

    assert bench(tmp_path).cell({"seed": 0}, compute) == {"value": 1}
    assert bench(tmp_path).cell({"seed": 0}, compute) == {"value": 1}
    assert bench(tmp_path).cell({"seed": 1}, compute) == {"value": 2}
    assert bench(tmp_path, code="changed").cell({"seed": 0}, compute) == {"value": 3}
    assert bench(tmp_path, code="changed").cell({"seed": 2}, compute, peer=True) == {"value": 4}
    assert bench(tmp_path, code="again").cell({"seed": 2}, compute, peer=True) == {"value": 4}
    assert bench(tmp_path, quick=True).cell({"seed": 0}, compute) == {"value": 5}
    assert bench(tmp_path, fresh=True).cell({"seed": 0}, compute) == {"value": 6}


def test_a_cell_that_fails_leaves_nothing(tmp_path: Path) -> None:
    def fail() -> dict[str, int]:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        bench(tmp_path).cell({"seed": 0}, fail)
    assert bench(tmp_path).cell({"seed": 0}, lambda: {"value": 1}) == {"value": 1}


def test_cells_of_another_benchmark(tmp_path: Path) -> None:
    first = bench(tmp_path)
    first.cell({"seed": 0}, lambda: {"value": 1})
    second = bench(tmp_path)
    second.name = "other"
    assert second.cell({"seed": 0}, lambda: {"value": 2}, of=first.name) == {"value": 1}
    assert second.cell({"seed": 0}, lambda: {"value": 2}) == {"value": 2}


def test_alone_is_another_process() -> None:
    assert harness.alone(os.getpid) != os.getpid()
    assert harness.alone(multiprocessing.get_start_method) == multiprocessing.get_start_method()


def test_claims(tmp_path: Path) -> None:
    one = bench(tmp_path)
    made = one.claim("ratio", [3.0, 1.0, 2.5], "times", ">= 2")
    assert made == Claim("ratio", 2.5, "times", ">= 2", 3, (1.0, 3.0))
    assert made.reached is True
    assert one.claim("less", 3.0, "ms", "<= 2").reached is False
    assert one.claim("told", 3.0, "ms").reached is None
    path = one.save(tmp_path)
    written = json.loads(path.read_text())
    assert [claim["name"] for claim in written["claims"]] == ["ratio", "less", "told"]
    assert set(written) == {"claims", "notes", "machine", "versions"}
    assert bench(tmp_path, quick=True).save(tmp_path).parent.name == "quick"


def test_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(harness, "RESULTS", tmp_path)
    monkeypatch.setattr(harness, "FOLDER", tmp_path)
    monkeypatch.setattr(Bench.save, "__defaults__", (tmp_path,))
    done = harness.main("example", lambda one: one.claim("n", 1.0 if one.quick else 2.0, "n") and None, [], ["--quick"])
    assert done.claims[0].value == 1.0
    assert "quick/example.json" in capsys.readouterr().out


def test_page_is_up_to_date() -> None:
    """Run `python -m benchmarks.report` after a full run."""
    assert report.PAGE.read_text(encoding="utf-8") == report.page()


def test_every_result_has_its_benchmark() -> None:
    for path in harness.RESULTS.glob("*.json"):
        assert (harness.FOLDER / f"{path.stem}.py").is_file()

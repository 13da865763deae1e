"""`hf-efficient profile` as a user meets it."""

import json
from pathlib import Path

import pytest

from hf_efficient.cli import main
from tests.test_cli_compress import DATA, folder

__all__ = ["folder"]  # the fixture: a folder with a model and data, and the process in it


@pytest.fixture(autouse=True)
def few_runtimes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hf_efficient.profiling.bounds.KINDS", {"torch": None})
    monkeypatch.setattr("hf_efficient.cutting.costs.LEAST_SECONDS", 0.01)
    monkeypatch.setattr("hf_efficient.cutting.costs.ROUNDS", 3)


def test_prints_and_writes_a_profile(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["profile", "run/final", "data.test=test.csv", "data.max_length=16", "--batch-size", "4"]
    made = folder / "run" / "profile"
    made.mkdir()
    (made / "profile.json").write_text("{}")  # an earlier profile is replaced
    assert main(command) == 0
    printed = capsys.readouterr().out
    assert "feed-forward" in printed
    assert "one layer left" in printed
    assert {path.name for path in made.iterdir()} == {"profile.json", "profile.md", "profile.png"}
    assert main([*command, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told.pop("folder") == str(made)
    assert told == json.loads((made / "profile.json").read_text())


def test_a_folder_with_something_else_stays(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for command in ("profile", "export"):
        assert main([command, "run/final", *DATA[1:], "--to", "run"]) == 2
        assert "would be replaced" in capsys.readouterr().err
    compressing = ["compress", "run/final", *DATA, "--target-speedup", "2", "--to", "run/final"]
    assert main(compressing) == 2
    assert (folder / "run" / "final" / "config.json").is_file()

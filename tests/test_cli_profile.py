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


@pytest.mark.parametrize(
    ("more", "told"),
    [
        (["--devices", "0"], "devices must be from 1 to 1,024, got 0"),
        (["--link-gbit", "10", "--link-us", "5"], "add --devices"),
        (["--devices", "8", "--link-us", "5"], "--link-us alone is half a link"),
        (["--devices", "8", "--link-us", "5", "--link-gbit", "0"], "--link-gbit > 0"),
    ],
)
def test_devices_that_cannot_be_are_refused_at_once(
    more: list[str], told: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["profile", "run/final", "data.test=test.csv", "data.max_length=16", *more]) == 2
    assert told in capsys.readouterr().err


@pytest.mark.slow
def test_predicts_a_training_on_more_devices(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hf_efficient.profiling.scaling.CHECKED", (2,))  # four processes take long
    command = ["profile", "run/final", "data.test=test.csv", "data.max_length=16", "--batch-size", "4"]
    assert main([*command, "--devices", "64", "--link-gbit", "25", "--link-us", "20"]) == 0
    printed = capsys.readouterr().out
    assert "A training step on more devices" in printed
    assert "over links of 25.0 Gbit/s and 20.0 us" in printed
    made = folder / "run" / "profile"
    assert (made / "scaling.png").is_file()
    told = json.loads((made / "profile.json").read_text())["scaling"]
    assert list(told["steps"]) == ["1", "2", "4", "8", "16", "32", "64"]
    assert told["steps"]["64"]["ddp"] > 0

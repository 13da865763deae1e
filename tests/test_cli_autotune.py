"""`hf-efficient autotune` as a user meets it, and `autotune: true` in a recipe."""

import json
from pathlib import Path

import pytest

from hf_efficient.cli import main
from hf_efficient.run import run
from hf_efficient.tuning import CACHE_VARIABLE
from tests.test_run import finish_without_measuring, recipe

__all__ = ["recipe"]  # the fixture: a recipe on a tiny model and 40 rows


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))


def test_prints_and_writes_what_was_tried(recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "tuned"
    command = ["autotune", str(recipe), "stages.finetune.training.num_train_epochs=500", "--to", str(folder)]
    for _ in range(2):  # an earlier table is replaced
        assert main(command) == 0
        printed = capsys.readouterr().out
        assert "as given" in printed
        assert "expected now" in printed
    assert "from the cache" in printed
    assert main([*command, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["folder"], told["rows"][0]["way"]) == (str(folder), "as given")
    assert {path.name for path in folder.iterdir()} == {"autotune.json", "autotune.md", "autotune.png"}


def test_bad_input_is_one_message(recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["autotune", str(recipe), "--to", str(tmp_path)]) == 2
    assert "would be replaced" in capsys.readouterr().err
    assert main(["autotune", "no-such-recipe"]) == 2
    assert "no-such-recipe" in capsys.readouterr().err


def test_a_recipes_stage_is_tuned_and_says_so(recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hf_efficient.job.Job.finish", finish_without_measuring)
    folder = run(recipe, ["stages.finetune.training.autotune=true"], runs=tmp_path / "runs")
    told = json.loads((Path(str(folder)) / "stages" / "finetune" / "stage.json").read_text())
    assert told["training"]["autotune_seconds"] > 0
    assert (Path(str(folder)) / "stages" / "finetune" / "autotune.md").is_file()

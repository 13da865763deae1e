"""`hf-efficient export` as a user meets it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest

from hf_efficient.cli import main
from hf_efficient.cli.model_and_data import _task_of_run
from hf_efficient.cli.run_command import told_answers
from hf_efficient.exported import exported_pipeline
from hf_efficient.job import RunResult
from tests.tasks.conftest import tiny_checkpoint

QUESTIONS = "\n".join(["text,label", *(f"my card is lost {index},card\nhow do i pay,pay" for index in "abcdef")])


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a model and questions, and the process in it."""
    monkeypatch.chdir(tmp_path)
    tiny_checkpoint(tmp_path / "run" / "final", ["card", "pay"])
    (tmp_path / "test.csv").write_text(QUESTIONS)
    return tmp_path


def test_exports_beside_the_model(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", "run/final", "data.test=test.csv", "data.max_length=16"]) == 0
    printed = capsys.readouterr()
    assert "logits differ by up to" in printed.out
    assert "with ONNX Runtime" in printed.out
    assert printed.err == ""
    assert exported_pipeline(folder / "run" / "exported")("my card")[0]["label"] in ("card", "pay")


@pytest.mark.parametrize("model", ["run/final", "run/stages/finetune/final"])
def test_the_task_of_a_model_is_that_of_its_run(folder: Path, model: str) -> None:
    assert _task_of_run(folder / model) is None
    (folder / "run" / "recipe.yaml").write_text("of: something else")
    assert _task_of_run(folder / model) is None
    (folder / "run" / "recipe.yaml").write_text(
        "{task: sentence-similarity, model: m, data: {train: a.csv}, stages: {finetune: {training: {}}}}"
    )
    assert _task_of_run(folder / model) == "sentence-similarity"


@pytest.mark.parametrize("case", ["text", "token"])
def test_a_run_ends_with_an_answer(case: str, exports: Callable[..., Any]) -> None:
    exported = exports(case)
    result = RunResult(Path(), Path(), {}, cast(Any, None), exported, "my card is lost")
    question, *answers = told_answers(result.sample, result.answer())
    assert question == "\nquestion  my card is lost"
    said = exported_pipeline(exported.folder)("my card is lost")
    labels = [answer.get("label") or answer["entity"] for answer in said]
    assert [line.split()[1] for line in answers] == labels
    result.sample = None
    assert told_answers(result.sample, result.answer()) == []


BAD = {
    "no model": (["./nowhere/model", "data.test=test.csv"], "no model there"),
    "no data": (["run/final", "data.max_length=16"], "data.test=FILE"),
    "no such data": (["run/final", "data.test=none.csv", "data.max_length=16"], "none.csv"),
    "other settings": (["run/final", "model=x"], "data.key=value"),
    "other columns": (["run/final", "data.test=test.csv", "data.text=txt"], "did you mean 'text'"),
    "unknown format": (["run/final", "data.test=test.csv", "--format", "onxx"], "did you mean 'onnx'"),
    "unknown task": (["run/final", "data.test=test.csv", "--task", "text"], "unknown task"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input(case: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments, message = BAD[case]
    before = sorted(folder.rglob("*"))
    assert main(["export", *arguments]) == 2
    printed = capsys.readouterr()
    assert message in printed.err
    assert printed.err.count("\n") == 1
    assert sorted(folder.rglob("*")) == before


def test_label_that_the_model_does_not_have(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "test.csv").write_text(QUESTIONS.replace("pay\n", "pays\n"))
    assert main(["export", "run/final", "data.test=test.csv", "data.max_length=16"]) == 2
    assert "did you mean 'pay'" in capsys.readouterr().err
    assert not (folder / "run" / "exported").exists()

"""An export is used like a model: called, in a pipeline, in a new process."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from PIL import Image

from hf_efficient import ConfigError
from hf_efficient.exported import exported_pipeline, load_exported
from hf_efficient.runtimes import RUNTIMES
from tests.exports import CASES, TEXTS

Exports = Callable[..., Any]
IMAGE = Image.new("RGB", (20, 10), (200, 30, 60))
QUESTIONS = {
    "text": ("text-classification", TEXTS[0], "tokenizer"),
    "token": ("token-classification", TEXTS[0], "tokenizer"),
    "image": ("image-classification", IMAGE, "image_processor"),
}


@pytest.mark.parametrize(("case", "format"), [*((case, "onnx") for case in CASES), ("text", "openvino")])
def test_called_like_the_model(case: str, format: str, exports: Exports) -> None:
    """For one example and for many, in lengths that it was not traced with."""
    made = CASES[case]
    model, exported, examples = made.model(), load_exported(exports(case, format).folder), made.examples()
    for count in (1, len(examples)):
        batch = made.collate(examples[-count:])
        with torch.no_grad():
            expected = model(**{name: value for name, value in batch.items() if name != "labels"})
        outputs = exported(**batch)
        assert type(outputs) is type(expected)
        torch.testing.assert_close(outputs.logits, expected.logits, rtol=1e-3, atol=1e-4)
    assert exported.config.id2label == model.config.id2label


@pytest.mark.parametrize("case", QUESTIONS)
def test_answers_in_a_pipeline(case: str, exports: Exports, caplog: pytest.LogCaptureFixture) -> None:
    task, question, argument = QUESTIONS[case]
    folder, processor = exports(case).folder, CASES[case].processor()
    by_model = transformers.pipeline(task, model=CASES[case].model(), device="cpu", **{argument: processor})
    by_hand = transformers.pipeline(task, model=load_exported(folder), device="cpu", **{argument: processor})
    expected = by_model(question)
    assert len(expected) >= 1
    for answers in (by_hand(question), exported_pipeline(folder)(question)):
        assert_same_answers(answers, expected)
    assert "not supported" not in caplog.text


def assert_same_answers(answers: list[dict[str, Any]], expected: list[dict[str, Any]]) -> None:
    for answer, should in zip(answers, expected, strict=True):
        assert answer == {**should, "score": pytest.approx(should["score"], abs=1e-4)}


@pytest.mark.parametrize("format", sorted(RUNTIMES))
def test_answers_in_a_new_process(format: str, exports: Exports) -> None:
    folder = exports("text", format).folder
    code = (
        "import sys, json; from hf_efficient.exported import exported_pipeline;"
        "print(json.dumps(exported_pipeline(sys.argv[1])(sys.argv[2])))"
    )
    done = subprocess.run([sys.executable, "-c", code, str(folder), TEXTS[1]], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert_same_answers(json.loads(done.stdout.splitlines()[-1]), exported_pipeline(folder)(TEXTS[1]))


def test_threads(exports: Exports) -> None:
    model = load_exported(exports("text").folder, threads=2)
    session = model.runtime.exported.runners["model"].session
    assert session.get_session_options().intra_op_num_threads == 2
    model.set_threads(1)
    assert model.runtime.exported.runners["model"].session.get_session_options().intra_op_num_threads == 1


def test_saves_as_a_copy(exports: Exports, tmp_path: Path) -> None:
    """`save_pretrained` of a pipeline leaves a folder that answers alike."""
    pipeline = exported_pipeline(exports("text").folder)
    pipeline.save_pretrained(tmp_path / "copy")
    assert exported_pipeline(tmp_path / "copy")(TEXTS) == pipeline(TEXTS)


def test_no_processor(exports: Exports) -> None:
    folder = exports("narrow").folder
    with pytest.raises(ConfigError, match=r"has no tokenizer.*pass tokenizer="):
        exported_pipeline(folder)
    tokenizer = CASES["text"].processor()
    assert exported_pipeline(folder, tokenizer=tokenizer).tokenizer is tokenizer


@pytest.mark.parametrize("load", [load_exported, exported_pipeline])
def test_not_an_export(load: Callable[[Path], Any], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="hf-efficient export"):
        load(tmp_path)

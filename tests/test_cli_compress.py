"""`hf-efficient compress` as a user meets it."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from hf_efficient.cli import main
from hf_efficient.pretrained import load_pretrained
from tests.exports import balanced, widened
from tests.tasks.conftest import tiny_checkpoint, tiny_tokenizer

TEXTS = ["my card is lost", "how do i pay", "where is the money", "a new card", "no", "do not pay the app now"]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a model, sentences labelled by that model, and the process in it."""
    monkeypatch.chdir(tmp_path)
    saved = tmp_path / "run" / "final"
    tiny_checkpoint(saved, ["card", "pay"])
    model = widened(load_pretrained(AutoModelForSequenceClassification, str(saved)))
    tokenizer: Any = tiny_tokenizer()
    balanced(model, [tokenizer(text) for text in TEXTS])
    model.save_pretrained(saved)
    lines = ["text,label"]
    for text in TEXTS * 8:
        with torch.no_grad():
            label = int(model(**tokenizer(text, return_tensors="pt")).logits.argmax())
        lines.append(f"{text},{model.config.id2label[label]}")
    for name in ("train", "test"):
        (tmp_path / f"{name}.csv").write_text("\n".join(lines))
    return tmp_path


def parameters(path: Path) -> int:
    model = AutoModelForSequenceClassification.from_pretrained(path)
    return sum(parameter.numel() for parameter in model.parameters())


DATA = ["data.train=train.csv", "data.test=test.csv", "data.max_length=16"]


def test_writes_a_smaller_model_with_its_report(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole = parameters(folder / "run" / "final")
    target = int(whole * 0.9)
    assert main(["compress", "run/final", *DATA, "--target-parameters", str(target)]) == 0
    printed = capsys.readouterr()
    made = folder / "run" / "compressed"
    assert 0 < parameters(made) <= target
    assert "accuracy" in printed.out.lower()
    assert {"report.json", "report.md", "report.png"} <= {path.name for path in made.iterdir()}
    assert AutoTokenizer.from_pretrained(made)("my card")["input_ids"]


BAD = {
    "no target": ([*DATA], "required"),
    "two targets": ([*DATA, "--target-speedup", "2", "--target-size-mb", "1"], "not allowed with"),
    "no training data": ([DATA[1], DATA[2], "--target-speedup", "2"], "data.train=FILE"),
    "beyond reach": ([*DATA, "--target-parameters", "5"], "the smallest shape has"),
    "unknown runtime": ([*DATA, "--target-speedup", "2", "--runtime", "onnx-dynamc"], "did you mean 'onnx-dynamic'"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_message(case: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments, message = BAD[case]
    try:
        code = main(["compress", "run/final", *arguments])
    except SystemExit as stopped:  # of argparse
        code = int(str(stopped.code))
    assert code == 2
    assert message in capsys.readouterr().err
    assert not (folder / "run" / "compressed").exists()

"""What autotune found: told, and remembered."""

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from hf_efficient import EfficientTrainingArguments
from hf_efficient.tuning import CACHE_VARIABLE, Row, Tuning, cache_folder, remembered

FOUND = {"step_ms": 12.0, "seconds": 30.0, "seconds_error": 2.0, "loss": 1.25, "memory_mb": 400.0, "steps_timed": 4}
TUNING = Tuning(
    optimizations={"precision": {"dtype": "bf16"}},
    args={"gradient_accumulation_steps": 2},
    before_s=60.0,
    expected_s=30.0,
    expected_error_s=2.0,
    tuning_s=5.5,
    rows=[
        Row("as given", "tried", found={**FOUND, "seconds": 60.0}),
        Row("precision (dtype=bf16)", "taken", found=FOUND),
        Row("compile", "skipped", "it could save 3 s | at most"),
        Row("attention", "rejected", "its loss is nan", {"error": "its loss is nan"}),
    ],
)


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))


@pytest.fixture
def args(tmp_path: Path) -> Any:
    return EfficientTrainingArguments(str(tmp_path / "out"), use_cpu=True)


class Tune:
    """Counts how often it is asked."""

    def __init__(self) -> None:
        self.times = 0

    def __call__(self) -> Tuning:
        self.times += 1
        return replace(TUNING, tuning_s=float(self.times))


def test_it_is_told_in_full(tmp_path: Path) -> None:
    TUNING.save(tmp_path)
    assert Tuning.from_json(json.loads((tmp_path / "autotune.json").read_text())) == TUNING
    assert (tmp_path / "autotune.png").read_bytes().startswith(b"\x89PNG")
    for text in (str(TUNING), (tmp_path / "autotune.md").read_text()):
        assert "precision:\n    dtype: bf16\ngradient_accumulation_steps: 2" in text
        assert "skipped: it could save 3 s" in text
        assert "rejected: its loss is nan" in text
        assert "as given: 60.0 s; expected now: 30.0 s" in text or "as given: 60 s; expected now: 30 s" in text


def test_nothing_faster_is_told() -> None:
    plain = replace(TUNING, optimizations={}, args={}, before_s=None)
    assert "Nothing is faster than what is given." in str(plain)
    assert "does not fit in memory" in str(plain)
    assert plain.choice() == ""


def test_same_circumstances_are_not_tried_twice(args: Any) -> None:
    tune = Tune()
    first, again = (remembered(tune, args, {"machine": 1}) for _ in range(2))
    assert tune.times == 1
    assert again == replace(first, source=again.source)
    assert "cache" in again.source
    remembered(tune, args, {"machine": 2})
    assert tune.times == 2


def test_checkpoints_keep_their_choice(args: Any) -> None:
    """On another machine, too."""
    tune = Tune()
    remembered(tune, args, {"machine": 1})
    (Path(args.output_dir) / "checkpoint-4").mkdir()
    assert remembered(tune, args, {"machine": 2}).source == "the checkpoints' folder"
    assert tune.times == 1


def test_a_new_training_in_an_old_folder_is_tuned(args: Any) -> None:
    tune = Tune()
    remembered(tune, args, {"machine": 1})
    remembered(tune, args, {"machine": 2})
    assert tune.times == 2


@pytest.mark.parametrize("damage", ["{", '{"rows": []}', "[]"])
def test_a_damaged_cache_is_made_anew(args: Any, damage: str, caplog: pytest.LogCaptureFixture) -> None:
    tune = Tune()
    remembered(tune, args, {})
    (path,) = cache_folder().iterdir()
    path.write_text(damage)
    remembered(tune, args, {})
    assert tune.times == 2
    assert "cannot be read" in caplog.text
    assert json.loads(path.read_text()) == asdict(Tune()()) | {"tuning_s": 2.0}


def test_a_cache_that_cannot_be_written_is_no_hindrance(
    args: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "file"))
    assert remembered(Tune(), args, {}).choice()
    assert "autotune" in caplog.text

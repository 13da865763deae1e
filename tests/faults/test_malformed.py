"""Malformed inputs: each ends in a message and exit code 2, or is handled; no traceback, no hang, no half a result."""

import contextlib
import functools
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hf_efficient.checkpoint import load_state, save_state
from hf_efficient.errors import EfficientError
from tests.faults.inputs import assert_refused_or_handled, changed, commanded, damaged, limited
from tests.runs import text_run
from tests.tasks.conftest import tiny_checkpoint

ROWS = [("my card is lost" if index % 2 else "how do i pay", "ab"[index % 2]) for index in range(20)]

quickly = functools.partial(
    settings,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe's data and model."""
    folder = tmp_path_factory.mktemp("malformed")
    pd.DataFrame(ROWS, columns=["text", "label"]).to_csv(folder / "train.csv", index=False)
    tiny_checkpoint(folder / "model", ["a", "b"])
    return folder


@pytest.fixture(autouse=True)
def nothing_is_trained(monkeypatch: pytest.MonkeyPatch, place: Path) -> None:
    """What is not refused is handled as well as it will ever be: trainings have tests of their own."""
    monkeypatch.chdir(place)
    monkeypatch.setattr("hf_efficient.job.Job.run", lambda *args: None)


def recipe(place: Path) -> dict[str, Any]:
    return {
        "task": "text-classification",
        "model": str(place / "model"),
        "data": {"train": str(place / "train.csv"), "max_length": 16},
        "stages": {
            "finetune": {"training": {"num_train_epochs": 1, "learning_rate": 5.0e-3, "optim": "adamw_torch"}},
            "compress": {
                "training": {"num_train_epochs": 2, "per_device_train_batch_size": 8},
                "optimizations": {
                    "structured_pruning": {"keep_layers": [0], "keep_heads": 0.5},
                    "distillation": {"teacher": "finetune", "temperature": 2.0},
                    "length_batching": {},
                },
            },
        },
        "export": {"format": "onnx", "quantize": "none", "max_drop": 0.01},
        "seed": 3,
    }


def run(place: Path, text: str | bytes, *more: str) -> int:
    file = place / "recipe.yaml"
    file.write_bytes(text.encode(errors="surrogatepass") if isinstance(text, str) else text)
    try:
        return assert_refused_or_handled(place, "run", file, *more)
    finally:
        shutil.rmtree(place / "runs", ignore_errors=True)
        file.unlink()


@pytest.mark.slow
def test_recipes_with_other_values(place: Path) -> None:
    codes = []

    @quickly(max_examples=150)
    @given(changed(recipe(place)))
    def check(values: Any) -> None:
        codes.append(run(place, json.dumps(values)))

    check()
    assert codes.count(2) > len(codes) / 2


@pytest.mark.slow
def test_damaged_recipes(place: Path) -> None:
    @quickly(max_examples=60)
    @given(damaged(yaml.safe_dump(recipe(place)).encode()))
    def check(text: bytes) -> None:
        run(place, text)

    check()


def csv(rows: pd.DataFrame, path: Path) -> None:
    rows.to_csv(path, index=False)


def jsonl(rows: pd.DataFrame, path: Path) -> None:
    rows.to_json(path, orient="records", lines=True)


def parquet(rows: pd.DataFrame, path: Path) -> None:
    rows.to_parquet(path)


@pytest.mark.slow
@pytest.mark.parametrize("write", [csv, jsonl, parquet])
def test_damaged_data(place: Path, write: Callable[[pd.DataFrame, Path], None]) -> None:
    file = place / f"data.{write.__name__}"
    write(pd.DataFrame(ROWS, columns=["text", "label"]), file)
    whole = file.read_bytes()

    @quickly(max_examples=30)
    @given(damaged(whole))
    def check(content: bytes) -> None:
        file.write_bytes(content)
        run(place, json.dumps(recipe(place)), f"data.train={file}")

    check()


@pytest.mark.slow
def test_damaged_checkpoints(place: Path) -> None:
    model = place / "damaged"
    shutil.copytree(place / "model", model)
    files = {path: path.read_bytes() for path in sorted(model.iterdir())}

    @quickly(max_examples=60)
    @given(st.data())
    def check(data: Any) -> None:
        file = data.draw(st.sampled_from(list(files)))
        missing = data.draw(st.sampled_from([False, False, False, True]))
        file.unlink() if missing else file.write_bytes(data.draw(damaged(files[file])))
        try:
            run(place, json.dumps(recipe(place)), f"model={model}")
        finally:
            file.write_bytes(files[file])

    check()


@pytest.mark.slow
def test_configs_with_other_values(place: Path) -> None:
    model = place / "configured"
    shutil.copytree(place / "model", model)
    config = json.loads((model / "config.json").read_text())

    @quickly(max_examples=60)
    @given(changed(config))
    def check(values: Any) -> None:
        (model / "config.json").write_text(json.dumps(values))
        run(place, json.dumps(recipe(place)), f"model={model}")

    check()


@pytest.mark.slow
def test_damaged_runs(place: Path, tmp_path: Path) -> None:
    """A finished run that is asked for answers."""
    finished = text_run(tmp_path / "run", steps=2)
    (tmp_path / "ask.txt").write_text("my card is lost\n")
    files = {path: path.read_bytes() for path in sorted(finished.rglob("*")) if path.is_file()}

    @quickly(max_examples=40)
    @given(st.data())
    def check(data: Any) -> None:
        file = data.draw(st.sampled_from(list(files)))
        file.write_bytes(data.draw(damaged(files[file])))
        answers = tmp_path / "answers.jsonl"
        try:
            code = assert_refused_or_handled(tmp_path, "predict", finished, tmp_path / "ask.txt", "--to", answers)
            assert answers.is_file() == (code == 0)
        finally:
            file.write_bytes(files[file])
            answers.unlink(missing_ok=True)

    check()


def test_damaged_states(tmp_path: Path) -> None:
    """`optimizations.pt`, a zip archive of tensors."""
    save_state(tmp_path, "main", {"pruning": {"step": 3}})
    file = tmp_path / "optimizations.pt"
    whole = file.read_bytes()

    @quickly(max_examples=60)
    @given(damaged(whole))
    def check(content: bytes) -> None:
        file.write_bytes(content)
        with limited(), contextlib.suppress(EfficientError):
            assert isinstance(load_state(tmp_path), dict)

    check()


BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{letter}: &{letter} [{', '.join(['*' + chr(ord(letter) - 1)] * 9)}]\n" for letter in "bcdefghij"
)
BY_HAND: dict[str, tuple[Callable[[dict[str, Any]], str | bytes], str]] = {
    "aliases that stand for a billion values": (lambda values: BOMB, "values, aliases included"),
    "a value that holds itself": (lambda values: "data: &a\n  train: *a\n", "levels"),
    "a thousand levels": (lambda values: "[" * 5000, "nested too deeply"),
    "no such day": (lambda values: "seed: 2024-13-45\n", "not valid YAML"),
    "a Python object": (lambda values: "model: !!python/object/apply:os.system [ls]\n", "not valid YAML"),
    "a number as a key": (lambda values: "1: 2\n", "keys are text"),
    "a list": (lambda values: "- 1\n", "keys and values"),
    "nothing": (lambda values: "", "keys and values"),
    "bytes": (lambda values: bytes(range(128, 256)), "cannot read the recipe"),
    "UTF-16": (lambda values: yaml.safe_dump(values).encode("utf-16"), "cannot read the recipe"),
    "a name that leads elsewhere": (lambda values: json.dumps({**values, "name": "../../up"}), "with a letter"),
    "an absolute name": (lambda values: json.dumps({**values, "name": "/up"}), "with a letter"),
    "no name": (lambda values: json.dumps({**values, "name": ""}), "with a letter"),
    "a stage that leads elsewhere": (lambda values: json.dumps({**values, "stages": {"../up": {}}}), "names a folder"),
    "a sample that leads elsewhere": (
        lambda values: json.dumps({**values, "data": {"train": "sample:../../../recipes"}}),
        "sample",
    ),
    "not a number": (lambda values: json.dumps({**values, "seed": float("nan")}), "seed"),
    "an endless seed": (lambda values: json.dumps({**values, "seed": 10**30}), "seed"),
    "data that is code": (
        lambda values: json.dumps(
            {
                **values,
                "task": "reinforcement-learning",
                "data": {"train": "sample:characters", "reward": "os:getcwd"},
                "stages": {"one": {}},
                "export": None,
            }
        ),
        "HF_EFFICIENT_TRUST_CODE",
    ),
}


@pytest.mark.parametrize("name", BY_HAND)
def test_recipes_by_hand(place: Path, name: str) -> None:
    make, said = BY_HAND[name]
    file = place / "hand.yaml"
    content = make(recipe(place))
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    code, message = commanded("run", file)
    assert code == 2
    assert said in message
    assert not (place / "runs").exists()


def _pipe(place: Path) -> Path:
    os.mkfifo(place / "pipe.csv")
    return place / "pipe.csv"


def _loop(place: Path) -> Path:
    (place / "loop.csv").symlink_to(place / "loop.csv")
    return place / "loop.csv"


def _written(name: str, content: bytes) -> Callable[[Path], Path]:
    def write(place: Path) -> Path:
        (place / name).write_bytes(content)
        return place / name

    return write


DATA_BY_HAND: dict[str, Callable[[Path], Path]] = {
    "a pipe that nobody writes to": _pipe,
    "a link to itself": _loop,
    "a folder with a file's name": lambda place: (place / "folder.csv").mkdir() or place / "folder.csv",  # type: ignore[func-returns-value]
    "a header alone": _written("header.csv", b"text,label\n"),
    "no header": _written("headless.csv", b"my card,a\nmy app,b\n"),
    "two columns of a name": _written("twice.csv", b"text,label,text\nx,a,y\nz,b,w\n"),
    "a quote that stays open": _written("quote.csv", b'text,label\n"x,a\ny,b\n'),
    "more fields than names": _written("more.csv", b"text,label\nx,a,b,c\ny,b\n"),
    "zeros": _written("zeros.csv", bytes(1000)),
    "a picture": _written("picture.csv", b"\x89PNG\r\n\x1a\n" + bytes(range(256))),
    "one class": _written("one.csv", b"text,label\n" + b"x,a\n" * 20),
    "a class of one row": _written("single.csv", b"text,label\n" + b"x,a\n" * 20 + b"y,b\n"),
    "labels that are missing": _written("missing.csv", b"text,label\n" + b"x,\n" * 20),
    "JSON that is no table": _written("tree.json", b'{"a": {"b": [1, {"c": 2}]}}'),
    "JSON of several shapes": _written("shapes.jsonl", b'{"text": "x", "label": "a"}\n{"text": ["y"], "label": 2}\n'),
    "JSON that ends early": _written("early.jsonl", b'{"text": "x", "label": "a"}\n{"text": "y", "lab'),
    "an archive": _written("archive.parquet", b"PK\x03\x04" + bytes(100)),
    "a parquet file's ends": _written("ends.parquet", b"PAR1" + bytes(20) + b"PAR1"),
}


@pytest.mark.parametrize("name", DATA_BY_HAND)
def test_data_by_hand(place: Path, name: str) -> None:
    file = DATA_BY_HAND[name](place)
    code = run(place, json.dumps(recipe(place)), f"data.train={file}")
    assert code == 2 or name in HANDLED


HANDLED = ("a class of one row", "a quote that stays open")
"""What is still a table of texts and labels."""

"""A finished run over a whole file: answers written row by row, from where an interrupted run stopped."""

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from datasets import Dataset

from hf_efficient.errors import DataError, unknown
from hf_efficient.files import atomic_path, write_json
from hf_efficient.predictor import Predictor
from hf_efficient.reading import read_file

CHUNK = 1024
"""Rows between two writes: within them, texts of like length are computed together."""

Progress = Callable[[int, int], Any]
"""Is told how many rows are done, and of how many."""


def predict(
    predictor: Predictor,
    file: str | Path,
    to: str | Path,
    *,
    text: str | None = None,
    scores: bool = False,
    batch_size: int = 32,
    progress: Progress = lambda done, count: None,
) -> int:
    """Write a line of JSON for each row of ``file`` to ``to``: ``row`` (from 1), ``input`` where it is text, and the
    answer (`Task.answers`).

    Lines are in ``<to>.partial`` until all are there; a second call with the same file and model goes on behind the
    last whole one.

    Args:
        file: csv, tsv, json, jsonl or parquet with the columns of the task; or txt with a text on each line.
        text: column that holds the text; None takes the columns that the run was trained on.
        scores: write the probabilities of all classes, not of the one alone.

    Returns:
        how many rows were found done.

    Raises:
        DataError: a file that cannot be read, or lacks a column.
        ConfigError: models of this task give no such answers.
    """
    file, to = Path(file), Path(to)
    rows, raw = _rows(predictor, file, text)
    partial, about = Path(f"{to}.partial"), Path(f"{to}.partial.json")
    made_of = {"file": _digest(file), "model": str(predictor.folder.resolve()), "text": text, "scores": scores}
    done = _resumed(partial, about, made_of)
    with partial.open("a", encoding="utf-8") as lines:
        for start in range(done, len(rows), CHUNK):
            progress(start, len(rows))
            chunk = rows.select(range(start, min(start + CHUNK, len(rows))))
            inputs = [raw(row) for row in chunk]
            for number, (given, answer) in enumerate(
                zip(inputs, _answered(predictor, inputs, batch_size), strict=True)
            ):
                told = {name: value for name, value in answer.items() if scores or name != "scores"}
                shown = {"input": given} if isinstance(given, str | dict) else {}
                lines.write(json.dumps({"row": start + number + 1, **shown, **told}, ensure_ascii=False) + "\n")
            lines.flush()
            os.fsync(lines.fileno())
    progress(len(rows), len(rows))
    with atomic_path(to) as temporary:
        os.replace(partial, temporary)
    about.unlink()
    return done


def _rows(predictor: Predictor, file: Path, text: str | None) -> tuple[Dataset, Callable[[dict[str, Any]], Any]]:
    """The rows of ``file``, and what makes a raw input of one."""
    if file.suffix.lower() == ".txt":
        try:
            lines = file.read_text(encoding="utf-8").splitlines()
        except FileNotFoundError:
            raise DataError(f"no file {file}; check the path") from None
        except UnicodeDecodeError:
            raise DataError(f"cannot read {file}: it is not UTF-8 text; save the file as UTF-8") from None
        text, rows = "text", Dataset.from_dict({"text": lines})
    else:
        rows = read_file(file)
    if not len(rows):
        raise DataError(f"{file} has no rows; add some")
    if text is None:
        raw = predictor.task.raw
        try:
            raw(rows[0])
        except KeyError as error:
            column = str(error.args[0])
            raise DataError(
                f"{file}: {unknown('column', column, rows.column_names)}. Name the column of the text with --text"
            ) from None
        return rows, raw
    if text not in rows.column_names:
        raise DataError(f"{file}: {unknown('column', text, rows.column_names)}")
    return rows, lambda row: str(row[text] or "")


def _answered(predictor: Predictor, inputs: Sequence[Any], batch_size: int) -> list[dict[str, Any]]:
    """Answers in the order of ``inputs``, computed by length: less of a batch is padding."""
    order = sorted(range(len(inputs)), key=lambda index: len(inputs[index]) if isinstance(inputs[index], str) else 0)
    found: list[Any] = [None] * len(inputs)
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        for index, answer in zip(chosen, predictor.answers([inputs[index] for index in chosen]), strict=True):
            found[index] = answer
    return found


def _resumed(partial: Path, about: Path, made_of: dict[str, Any]) -> int:
    """How many whole lines of the same making are in ``partial``, which is cut behind them; else begun anew."""
    known = None
    if partial.is_file() and about.is_file():
        try:
            known = json.loads(about.read_text(encoding="utf-8"))
        except ValueError:
            known = None
    if known != made_of:
        partial.unlink(missing_ok=True)
        write_json(about, made_of)
        return 0
    with partial.open("rb+") as lines:
        whole = count = 0
        for line in lines:
            if not line.endswith(b"\n"):
                break
            whole, count = whole + len(line), count + 1
        lines.truncate(whole)
    return count


def _digest(file: Path) -> str:
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def output_of(file: str | Path) -> Path:
    """Where answers go unless told otherwise: beside ``file``."""
    file = Path(file)
    return file.with_name(f"{file.stem}.predicted.jsonl")

"""Files and folders of the user as data sets.

What is wrong with them is told as DataError, in words that say what to do about it.
"""

import difflib
import glob
import hashlib
import json
import mimetypes
import os
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import datasets
import pandas as pd
import pyarrow.parquet as pq
from datasets import Dataset

from hf_efficient.errors import DataError
from hf_efficient.mind import is_mind, read_mind

FORMATS = {
    ".csv": "csv",
    ".tsv": "csv",
    ".json": "json",
    ".jsonl": "json",
    ".parquet": "parquet",
    ".conll": "conll",
}
"""File suffix -> builder of `datasets` that reads it, or "conll", which `_read_conll` does."""

_FOLDERS = {"image": "imagefolder", "audio": "audiofolder"}
"""Kind of the files in a folder -> builder of `datasets` that reads it."""

_HINTS = {
    "csv": "Give it a header line, as many fields in each row as in the header, and quotes around "
    "fields that hold a separator or a line break",
    "json": "Write one JSON object per line, or one list of objects",
    "parquet": "Write the file again",
    "conll": "Write a word, a space or tab and its tag on each line, and an empty line after each text",
}


def read_folder(path: Path) -> Dataset:
    """Images or recordings, whichever are more, in a folder for each class (columns ``image`` or ``audio``, and
    ``label``) or with a metadata file: the image and audio folders of `datasets`. Or what `read_mind` reads.

    Raises:
        DataError: there are none.
    """
    if is_mind(path):
        return read_mind(path)
    files = (file for file in path.rglob("*") if file.is_file())
    kinds = Counter((mimetypes.guess_type(file.name)[0] or "").partition("/")[0] for file in files)
    found = [(kinds[kind], builder) for kind, builder in _FOLDERS.items() if kinds[kind]]
    if not found:
        raise DataError(
            f"{path} is a folder without images or recordings; give one with a folder for each class in it, one with "
            f"behaviors.tsv and news.tsv, or name a file ({', '.join(FORMATS)})"
        )
    builder_name = max(found)[1]
    pattern = f"{glob.escape(str(path.resolve()))}/**"
    try:
        with quiet():
            return datasets.load_dataset(builder_name, data_files={"train": pattern}, split="train")
    except Exception as error:  # of whatever reads the metadata file
        raise DataError(f"cannot read the folder {path}: {_reason(error, path)}; check its metadata file") from error


def read_file(path: Path) -> Dataset:
    """The rows of a file of `FORMATS`.

    Raises:
        DataError: no such file, or one that cannot be read; with the line where possible.
    """
    if not os.path.isfile(path):  # of os.path, which takes a name that is too long for "no such file"
        raise DataError(f"no file {path}{_near(path)}")
    if path.suffix.lower() not in FORMATS:
        raise DataError(f"cannot read {path}: unknown suffix '{path.suffix}'. Allowed: {', '.join(FORMATS)}")
    builder_name = FORMATS[path.suffix.lower()]
    try:
        return _build(path, builder_name)
    except DataError:
        raise
    # Broken files raise whatever the reader at hand raises: datasets, pandas, Arrow, archives by their first bytes
    except Exception as error:
        raise DataError(f"cannot read {path}: {_reason(error, path)}. {_HINTS[builder_name]}") from error


def _near(path: Path) -> str:
    if not os.path.isdir(path.parent):
        return f": there is no folder {path.parent} here"
    files = [file.name for file in path.parent.iterdir() if file.is_file()]
    near = difflib.get_close_matches(path.name, files, n=1)
    return f"; did you mean {path.parent / near[0]}?" if near else "; check the path"


def _build(path: Path, builder_name: str) -> Dataset:
    content = _content_hash(path, builder_name)
    if builder_name == "conll":
        return _read_conll(path)
    with quiet():
        options: dict[str, Any] = {}
        if not path.stat().st_size or (builder_name == "parquet" and not pq.read_metadata(path).num_rows):
            raise DataError(f"{path} is empty; it needs a row of data")
        if builder_name == "csv":
            options = _csv_options(path)
        files = {"train": glob.escape(str(path.resolve()))}
        # `datasets` knows a file again by its path and time only; naming the configuration after the content keeps it
        # from serving what an equally old file of that name held before
        builder = datasets.load_dataset_builder(builder_name, name=content, data_files=files, **options)
        builder.download_and_prepare()
        if not builder.info.splits["train"].num_examples:
            raise DataError(f"{path} has no rows, at most a header; it needs a row of data")
        return builder.as_dataset("train")


def _read_conll(path: Path) -> Dataset:
    """``tokens`` and ``ner_tags`` of a file in columns, as CoNLL-2003 has it (Tjong Kim Sang & De Meulder 2003).

    The word comes first, the tag last, an empty line after each text; lines that begin documents are left out.
    """
    texts: list[list[tuple[str, str]]] = [[]]
    for number, line in enumerate(path.read_text(encoding="utf-8-sig").splitlines(), start=1):
        columns = line.split()
        if not columns or columns[0] == "-DOCSTART-":
            texts.append([])
        elif len(columns) == 1:
            raise DataError(f"cannot read {path}: line {number} has a word and no tag ('{line}'). {_HINTS['conll']}")
        else:
            texts[-1].append((columns[0], columns[-1]))
    kept = [text for text in texts if text]
    if not kept:
        raise DataError(f"{path} is empty; it needs a row of data")
    rows = {
        "tokens": [[word for word, _ in text] for text in kept],
        "ner_tags": [[tag for _, tag in text] for text in kept],
    }
    return Dataset.from_dict(rows)


def _content_hash(path: Path, builder_name: str) -> str:
    """Hash of the bytes; on the way, refuse what Arrow would let pass or die of."""
    digest, began = hashlib.sha256(), False
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            digest.update(line)
            if builder_name != "parquet":
                _check_utf8(line, f"cannot read {path}: line {number}")
            # A null where an object should begin makes Arrow's parser crash the process (apache/arrow issue 47409)
            if builder_name == "json" and (line if began else line.lstrip()).startswith(b"null"):
                raise DataError(f"cannot read {path}: line {number} is null. {_HINTS['json']}")
            began = began or bool(line.strip())
    return digest.hexdigest()[:16]


def _check_utf8(line: bytes, where: str) -> None:
    try:
        line.decode()
    except UnicodeDecodeError:
        raise DataError(f"{where} is not UTF-8 text; save the file as UTF-8") from None


def _csv_options(path: Path) -> dict[str, Any]:
    """Every column as text, as written: no "NA" or "None" taken for a missing value, no "007" for a 7."""
    separator = "\t" if path.suffix.lower() == ".tsv" else ","
    header = pd.read_csv(path, sep=separator, nrows=0, index_col=False)
    text = datasets.Features({str(column): datasets.Value("string") for column in header.columns})
    # index_col: else pandas takes the first column for row names where each row has a field too many
    return {"sep": separator, "features": text, "keep_default_na": False, "na_values": [""], "index_col": False}


@contextmanager
def quiet() -> Iterator[None]:
    """No progress bars and log lines of `datasets`, for work that takes seconds; what goes wrong is told as DataError.

    The settings of the caller are back afterwards.
    """
    verbosity, hidden = datasets.logging.get_verbosity(), datasets.are_progress_bars_disabled()
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Cannot .*able progress bars")  # an environment variable decides
        warnings.simplefilter("error", pd.errors.ParserWarning)  # fields would be dropped
        datasets.disable_progress_bars()
        try:
            yield
        finally:
            datasets.logging.set_verbosity(verbosity)
            if not hidden:
                datasets.enable_progress_bars()


def _reason(error: BaseException, path: Path) -> str:
    """What is wrong, in the words of the library that read the file; the line for JSON."""
    while error.__cause__ is not None:
        error = error.__cause__
    if isinstance(error, StopIteration):
        return "there are no rows in it"
    if path.suffix.lower() == ".jsonl" and (line := _bad_json_line(path)):
        return f"line {line} is not valid JSON"
    if isinstance(error, pd.errors.ParserWarning):
        return "the rows have more fields than the header"
    words = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return words.removeprefix("Error tokenizing data. C error: ").rstrip(".")


def _bad_json_line(path: Path) -> int | None:
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            try:
                json.loads(line if line.strip() else "{}")
            except ValueError:
                return number
    return None

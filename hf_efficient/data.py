"""Data sets: bundled samples, the user's files and the Hub, as train, validation and test splits.

Every finding about bad data is a DataError that names the source, so that tasks see only rows they can use.
"""

import difflib
import glob
import hashlib
import json
import os
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import resources
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pandas as pd
import pyarrow.compute as pc
import pyarrow.parquet as pq
from datasets import ClassLabel, Dataset, DatasetDict
from pydantic import BaseModel, ConfigDict, Field
from sklearn.model_selection import train_test_split

from hf_efficient.errors import DataError, unknown

SPLITS = ("train", "validation", "test")
FORMATS = {".csv": "csv", ".tsv": "csv", ".json": "json", ".jsonl": "json", ".parquet": "parquet"}
"""File suffix -> builder of `datasets` that reads it."""

SAMPLE = "sample:"
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+(:[\w.-]+)?")
_SHOWN_ROWS = 5
_HINTS = {
    "csv": "Give it a header line, as many fields in each row as in the header, and quotes around "
    "fields that hold a separator or a line break",
    "json": "Write one JSON object per line, or one list of objects",
    "parquet": "Write the file again",
}


class DataSettings(BaseModel):
    """Where the data is; each task adds the columns it reads.

    A source is ``sample:<name>`` (bundled), a csv, tsv, json, jsonl or parquet file, or a Hub data set
    (``user/name`` or ``user/name:config``).
    """

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    train: str
    """Source of the training split; a sample or Hub data set also gives the splits it has and that are not named."""

    validation: str | None = None
    """Source of the validation split; without one it is split off train."""

    test: str | None = None
    """Source of the test split; without one no test metrics are reported."""

    validation_fraction: float = Field(default=0.1, gt=0, le=0.5)
    """Share of train that becomes validation where there is none."""

    def columns(self) -> list[str]:
        """Columns that each split must have, filled in every row."""
        return []

    def label_column(self) -> str | None:
        """Column by which validation is stratified."""
        return None


def load(settings: DataSettings, *, seed: int = 42, sample_root: Path | None = None) -> DatasetDict:
    """Read all splits, check the columns that the task needs, and split validation off train where there is none.

    Args:
        seed: decides which rows become validation.
        sample_root: folder of the sample data sets; the bundled ones when None.

    Returns:
        train, validation and, where there is one, test; every split has at least one row.

    Raises:
        DataError: a source that is missing, unreadable, empty, or lacks columns or values.
    """
    root = sample_root or Path(str(resources.files("hf_efficient.tasks") / "data"))
    own = _read(settings.train, "train", root)
    splits = {}
    for split in SPLITS:
        source = getattr(settings, split)
        found = own if source in (None, settings.train) else _read(source, split, root)
        if split == "train" or source is not None:
            splits[split] = _pick(found, split, source)
        elif split in own and not _unlabelled(own[split], settings.label_column()):
            splits[split] = own[split]
    for split, dataset in splits.items():
        splits[split] = _with_fields(dataset, settings.columns())
        check_columns(splits[split], settings.columns(), f"data.{split} '{getattr(settings, split) or settings.train}'")
    if "validation" not in splits:
        fraction, label = settings.validation_fraction, settings.label_column()
        splits["train"], splits["validation"] = split_off(splits["train"], fraction, seed, label)
    return DatasetDict({split: splits[split] for split in SPLITS if split in splits})


def load_split(settings: DataSettings, split: str, *, sample_root: Path | None = None) -> Dataset:
    """One split alone, from the source that ``settings`` name for it, with the columns that the task needs.

    Raises:
        DataError: as for `load`.
    """
    root = sample_root or Path(str(resources.files("hf_efficient.tasks") / "data"))
    source = getattr(settings, split)
    dataset = _with_fields(_pick(_read(source, split, root), split, source), settings.columns())
    check_columns(dataset, settings.columns(), f"data.{split} '{source}'")
    return dataset


def _with_fields(dataset: Dataset, columns: Sequence[str]) -> Dataset:
    """``dataset``; with the fields of columns as columns where ``columns`` name one of them, as ``translation.de``."""
    return dataset.flatten() if any("." in name and name not in dataset.column_names for name in columns) else dataset


def check_columns(dataset: Dataset, columns: Sequence[str], where: str) -> None:
    """Refuse an empty data set, a missing column, and missing or blank values.

    Rows are counted from 1, the header not included.

    Raises:
        DataError: names ``where``, the column, and the first rows concerned.
    """
    if not len(dataset):
        raise DataError(f"{where} has no rows; add some")
    for column in columns:
        if column not in dataset.column_names:
            raise DataError(f"{where}: {unknown('column', column, dataset.column_names)}")
        rows = _blank_rows(dataset, column)
        if rows:
            shown = ", ".join(map(str, rows[:_SHOWN_ROWS])) + (", ..." if len(rows) > _SHOWN_ROWS else "")
            raise DataError(
                f"{where}: column '{column}' is empty in {len(rows)} of {len(dataset)} rows (row {shown}); "
                "fill these in or delete the rows"
            )


def split_off(train: Dataset, fraction: float, seed: int, label: str | None = None) -> tuple[Dataset, Dataset]:
    """Split ``train`` into train and validation rows, in their old order.

    Validation is stratified by ``label`` where it has room for every class and each class has two rows; else rows are
    drawn at random, but never the last row of a class.

    Raises:
        DataError: no row can be spared.
    """
    classes = np.array([str(value) for value in train[label]] if label else ["row"] * len(train))
    count = max(1, round(fraction * len(train)))
    _, sizes = np.unique(classes, return_counts=True)
    if sizes.min() >= 2 and len(sizes) <= min(count, len(train) - count):
        _, chosen = train_test_split(np.arange(len(train)), test_size=count, random_state=seed, stratify=classes)
    else:
        order = np.random.default_rng(seed).permutation(len(train))
        _, kept = np.unique(classes[order], return_index=True)
        chosen = np.delete(order, kept)[:count]
    if not len(chosen):
        raise DataError(
            f"data.train has too few rows ({len(train)}, in {len(sizes)} classes) to split validation off; "
            "add rows or give data.validation"
        )
    is_chosen = np.isin(np.arange(len(train)), chosen)
    return train.select(np.flatnonzero(~is_chosen)), train.select(np.flatnonzero(is_chosen))


def _pick(found: dict[str, Dataset], split: str, source: str) -> Dataset:
    if split not in found:
        offered = ", ".join(found) or "(none)"
        raise DataError(f"data.{split}: '{source}' has no split '{split}', only {offered}; give another source")
    return found[split]


def _blank_rows(dataset: Dataset, column: str) -> list[int]:
    # Arrow, not Python values: no image or audio is decoded for this
    values = dataset.select_columns(column).with_format("arrow")[:][column]
    blank = pc.is_null(values)
    if dataset.features[column] in (datasets.Value("string"), datasets.Value("large_string")):
        blank = pc.or_kleene(blank, pc.equal(pc.utf8_trim_whitespace(values), ""))
    return [int(row) + 1 for row in np.flatnonzero(blank.to_numpy(zero_copy_only=False))]


def _unlabelled(dataset: Dataset, label: str | None) -> bool:
    """Hub convention: the labels of a withheld test split are all -1."""
    return isinstance(dataset.features.get(label), ClassLabel) and set(dataset.unique(label)) == {-1}


def _read(source: str, split: str, root: Path) -> dict[str, Dataset]:
    """Splits that ``source`` offers; a file offers ``split`` only."""
    if source.startswith(SAMPLE):
        return _read_sample(source.removeprefix(SAMPLE), root)
    if os.path.exists(source) or _looks_like_path(source):
        return {split: _read_file(Path(source).expanduser())}
    if not _HUB_ID.fullmatch(source):  # a bare name such as "json" means a reader to `datasets`
        raise DataError(
            f"data.{split}: '{source}' is neither a file ({', '.join(FORMATS)}) nor a Hub data set (user/name or "
            f"user/name:config) nor a sample ({', '.join(SAMPLE + name for name in _samples(root))})"
        )
    return _read_hub(source)


def _looks_like_path(source: str) -> bool:
    path = Path(source)
    return "://" not in source and (
        source.startswith((".", "/", "~"))
        or source.count("/") > 1
        or path.suffix.lower() in FORMATS
        or ("/" not in source and re.fullmatch(r"\.[A-Za-z]{2,5}", path.suffix) is not None)
        or ("/" in source and path.parent.is_dir())
    )


def _samples(root: Path) -> list[str]:
    return sorted(folder.name for folder in root.iterdir() if _sample_files(folder, "train"))


def _read_sample(name: str, root: Path) -> dict[str, Dataset]:
    if name not in _samples(root):
        raise DataError(unknown("sample", name, _samples(root)))
    files = {split: _sample_files(root / name, split) for split in SPLITS}
    return {split: _read_file(found[0]) for split, found in files.items() if found}


def _sample_files(folder: Path, split: str) -> list[Path]:
    """The file of a split, if there is one: a list of one path, or none."""
    paths = [folder / f"{split}{suffix}" for suffix in FORMATS]
    return [path for path in paths if path.is_file()][:1]


def _read_file(path: Path) -> Dataset:
    if os.path.isdir(path):
        raise DataError(f"{path} is a folder; name one file in it ({', '.join(FORMATS)})")
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


def _read_hub(source: str) -> dict[str, Dataset]:
    name, _, config = source.partition(":")
    try:
        found = datasets.load_dataset(name, config or None)
    except Exception as error:  # of datasets, huggingface_hub, its HTTP client, and the reader of the files
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
        raise DataError(
            f"cannot load the Hub data set '{source}': {reason}. Check its name at https://huggingface.co/datasets and "
            f"the connection (HF_HUB_OFFLINE must be unset), or give a file ({', '.join(FORMATS)}) or {SAMPLE}<name>"
        ) from error
    return {split: found[split] for split in SPLITS if split in found}

"""Data sets: bundled samples, the user's files and the Hub, as train, validation and test splits.

Every finding about bad data is a DataError that names the source, so that tasks see only rows they can use.
"""

import os
import re
from collections.abc import Sequence
from importlib import resources
from pathlib import Path

import datasets
import numpy as np
import pyarrow.compute as pc
from datasets import ClassLabel, Dataset, DatasetDict
from pydantic import BaseModel, ConfigDict, Field
from sklearn.model_selection import train_test_split

from hf_efficient.errors import DataError, unknown
from hf_efficient.reading import FORMATS, read_file, read_folder

SPLITS = ("train", "validation", "test")
SAMPLE = "sample:"
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+(:[\w.-]+)?")
_SHOWN_ROWS = 5


class DataSettings(BaseModel):
    """Where the data is; each task adds the columns it reads.

    A source is ``sample:<name>`` (bundled), a csv, tsv, json, jsonl, parquet or conll file, a folder with images or
    recordings in a folder for each class or with MIND's behaviors.tsv and news.tsv, or a Hub data set (``user/name`` or
    ``user/name:config``).
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
    return DatasetDict({split: _undecoded(splits[split]) for split in SPLITS if split in splits})


def load_split(settings: DataSettings, split: str, *, sample_root: Path | None = None) -> Dataset:
    """One split alone, from the source that ``settings`` name for it, with the columns that the task needs.

    Raises:
        DataError: as for `load`.
    """
    root = sample_root or Path(str(resources.files("hf_efficient.tasks") / "data"))
    source = getattr(settings, split)
    dataset = _with_fields(_pick(_read(source, split, root), split, source), settings.columns())
    check_columns(dataset, settings.columns(), f"data.{split} '{source}'")
    return _undecoded(dataset)


def named_file(source: str, where: str) -> Path:
    """The path of a single file: ``source`` itself, or that of ``sample:<name>/<file>``.

    Raises:
        DataError: names ``where``; there is none.
    """
    if not source.startswith(SAMPLE):
        path = Path(source).expanduser()
        if not path.is_file():
            raise DataError(f"{where}: no file {path}; check the path")
        return path
    root = Path(str(resources.files("hf_efficient.tasks") / "data"))
    found = {str(path.relative_to(root)) for path in root.glob("*/*.*")}
    name = source.removeprefix(SAMPLE)
    if name not in found:
        near = {each for each in found if each.startswith(name.partition("/")[0] + "/")}
        raise DataError(f"{where}: {unknown('file of a sample', name, near or found)}")
    return root / name


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


def _undecoded(dataset: Dataset) -> Dataset:
    """Recordings as bytes and paths: for decoding them, `datasets` wants torchcodec and an installed FFmpeg."""
    for name, feature in dataset.features.items():
        if isinstance(feature, datasets.Audio):
            dataset = dataset.cast_column(name, datasets.Audio(decode=False))
    return dataset


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
        path = Path(source).expanduser()
        return {split: read_folder(path) if os.path.isdir(path) else read_file(path)}
    if not _HUB_ID.fullmatch(source):  # a bare name such as "json" means a reader to `datasets`
        raise DataError(
            f"data.{split}: '{source}' is neither a file ({', '.join(FORMATS)}) nor a folder nor a Hub data set "
            f"(user/name or user/name:config) nor a sample ({', '.join(SAMPLE + name for name in _samples(root))})"
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
    return {split: read_file(found[0]) for split, found in files.items() if found}


def _sample_files(folder: Path, split: str) -> list[Path]:
    """The file of a split, if there is one: a list of one path, or none."""
    paths = [folder / f"{split}{suffix}" for suffix in FORMATS]
    return [path for path in paths if path.is_file()][:1]


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

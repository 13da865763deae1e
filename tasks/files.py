"""Columns of files, such as images and recordings: their bytes, or paths of them."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hf_efficient.data import DataSettings
from hf_efficient.tasks.columns import TEXT

_BYTES = ("binary", "large_binary")


class FileData(DataSettings):
    """Settings of data that names files."""

    def folders(self) -> list[Path]:
        """Where relative paths may start: here, and where the data files are."""
        files = [Path(source).expanduser() for source in (self.train, self.validation, self.test) if source]
        return [Path(), *dict.fromkeys(file.parent for file in files if file.is_file())]


def holds_files(feature: Any) -> bool:
    """Whether a column holds bytes, paths, or both in one struct, as `datasets` has files that it does not decode."""
    is_struct = isinstance(feature, Mapping) and bool({"bytes", "path"} & set(feature))
    return is_struct or getattr(feature, "dtype", None) in (*TEXT, *_BYTES)


def contents(value: Any) -> tuple[Any, str]:
    """Bytes of a file, or else its path, from a row's value; and the name of the file, empty where it has none."""
    if isinstance(value, Mapping):
        given, name = value.get("bytes"), str(value.get("path") or "")
        return name if given is None else given, name
    return value, "" if isinstance(value, bytes) else str(value)


def is_named(value: Any) -> bool:
    """Whether a row's value names a file, and does not hold its bytes.

    What is in such files may change under their names, and the cache of `datasets` would not know.
    """
    return isinstance(contents(value)[0], str)


def file_named(name: str, folders: Sequence[Path]) -> Path:
    """The file called ``name`` in the first of ``folders`` that has it; in the last one if none has."""
    paths = [folder / Path(name).expanduser() for folder in folders]
    return next((path for path in paths if path.is_file()), paths[-1])

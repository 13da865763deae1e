"""Atomic writes: a reader sees the old file or the new one, never half of one."""

import contextlib
import errno
import json
import os
import re
import shutil
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hf_efficient.errors import ConfigError

_SHARED = "shared"
_LEFTOVER = re.compile(rf"\.(?P<name>.+)\.([0-9a-f]{{8}}|{_SHARED})\.(?P<ending>tmp|old)")
_FULL = "free some space there, or write to another disk"
_DENIED = "make the folder writable for this user, or write elsewhere"
_IN_THE_WAY = "move what is in the way, or write elsewhere"
_REMEDIES = {
    errno.ENOSPC: _FULL,
    getattr(errno, "EDQUOT", errno.ENOSPC): _FULL,  # not on Windows
    errno.EACCES: _DENIED,
    errno.EPERM: _DENIED,
    errno.EROFS: _DENIED,
    errno.EEXIST: _IN_THE_WAY,
    errno.EISDIR: _IN_THE_WAY,
    errno.ENOTDIR: _IN_THE_WAY,
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.EFBIG: "write to a file system that takes larger files",
    errno.EIO: "check that disk, or write to another one",
}


@contextlib.contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """A temporary path beside ``path``, renamed to it when the block ends without an error and removed otherwise.

    Missing parent folders are made; what was at ``path`` stays untouched until the rename.

    Raises:
        ConfigError: full disk, missing permission or the like, with what to do; other errors of the block pass as is.
    """
    path = Path(path)
    temporary = _sibling(path, "tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _probe(temporary)
        yield temporary
        _sync_file(temporary)
        os.replace(temporary, path)
        _sync_folder(path.parent)
    except Exception as error:
        _explain(error, path)
        raise
    finally:
        with contextlib.suppress(OSError):  # none there after the rename; a second error would hide the first
            temporary.unlink()


@contextlib.contextmanager
def atomic_folder(path: str | Path, shared: bool = False) -> Iterator[Path]:
    """A temporary folder beside ``path`` that takes its place as a whole when the block ends without an error.

    No file system call swaps two folders everywhere, so an existing ``path`` is moved aside first: between two renames
    there is no folder of that name. If the second rename fails, the old folder is put back; where the process ends
    between them, `remove_leftovers` does so.

    Args:
        shared: several processes write into the temporary folder, by the name that `shared_temporary` tells; what is
            there already is from one that died.

    Raises:
        ConfigError: as for `atomic_path`, or ``path`` is a file.
    """
    path = Path(path)
    temporary = shared_temporary(path) if shared else _sibling(path, "tmp")
    try:
        if path.exists() and not path.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, "it is a file, and a folder is to be written", str(path))
        if shared:
            shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        yield temporary
        for found in temporary.rglob("*"):
            if found.is_file() and not found.is_symlink():
                _sync_file(found)
            elif found.is_dir():
                _sync_folder(found)
        _replace_folder(temporary, path)
        _sync_folder(path.parent)
    except Exception as error:
        _explain(error, path)
        raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def shared_temporary(path: str | Path) -> Path:
    """Where `atomic_folder` writes what becomes ``path``, when it is ``shared``."""
    return Path(path).with_name(f".{Path(path).name}.{_SHARED}.tmp")


def leftovers(folder: str | Path, deep: bool = True) -> list[Path]:
    """What writing left in ``folder``, or ``deep`` below it, when its process died."""
    found = Path(folder).rglob(".*") if deep else Path(folder).glob(".*")
    return sorted(path for path in found if _LEFTOVER.fullmatch(path.name))


def remove_leftovers(folder: str | Path, *, deep: bool = True, older_s: float = 0.0) -> None:
    """Clear ``folder`` of its `leftovers`; a folder that had been moved aside, and not yet replaced, is put back.

    Nothing else may be writing there, or nothing that takes ``older_s`` seconds.
    """
    for path in leftovers(folder, deep):
        if not path.exists() or time.time() - path.stat().st_mtime < older_s:  # some lie in others
            continue
        found = _LEFTOVER.fullmatch(path.name)
        assert found is not None
        if found["ending"] == "old" and not (replaced := path.with_name(found["name"])).exists():
            os.replace(path, replaced)
        elif path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def refuse_other_contents(path: str | Path, marker: str) -> None:
    """Refuse to replace a folder that is neither empty nor an earlier result, which has a file ``marker``.

    Raises:
        ConfigError: it holds something else.
    """
    path = Path(path)
    if path.is_dir() and not (path / marker).is_file() and any(path.iterdir()):
        raise ConfigError(
            f"{path} holds something else (no {marker} in it) and would be replaced; name a new or an empty folder"
        )


def write_text(path: str | Path, text: str) -> None:
    """Write UTF-8 ``text`` to ``path`` atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")


def write_json(path: str | Path, value: Any) -> None:
    """Write plain values to ``path`` as indented JSON, atomically."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def read_json(path: Path) -> Any:
    """
    Raises:
        ConfigError: ``path`` is damaged.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ConfigError(f"{path} is damaged ({error}); move its folder away") from error


def _sibling(path: Path, ending: str) -> Path:
    return path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.{ending}")


def _probe(path: Path) -> None:
    """Fail with a plain OSError where nothing can be written: `torch.save` would say no more than RuntimeError."""
    path.touch()
    path.unlink()


def _sync_file(path: Path) -> None:
    with open(path, "rb+") as handle:
        os.fsync(handle.fileno())


def _sync_folder(path: Path) -> None:
    """Make renames in ``path`` outlast a power failure; Windows cannot open folders, and has no need to."""
    if os.name == "nt":
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _replace_folder(new: Path, path: Path) -> None:
    if not path.exists():
        os.replace(new, path)
        return
    old = _sibling(path, "old")
    os.replace(path, old)
    try:
        os.replace(new, path)
    except OSError:
        os.replace(old, path)
        raise
    shutil.rmtree(old, ignore_errors=True)  # the new folder is in place: a leftover is no failure


def _explain(error: Exception, path: Path) -> None:
    """Raise ConfigError for what the user can put right; return for everything else."""
    number = error.errno if isinstance(error, OSError) and _concerns(error, path) else None
    if _disk_full(error, path.parent):
        number = errno.ENOSPC
    if number in _REMEDIES:
        reason = error.strerror if isinstance(error, OSError) else os.strerror(errno.ENOSPC)
        raise ConfigError(f"cannot write {path}: {reason}; {_REMEDIES[number]}") from error


def _concerns(error: OSError, path: Path) -> bool:
    """Whether ``error`` is about writing ``path``, and not about another file that the block used."""
    if not isinstance(error.filename, str | os.PathLike):
        return True
    named = Path(error.filename)
    return named.is_relative_to(path.parent) or path.is_relative_to(named)


def _disk_full(error: Exception, folder: Path) -> bool:
    """Rust and C++ writers do not raise OSError: safetensors says why in its text, `torch.save` does not at all."""
    if isinstance(error, RuntimeError) and folder.is_dir():
        return shutil.disk_usage(folder).free < 64 * 1024
    return os.strerror(errno.ENOSPC) in str(error) and not isinstance(error, ConfigError)

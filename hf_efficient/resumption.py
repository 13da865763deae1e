"""Checkpoints to resume from: written under another name until they are whole, sealed, checked before they are used.

A process may die while it writes, and disks forget. So a checkpoint gets its name when every process has written its
part and all of it is on the disk; checksums in it (`checksums.json`) tell later whether it is still what was written.
"""

import json
import logging
import os
import re
import zlib
from pathlib import Path

from transformers.trainer_callback import TrainerState
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from hf_efficient.errors import ConfigError
from hf_efficient.files import write_json

logger = logging.getLogger(__name__)

AUTO = "auto"
"""In the place of a checkpoint's path: the newest whole one, or a start from the beginning."""
CHECKSUMS = "checksums.json"
STATE = "trainer_state.json"
_CHUNK = 1 << 20
_NAME = re.compile(rf"{PREFIX_CHECKPOINT_DIR}-(\d+)")


def move_up(folder: Path) -> None:
    """Move what is in ``folder`` beside it, and drop it."""
    for each in folder.iterdir():
        each.rename(folder.parent / each.name)
    folder.rmdir()


def make_newest(checkpoint: Path) -> None:
    """Date ``checkpoint`` after the others in its folder.

    Rotation deletes what is oldest by the clock, which may have been set back since the others were written.
    """
    times = [path.stat().st_mtime_ns for path in checkpoint.parent.glob("*") if _NAME.fullmatch(path.name)]
    if checkpoint.stat().st_mtime_ns < max(times):
        os.utime(checkpoint, ns=(max(times) + 1, max(times) + 1))


def seal(folder: Path) -> None:
    """Note size and CRC-32 of each file in ``folder``."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    write_json(folder / CHECKSUMS, {path.relative_to(folder).as_posix(): _told(path) for path in files})


def _told(path: Path) -> list[int]:
    checksum = 0
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            checksum = zlib.crc32(chunk, checksum)
    return [path.stat().st_size, checksum]


def defect(checkpoint: str | Path) -> str:
    """Why ``checkpoint`` cannot be resumed from; empty: it is whole, as far as can be told."""
    folder = Path(checkpoint)
    try:
        TrainerState.load_from_json(str(folder / STATE))
        sealed = (folder / CHECKSUMS).is_file()
        expected = json.loads((folder / CHECKSUMS).read_text(encoding="utf-8")) if sealed else {}
        for name, (size, checksum) in expected.items():
            path = folder / name
            if not path.is_file():
                return f"{name} is missing"
            if path.stat().st_size != size:
                return f"{name} has {path.stat().st_size} bytes instead of {size}"
            if _told(path)[1] != checksum:
                return f"{name} is not what was written"
    except FileNotFoundError as error:
        return f"{Path(error.filename).name} is missing"
    except (OSError, ValueError, TypeError, AttributeError) as error:  # JSON of another form, too
        return f"{STATE} or {CHECKSUMS} cannot be read ({type(error).__name__}: {error})"
    return ""


def check_whole(checkpoint: str | Path) -> None:
    """
    Raises:
        ConfigError: ``checkpoint`` is damaged.
    """
    if wrong := defect(checkpoint):
        raise ConfigError(f"{checkpoint} is damaged: {wrong}; resume from another checkpoint")


def newest_whole(folder: str | Path) -> str | None:
    """The newest checkpoint in ``folder`` that is whole; those that are not are named in a warning."""
    found = {int(match[1]): path for path in Path(folder).glob("*") if (match := _NAME.fullmatch(path.name))}
    for _, path in sorted(found.items(), reverse=True):
        if not (wrong := defect(path)):
            return str(path)
        logger.warning("%s is passed over: %s", path, wrong)
    return None

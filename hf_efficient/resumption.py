"""Checkpoints to resume from: written under another name until they are whole, sealed, checked before they are used.

A process may die while it writes, and disks forget. So a checkpoint gets its name when every process has written its
part and all of it is on the disk; checksums in it (`checksums.json`) tell later whether it is still what was written.
"""

import json
import logging
import os
import re
import zlib
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from transformers.trainer_callback import TrainerState
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, SaveStrategy, rotate_checkpoints

from hf_efficient.errors import ConfigError
from hf_efficient.files import atomic_folder, shared_temporary, write_json

logger = logging.getLogger(__name__)

AUTO = "auto"
"""In the place of a checkpoint's path: the newest whole one, or a start from the beginning."""
CHECKSUMS = "checksums.json"
_STATE = "trainer_state.json"
_CHUNK = 1 << 20
_NAME = re.compile(rf"{PREFIX_CHECKPOINT_DIR}-(\d+)")


def save_whole(trainer: Any, folder: str, save: Callable[[str], None], sealed: bool) -> str:
    """Write a checkpoint of ``trainer`` into ``folder``, then delete those that `save_total_limit` leaves no place for.

    Args:
        save: stock `_save_checkpoint`, which writes `checkpoint-<step>` and whatever it makes into the folder it gets.
        sealed: with checksums.

    Returns:
        the checkpoint's path.

    Raises:
        ConfigError: full disk or the like, with what to do; what was there stays.
    """
    name, state = f"{PREFIX_CHECKPOINT_DIR}-{trainer.state.global_step}", trainer.state
    target = os.path.join(folder, name)
    writes = trainer.args.should_save
    temporary = shared_temporary(target)
    with atomic_folder(target, shared=True) if writes else nullcontext():
        trainer.accelerator.wait_for_everyone()
        save(str(temporary))
        trainer.accelerator.wait_for_everyone()
        if best := _best(trainer, folder):
            state.best_model_checkpoint = best
        if writes:
            _move_up(temporary / name)
            state.save_to_json(str(temporary / _STATE))  # with the best checkpoint's lasting name
            if sealed:
                seal(temporary)
    trainer.accelerator.wait_for_everyone()
    if writes:
        _make_newest(Path(target))
        rotate_checkpoints(
            output_dir=folder,
            save_total_limit=trainer.args.save_total_limit,
            best_model_checkpoint=state.best_model_checkpoint,
            use_mtime=True,
        )
    return target


def _best(trainer: Any, folder: str) -> str | None:
    """What stock calls the best checkpoint, which it looks for where this one is being written."""
    step = trainer.state.best_global_step
    if not step or trainer.args.save_strategy == SaveStrategy.NO:
        return None
    path = os.path.join(folder, f"{PREFIX_CHECKPOINT_DIR}-{step}")
    return path if step == trainer.state.global_step or os.path.exists(path) else None


def _move_up(folder: Path) -> None:
    for each in folder.iterdir():
        each.rename(folder.parent / each.name)
    folder.rmdir()


def _make_newest(checkpoint: Path) -> None:
    """Rotation deletes what is oldest by the clock, which may have been set back since the others were written."""
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
        TrainerState.load_from_json(str(folder / _STATE))
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
        return f"{_STATE} or {CHECKSUMS} cannot be read ({type(error).__name__}: {error})"
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

"""What was found out of a model's cuts, on disk: a search cuts one model to many shapes, and to one shape many times.

Everything is named by a hash of our version, the weights, the batches and what was asked: nothing is ever stale.
"""

import contextlib
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from hf_efficient import __version__
from hf_efficient.cutting.observation import Batches, Key
from hf_efficient.files import atomic_path, write_json

FOLDER = "cuts"
KEPT = 8
"""Models whose weights are kept: those asked for last are asked for again, by a trial's rungs and its like."""


class Known:
    """Under ``folder``; where that is None, nothing is kept, and everything is computed.

    Args:
        model, batches: that are asked about; ``model`` as it is now.
    """

    def __init__(self, folder: Path | None, model: nn.Module, batches: Batches):
        self._folder = folder and folder / FOLDER
        self._about = _hash(model, batches) if folder else b""

    def orders(self, kind: str, compute: Callable[[], dict[Key, list[int]]]) -> dict[Key, list[int]]:
        """`removal_orders` by an importance."""
        if self._folder is None:
            return compute()
        file = self._file(f"orders {kind}", "json")
        if not file.is_file():
            write_json(file, [[*key, order] for key, order in compute().items()])
        return {(path, index, sub): order for path, index, sub, order in json.loads(file.read_text(encoding="utf-8"))}

    def weights(self, asked: Any, compute: Callable[[], Mapping[str, torch.Tensor]]) -> Mapping[str, torch.Tensor]:
        """State of a model that was cut and repaired.

        Args:
            asked: plain values: the shape, and how it was repaired.
        """
        if self._folder is None:
            return compute()
        file = self._file(json.dumps(asked, sort_keys=True), "safetensors")
        with contextlib.suppress(FileNotFoundError):
            return load_file(file)
        made = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in compute().items()}
        with atomic_path(file) as path:
            save_file(made, path)
        for old in sorted(file.parent.glob("*.safetensors"), key=_written)[:-KEPT]:
            old.unlink(missing_ok=True)
        return made

    def _file(self, asked: str, ending: str) -> Path:
        assert self._folder is not None
        return self._folder / f"{hashlib.sha256(self._about + asked.encode()).hexdigest()[:24]}.{ending}"


def _written(file: Path) -> float:
    try:
        return file.stat().st_mtime
    except FileNotFoundError:  # another process was faster
        return 0.0


def _hash(model: nn.Module, batches: Batches) -> bytes:
    said = hashlib.sha256(__version__.encode())
    for name, tensor in _tensors(model, batches):
        said.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        said.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return said.digest()


def _tensors(model: nn.Module, batches: Batches) -> Iterator[tuple[str, torch.Tensor]]:
    yield from model.named_parameters()
    for batch in batches:
        yield from sorted((name, value) for name, value in batch.items() if isinstance(value, torch.Tensor))

"""How fast models of a shape are here, measured once: speed goes by shapes and the way of serving, not by weights."""

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from torch import nn

from hf_efficient.files import write_json
from hf_efficient.machine import machine
from hf_efficient.search.digest import digest


class SpeedTable:
    """Latency and throughput by shape, each in a file of ``folder``."""

    def __init__(self, folder: Path):
        self.folder = folder

    def find(
        self, names: Iterable[str], model: nn.Module, serving: Mapping[str, Any], measure: Callable[[str], float]
    ) -> dict[str, float]:
        """``latency_ms`` or ``throughput`` of ``model``, or both, by their ``names``.

        Args:
            serving: format and number type of an export, or nothing for PyTorch.
            measure: gives what the table does not have.
        """
        tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
        shapes = [(name, list(tensor.shape), str(tensor.dtype)) for name, tensor in tensors.items()]
        key = digest([type(model).__name__, shapes, dict(serving), machine()])
        found = {}
        for name in sorted(names):
            file = self.folder / f"{key}.{name}.json"
            if not file.is_file():
                write_json(file, measure(name))
            found[name] = float(json.loads(file.read_text(encoding="utf-8")))
        return found

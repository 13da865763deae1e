"""How fast models of a shape are here, measured once: speed goes by shapes and the way of serving, not by weights."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import nn

from hf_efficient.files import write_json
from hf_efficient.machine import machine
from hf_efficient.search.digest import digest

Speeds = dict[str, float]


class SpeedTable:
    """Latency and throughput by shape, in files of ``folder``."""

    def __init__(self, folder: Path):
        self.folder = folder

    def find(self, model: nn.Module, serving: Mapping[str, Any], measure: Callable[[], Any]) -> Speeds:
        """``{"latency_ms", "throughput"}`` of ``model``.

        Args:
            serving: format and number type of an export, or nothing for PyTorch.
            measure: gives the `Timing` where the table has none.
        """
        tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
        shapes = [(name, list(tensor.shape), str(tensor.dtype)) for name, tensor in tensors.items()]
        file = self.folder / f"{digest([type(model).__name__, shapes, dict(serving), machine()])}.json"
        if not file.is_file():
            timing = measure()
            write_json(file, {"latency_ms": timing.latency_ms["p50"], "throughput": timing.throughput})
        found: Speeds = json.loads(file.read_text(encoding="utf-8"))
        return found

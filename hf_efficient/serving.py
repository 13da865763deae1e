"""A model in the runtime that will serve it, for as long as it is timed; nothing is checked or kept."""

import contextlib
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from torch import nn

from hf_efficient.candidates import CANDIDATES
from hf_efficient.conversion import convert
from hf_efficient.errors import ConfigError, unknown
from hf_efficient.optimization import Served
from hf_efficient.runtimes import load_runtime
from hf_efficient.timing import TorchRuntime

TORCH = "torch"
KINDS = {TORCH: None} | {
    format if quantize == "none" else f"{format}-{quantize}": (format, quantize)
    for (format, quantize), candidate in CANDIDATES.items()
    if not candidate.mixed  # which layers stay in float is a matter of accuracy, and only time is measured
}
"""What can serve -> key in `CANDIDATES`: ``onnx-dynamic`` is format ``onnx``, quantize ``dynamic``."""

CALIBRATION = 16
"""Examples that static int8 is calibrated on: its ranges may be rough, since only time is measured."""


@contextlib.contextmanager
def serving(
    model: nn.Module,
    kind: str,
    examples: Sequence[Mapping[str, Any]],
    collate: Callable[[list[Any]], Mapping[str, Any]],
) -> Iterator[Served]:
    """``model`` in the runtime ``kind``, with what to time it on; on the CPU but for ``torch``, which leaves it there.

    Raises:
        ConfigError: no such kind, or no examples.
        MissingDependencyError: its packages are not installed.
        ExportError: the model cannot be converted.
    """
    if kind not in KINDS:
        raise ConfigError(unknown("runtime", kind, KINDS))
    if not len(examples):
        raise ConfigError("a model is timed on real examples, and there are none; pass training data")
    choice = KINDS[kind]
    if choice is None:
        yield Served(TorchRuntime(model), examples, collate)
        return
    with tempfile.TemporaryDirectory() as folder:
        convert(model, CANDIDATES[choice], examples, collate, examples[:CALIBRATION]).save_pretrained(folder)
        yield Served(load_runtime(folder), examples, collate)

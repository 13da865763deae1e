"""Of all ways to export, the fastest that keeps the metric: each is made, checked and measured."""

import shutil
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.table import Table
from tqdm.auto import tqdm

from hf_efficient.candidates import choices
from hf_efficient.errors import ExportError, MissingDependencyError
from hf_efficient.files import atomic_folder
from hf_efficient.wording import file_size


@dataclass
class Tried:
    """One way to export, and what came of it.

    Attributes:
        metric: of the export, the main one; None without metrics.
        bytes, latency_ms, throughput: None where it was refused or cannot be made.
        refused: why it cannot be taken; empty where it can.
        chosen: whether it was.
    """

    format: str
    quantize: str
    metric: float | None = None
    bytes: int | None = None
    latency_ms: float | None = None
    throughput: float | None = None
    refused: str = ""
    chosen: bool = False

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @property
    def is_static(self) -> bool:
        return self.quantize.startswith("static") and not self.refused

    @property
    def slowness(self) -> float:
        """Geometric mean of the times of an example alone and in a batch, in ms."""
        assert self.latency_ms is not None
        assert self.throughput is not None
        return (self.latency_ms * 1000 / self.throughput) ** 0.5


def choose(
    export_one: Callable[[Path, str, str], Any],
    folder: Path,
    format: str,
    quantize: str,
    tell: Callable[[Path, list[Tried]], None],
) -> list[Tried]:
    """Export every choice that ``format`` and ``quantize`` stand for and keep the fastest in ``folder``.

    Mixed precision, which takes long to find, is tried where plain int8 with stored ranges loses too much.

    Args:
        export_one: exports to a folder in a format and a quantization, measured; returns its `ExportResult`.
        tell: notes in the chosen folder, before it takes its place, what was tried.

    Returns:
        all that was tried.

    Raises:
        ExportError: none keeps the metric, or none can be made.
    """
    tried: dict[tuple[str, str], Tried] = {}
    with tempfile.TemporaryDirectory() as temporary:
        for key in tqdm(choices(format, quantize), desc="exports", disable=None):
            if key[1] == "mixed" and any(one.format == key[0] and one.is_static for one in tried.values()):
                continue
            tried[key] = _try(export_one, Path(temporary) / "-".join(key), *key)
        good = {key: one for key, one in tried.items() if not one.refused}
        if not good:
            raise ExportError(
                "no way to export keeps the metric: "
                + "; ".join(f"{'/'.join(key)}: {one.refused}" for key, one in tried.items())
            )
        best = min(good, key=lambda key: good[key].slowness)
        tried[best].chosen = True
        with atomic_folder(folder) as path:
            shutil.copytree(Path(temporary) / "-".join(best), path, dirs_exist_ok=True)
            tell(path, list(tried.values()))
    return list(tried.values())


def _try(export_one: Callable[[Path, str, str], Any], folder: Path, format: str, quantize: str) -> Tried:
    made = Tried(format, quantize)
    try:
        result = export_one(folder, format, quantize)
    except (ExportError, MissingDependencyError) as error:
        made.refused = str(error)
        return made
    main = result.comparison.main_metric
    made.metric = None if main is None else result.metrics[main]
    made.bytes = result.measurement.bytes_on_disk
    made.latency_ms = result.measurement.latency_ms["p50"]
    made.throughput = result.measurement.throughput
    return made


def table(tried: list[Tried]) -> Table:
    """What was tried, for a terminal."""
    made = Table(title="Exports tried", title_justify="left")
    for column in ("format", "quantize", "metric", "size", "ms, 1 example", "examples/s", ""):
        made.add_column(column, justify="left" if column in ("format", "quantize", "") else "right")
    for one in tried:
        figures = ["-"] * 4
        if one.bytes is not None and one.latency_ms is not None and one.throughput is not None:
            metric = "-" if one.metric is None else f"{one.metric:.4f}"
            figures = [metric, file_size(one.bytes), f"{one.latency_ms:.2f}", f"{one.throughput:.0f}"]
        made.add_row(one.format, one.quantize, *figures, "chosen" if one.chosen else one.refused)
    return made

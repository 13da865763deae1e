"""Models of one task side by side: int8 exports of the uncut one, and figures taken in turns."""

import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.harness import Bench
from hf_efficient import export
from hf_efficient.measure import measure

PEERS = (("onnx", "dynamic"), ("onnx", "static"), ("openvino", "static"))
"""What a user gets without us: the usual ways to an int8 export."""

Collate = Callable[[list[Any]], Mapping[str, Any]]


def int8_exports(
    model: Any,
    folder: str | Path,
    peers: Sequence[tuple[str, str]],
    *,
    examples: Any,
    calibration: list[Any],
    collate: Collate,
    metrics: Any,
    main_metric: str = "accuracy",
) -> tuple[dict[str, Any], dict[str, float]]:
    """Runtimes of the exports of ``model``, and how much of the metric each loses; by format and quantization."""
    runtimes, drops = {}, {}
    for format, quantize in peers:
        name = f"{format}-{quantize}"
        made = export.export(
            model,
            Path(folder) / name,
            format=format,
            quantize=quantize,
            examples=examples,
            calibration=calibration,
            collate=collate,
            metrics=metrics,
            main_metric=main_metric,
            max_drop=1,  # to be measured, not refused
            seconds=0,
        )
        runtimes[name], drops[name] = made.runtime(), made.comparison.drop or 0.0
    return runtimes, drops


def best_of(drops: Mapping[str, float], speeds: Mapping[str, Mapping[str, float]]) -> str | None:
    """The fastest of those that lose no more than a point; of all where every one does."""
    good = [name for name, drop in drops.items() if drop <= 0.01] or list(drops)
    return max(good, key=lambda name: speeds[name]["throughput"], default=None)


def in_turns(
    bench: Bench, runtimes: Mapping[str, Any], examples: Mapping[str, list[Any]], collate: Collate
) -> dict[str, dict[str, float]]:
    """Medians over turns of each runtime's figures.

    Args:
        examples: the same inputs as each runtime's own processor encodes them; "" is for those that are not named.
    """
    turns, seconds = (1, 0.2) if bench.quick else (7, 0.5)  # many short ones: others on the machine come in bursts
    found: dict[str, list[Any]] = {name: [] for name in runtimes}
    for _ in range(turns):
        for name, runtime in runtimes.items():
            rows = examples.get(name, examples[""])
            found[name].append(measure(runtime, rows, collate, repeats=1, seconds=seconds))
    return {
        name: {
            "throughput": statistics.median(each.throughput for each in timings),
            "latency_ms": statistics.median(each.latency_ms["p50"] for each in timings),
        }
        for name, timings in found.items()
    }

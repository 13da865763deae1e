"""Figures in words: how every rendering of a report names sizes, times, rates, changes and conditions."""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from hf_efficient.measure import Measurement

NOT_MEASURED = "not measured"

# What a quantity is called when it became less, and when it became more
SIZE, TIME, SPEED = ("smaller", "larger"), ("faster", "slower"), ("slower", "faster")

_RATES = {"accuracy", "f1", "precision", "recall", "auc", "map", "mrr", "ndcg", "exact", "em", "wer", "cer"} | {
    "coverage",
    "diversity",
    "rouge1",
    "rouge2",
    "rougel",
    "rougelsum",
}
"""Words in the names of metrics that are shares of 1, whose difference is told in points of 0.01."""


def is_share(name: str, values: Sequence[float]) -> bool:
    """Whether the metric ``name`` with these values is a share of 1."""
    words = set(re.split(r"[^a-z0-9]+", name.lower()))
    return bool(words & _RATES) and all(0 <= value <= 1 for value in values)


def shown(value: float | None, show: Callable[[float], str]) -> str:
    return NOT_MEASURED if value is None else show(value)


def ratio(before: float, after: float, if_less: str, if_more: str) -> str:
    if before == after:
        return "same"
    less, more = sorted((before, after))
    if less <= 0 or not math.isfinite(more):
        return "not comparable"
    factor = more / less
    if factor < 1.005:
        return "same"
    digits = 2 if factor < 1.1 else 1 if factor < 100 else 0
    return f"{factor:.{digits}f}x {if_less if after < before else if_more}"


def point_change(before: float, after: float) -> str:
    points = 100 * (after - before)
    if before == after:
        return "same"
    return f"{points:+.{1 if abs(points) >= 0.05 else 3}f} points"


def difference(before: float, after: float) -> str:
    if before == after:
        return "same"
    change = after - before
    return ("+" if change > 0 else "") + number(change) if math.isfinite(change) else "not comparable"


def number(value: float) -> str:
    """Three significant digits, in full from 100 up."""
    size = abs(value)
    if isinstance(value, int) or size >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if size >= 10 else f"{value:.2f}" if size >= 1 else f"{value:#.3g}"


def count(value: float) -> str:
    return f"{value:,.0f}"


def file_size(value: float) -> str:
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if value >= size:
            return f"{number(value / size)} {unit}"
    return f"{value} bytes"


def milliseconds(value: float) -> str:
    return f"{number(value)} ms"


def megabytes(value: float) -> str:
    return f"{number(value)} MB"


def rate(value: float) -> str:
    return f"{number(value)} examples/s"


def token_rate(value: float) -> str:
    return f"{number(value)} tokens/s"


def optional(name: str, key: str) -> Callable[[Measurement], float | None]:
    return lambda measurement: (getattr(measurement, name) or {}).get(key)


def machine_of(measurement: Measurement) -> str:
    machine = measurement.machine
    with_accelerator = f", {machine['accelerator']}" if machine["accelerator"] else ""
    return (
        f"{machine['processor']}, {machine['logical_cores']} cores, {machine['memory_gb']} GB memory{with_accelerator}"
    )


def software_of(measurement: Measurement) -> str:
    machine = measurement.machine
    return (
        f"{machine['os']}, Python {machine['python']}, torch {machine['torch']}, transformers {machine['transformers']}"
    )


def lengths_of(measurement: Measurement) -> str:
    counted = f"{measurement.examples:,} real examples"
    lengths = measurement.input_lengths
    if lengths is None:
        return f"{counted}, not tokens"
    told = f"mean {number(lengths['mean'])}, median {number(lengths['p50'])}, longest {lengths['max']}"
    return f"{counted}; tokens: {told}"


def memory_of(measurement: Measurement) -> str:
    libraries = (measurement.peak_memory_mb or {}).get("libraries")
    share = "" if libraries is None else f", of which Python and its libraries {megabytes(libraries)}"
    return f"resident memory of a process that loads the model and predicts a batch{share}"


def for_each(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count} for {purpose}" for purpose, count in counts.items())


def details(figures: Mapping[str, Any]) -> str:
    """Plain values by name, nested ones in parentheses and brackets; the name is told as the line's heading."""
    return _pairs({key: value for key, value in figures.items() if key != "name"}) or "no details"


def _pairs(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} {_plain(value)}" for key, value in values.items() if value is not None)


def _plain(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return number(int(value) if value.is_integer() else value)
    if isinstance(value, Mapping):
        return f"({_pairs(value)})"
    if isinstance(value, list | tuple):
        return f"[{_listed(value)}]"
    return str(value)


def _listed(values: Sequence[Any]) -> str:
    """In short where they are equal, or numbers in a row: layers of a model are many."""
    if len(values) > 3 and all(value == values[0] for value in values):
        return f"{len(values)} times {_plain(values[0])}"
    if len(values) > 3 and all(type(value) is int and value == values[0] + n for n, value in enumerate(values)):
        return f"{values[0]} to {values[-1]}"
    return ", ".join(map(_plain, values))


def escaped(text: str) -> str:
    return text.replace("\n", " ").replace("|", "\\|").replace("<", "&lt;")

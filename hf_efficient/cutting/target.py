"""Hitting a target: speed or size, chosen by cost table and then checked on the very shape that was chosen."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

from torch import nn

from hf_efficient.cutting.costs import Costs, parameter_costs, served, time_costs, timed
from hf_efficient.cutting.error_table import levels
from hf_efficient.cutting.observation import Key
from hf_efficient.cutting.search import Found, Search, all_units
from hf_efficient.cutting.shape import Shape, cut_copy
from hf_efficient.errors import ConfigError
from hf_efficient.optimization import Context, Served

TARGETS = ("target_speedup", "target_latency_ms", "target_size_mb", "target_parameters")

CLOSE = 0.05
"""How far, relatively, the time of the chosen shape may be from the target before the budget is corrected."""
CORRECTIONS = 3
REFUSALS = 3
"""How often the smallest shape has to miss a target before it is refused: one time may be disturbed."""


@dataclass(frozen=True)
class Target:
    """What a cut model must reach.

    Attributes:
        name: of `TARGETS`.
        runtime, batch_size: where and how time is measured.
        uniform: see `Search.within`.
    """

    name: str
    value: float
    runtime: str
    batch_size: int
    uniform: bool = False

    @property
    def timed(self) -> bool:
        return self.name in ("target_speedup", "target_latency_ms")

    def milliseconds(self, uncut_ms: float) -> float:
        return uncut_ms / self.value if self.name == "target_speedup" else self.value


def reach(target: Target, search: Search, context: Context, layers: dict[str, list[int]] | None) -> dict[str, Any]:
    """The shape that keeps most of ``search``'s model within ``target``, as plain values with what led to it.

    Args:
        layers: those that stay; None leaves them to the search.

    Raises:
        ConfigError: no shape meets the target; with the best that can be met.
    """
    if target.timed:
        return _timed(target, search, context, layers)
    bytes_each = next(search.model.parameters()).element_size() if target.name == "target_size_mb" else None
    costs = parameter_costs(search.model, bytes_each)
    found = search.within(costs, target.value, target.uniform, layers)
    if found is None:
        least = costs.total(_widths_of(search.shape(*_smallest(search, layers, target.uniform), search.kinds[0])))
        raise ConfigError(
            f"{target.name}={target.value:g} cannot be met: the smallest shape has {least:.4g} {costs.unit}; "
            "ask for no less"
        )
    return {"shape": found.shape.to_dict(), **found.told()}


def _timed(target: Target, search: Search, context: Context, layers: dict[str, list[int]] | None) -> dict[str, Any]:
    if context.serving is None:
        raise ConfigError(f"{target.name} needs real examples to time, which this training does not give")
    serve = context.serving

    def serving(model: nn.Module) -> AbstractContextManager[Served]:
        return serve(model, target.runtime)

    costs = time_costs(search.model, serving, target.batch_size)
    with served(search.model, serving) as uncut:

        def times(shape: Shape) -> dict[str, float]:
            with served(cut_copy(search.model, shape), serving) as small:
                return timed({"uncut": uncut, "cut": small}, target.batch_size)

        budget = target.milliseconds(timed({"uncut": uncut}, target.batch_size)["uncut"])
        smallest = _smallest(search, layers, target.uniform)
        least = search.shape(*smallest, search.kinds[0])
        table_ms = costs.total(_widths_of(least))
        best = _corrected(target, search, costs, budget, times, layers) if table_ms <= budget else None
        if best is None:  # the table may have been disturbed while it was measured: the shape has the last word
            measured = _possible(target, lambda: times(least))
            budget = target.milliseconds(measured["uncut"]) * table_ms / measured["cut"]
            best = _corrected(target, search, costs, budget, times, layers) or (search.best_of(*smallest), measured)
    found, measured = best
    return {"shape": found.shape.to_dict(), **found.told(), "measured": _measured(target, measured)}


def _possible(target: Target, times: Callable[[], dict[str, float]]) -> dict[str, float]:
    """How long the smallest shape takes.

    Raises:
        ConfigError: it misses the target, each of `REFUSALS` times.
    """
    made: list[dict[str, float]] = []
    while len(made) < REFUSALS:
        made.append(times())
        if made[-1]["cut"] <= target.milliseconds(made[-1]["uncut"]):
            return made[-1]
    raise ConfigError(_impossible(target, min(made, key=lambda each: each["cut"] / each["uncut"])))


def _corrected(
    target: Target,
    search: Search,
    costs: Costs,
    budget: float,
    times: Callable[[Shape], dict[str, float]],
    layers: dict[str, list[int]] | None,
) -> tuple[Found, dict[str, float]] | None:
    """The shape whose measured time is nearest to the target; the table's error is taken out of ``budget``."""
    made: list[tuple[float, Found, dict[str, float]]] = []
    for _ in range(CORRECTIONS):
        found = search.within(costs, budget, target.uniform, layers)
        if found is None:
            break
        measured = times(found.shape)
        wanted = target.milliseconds(measured["uncut"])
        off = measured["cut"] / wanted - 1
        made.append((abs(off), found, measured))
        if abs(off) <= CLOSE:
            break
        budget *= wanted / measured["cut"]
        layers = found.shape.layers  # the depth is settled: only widths are corrected
    if not made:
        return None
    _, found, measured = min(made, key=lambda each: each[0])
    return found, measured


def _measured(target: Target, times: dict[str, float]) -> dict[str, Any]:
    return {
        "runtime": target.runtime,
        "batch_size": target.batch_size,
        "uncut_ms": times["uncut"],
        "cut_ms": times["cut"],
        "speedup": times["uncut"] / times["cut"],
    }


def _impossible(target: Target, times: dict[str, float]) -> str:
    best = f"{times['uncut'] / times['cut']:.2g} times" if target.name == "target_speedup" else f"{times['cut']:.3g} ms"
    return (
        f"{target.name}={target.value:g} cannot be met: the smallest shape reaches {best} here (runtime "
        f"{target.runtime}, batch size {target.batch_size}). Ask for less, or serve with a faster runtime"
    )


def _smallest(
    search: Search, layers: dict[str, list[int]] | None, uniform: bool
) -> tuple[dict[str, list[int]], dict[Key, int]]:
    """Layers and widths of the smallest shape there is."""
    kept = layers or search.kept_layers(1)
    widths = {
        key: count if uniform and key[2] != "ffn" else levels(count)[-1]
        for key, count in all_units(search.model, kept).items()
    }
    return kept, widths


def _widths_of(shape: Shape) -> dict[str, list[dict[str, int]]]:
    counts = shape.widths()
    return {
        path: [{kind: rows[i] for kind, rows in counts.get(path, {}).items()} for i in range(len(kept))]
        for path, kept in shape.layers.items()
    }

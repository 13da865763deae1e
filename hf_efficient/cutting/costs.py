"""What each part of a model costs: parameters, bytes, or milliseconds as measured in the runtime that will serve."""

import bisect
import contextlib
import copy
import statistics
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from torch import nn

from hf_efficient.blocks import layer_stacks, layers_of, units_of
from hf_efficient.cutting.shape import Shape, cut_copy, parameters_of
from hf_efficient.errors import ConfigError
from hf_efficient.families import ATTENTION, FFN, LayerStack
from hf_efficient.machine import measurement_lock
from hf_efficient.optimization import Served
from hf_efficient.timing import Work, best_threads, undisturbed

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Serving = Callable[[nn.Module], AbstractContextManager[Served]]

ROUNDS, LEAST_SECONDS = 7, 0.15
"""Turns that each model takes when several are timed together, and how long a turn lasts at least."""


@dataclass(frozen=True)
class Costs:
    """Cost of a model as a sum over its parts.

    Attributes:
        unit: "ms", "MB" or "parameters".
        rest: outside the layers.
        layers: path of a stack -> of one layer, beside its units.
        units: path of a stack -> kind of sublayer -> number of units -> cost; in between it is interpolated.
    """

    unit: str
    rest: float
    layers: dict[str, float]
    units: dict[str, dict[str, dict[int, float]]]

    def of(self, stack: str, kind: str, count: int) -> float:
        known = sorted(self.units[stack][kind].items())
        counts = [each for each, _ in known]
        at = min(max(bisect.bisect_left(counts, count), 1), len(known) - 1)
        (low, cheap), (high, dear) = known[at - 1], known[at]
        # Below zero where times are noisy, or where the line goes on beyond the narrowest that was timed
        return max(0.0, cheap + (dear - cheap) * (count - low) / (high - low))

    def layer(self, stack: str, counts: Mapping[str, int]) -> float:
        """Cost of a layer whose sublayers have ``counts`` units."""
        return self.layers[stack] + sum(self.of(stack, kind, count) for kind, count in counts.items())

    def total(self, widths: Mapping[str, Sequence[Mapping[str, int]]]) -> float:
        """Cost of a model; ``widths``: path of a stack -> for each layer, units of each kind."""
        return self.rest + sum(self.layer(stack, counts) for stack, layers in widths.items() for counts in layers)


def parameter_costs(model: "PreTrainedModel", bytes_each: float | None = None) -> Costs:
    """Parameters, or MB where ``bytes_each`` says how many bytes a parameter takes."""
    scale, found = (1.0 if bytes_each is None else bytes_each / 1e6), parameters_of(model)
    units: dict[str, dict[str, dict[int, float]]] = {}
    for path, parts in found["stacks"].items():
        units[path] = {kind: {0: 0.0, 1: one * scale} for kind, one in parts["units"].items()}
    layers = {path: parts["layer"] * scale for path, parts in found["stacks"].items()}
    return Costs("parameters" if bytes_each is None else "MB", found["rest"] * scale, layers, units)


def time_costs(model: "PreTrainedModel", serving: Serving, batch_size: int) -> Costs:
    """Milliseconds for a batch, from a few cut copies of ``model`` timed in the runtime that will serve.

    Copies differ in the width of one kind of sublayer, or in depth, so that differences tell what each part costs.
    Weights do not matter, so nothing is repaired.
    """
    layers: dict[str, float] = {}
    units: dict[str, dict[str, dict[int, float]]] = {}
    rest = []  # what copies that differ in this stack have beside its layers: other stacks in full, too
    stacks = layer_stacks(model)
    for stack in stacks:
        plan = _Copies(model, stack)
        times = time_together(plan.models(), serving, batch_size)
        layer, deep, one = plan.reference, times["reference"], times["shallow"]
        each = max((deep - one) / (plan.depth - 1), 1e-6) if plan.depth > 1 else deep / 2
        rest.append(max(one - each, 0.0))
        units[stack.path] = {}
        for kind, reference in layer.items():
            row = {
                count: max(each + (times[f"{kind} {count}"] - deep) / plan.depth, 1e-6)
                for count in plan.counts[kind]
                if count != reference
            }
            units[stack.path][kind] = _increasing({**row, reference: each})
        # Each kind's row holds whole layers; what they share is the reference layer, counted once too often for each
        layers[stack.path] = -each * (len(layer) - 1)
    found = Costs("ms", 0.0, layers, units)
    whole = [found.layer(stack.path, _counts(model, stack)) * len(layers_of(model, stack)) for stack in stacks]
    beside = [each - sum(whole) + own for each, own in zip(rest, whole, strict=True)]
    return replace(found, rest=max(statistics.fmean(beside), 0.0))


def _counts(model: "PreTrainedModel", stack: LayerStack) -> dict[str, int]:
    layer = layers_of(model, stack)[0]
    return {sublayer.kind: units_of(model, layer, sublayer) for sublayer in stack.sublayers}


def _increasing(row: dict[int, float]) -> dict[int, float]:
    """More units never cost less, but for noise."""
    found, greatest = {}, 0.0
    for count in sorted(row):
        greatest = max(greatest, row[count])
        found[count] = greatest
    return found


class _Copies:
    """Cut copies of a model that tell what the parts of one stack cost."""

    def __init__(self, model: "PreTrainedModel", stack: LayerStack):
        self.model, self.stack = model, stack
        layers = layers_of(model, stack)
        self.depth = min(len(layers), 4)
        totals = _counts(model, stack)
        if not totals:
            raise ConfigError(
                f"cannot cut inside the layers of a '{model.config.model_type}' model; set keep_layers instead"
            )
        shares = {ATTENTION: (1 / 12, 1 / 3, 1), FFN: (1 / 16, 1 / 4, 1)}
        self.counts = {
            kind: sorted({max(1, round(total * share)) for share in shares[kind]}) for kind, total in totals.items()
        }
        self.reference = {kind: counts[min(1, len(counts) - 1)] for kind, counts in self.counts.items()}

    def models(self) -> dict[str, nn.Module]:
        made = {"reference": self._copy(self.depth, {}), "shallow": self._copy(1, {})}
        for kind, counts in self.counts.items():
            for count in counts:
                if count != self.reference[kind]:
                    made[f"{kind} {count}"] = self._copy(self.depth, {kind: count})
        return made

    def _copy(self, depth: int, counts: Mapping[str, int]) -> nn.Module:
        shape = Shape.of(self.model)
        shape.layers[self.stack.path] = list(range(depth))
        widths = {**self.reference, **counts}
        shape.units = {self.stack.path: {kind: [list(range(count))] * depth for kind, count in widths.items()}}
        return cut_copy(self.model, shape)


def time_together(models: Mapping[str, nn.Module], serving: Serving, batch_size: int) -> dict[str, float]:
    """Milliseconds for a batch of real examples of each model, median; the models take turns, so that a machine that
    speeds up or slows down does so for all.
    """
    with contextlib.ExitStack() as stack:
        return timed({name: stack.enter_context(served(model, serving)) for name, model in models.items()}, batch_size)


def served(model: nn.Module, serving: Serving) -> AbstractContextManager[Served]:
    """A copy of ``model`` in the runtime that will serve."""
    return serving(copy.deepcopy(model).eval())


def timed(models: Mapping[str, Served], batch_size: int) -> dict[str, float]:
    """As `time_together`, of models that are served already."""
    works = {
        name: Work(
            one.runtime,
            list(one.examples),
            one.collate,
            prepare_is_timed=False,
            size=min(batch_size, len(one.examples)),
        )
        for name, one in models.items()
    }
    with measurement_lock(), undisturbed(next(iter(works.values())).runtime):
        for work in works.values():
            best_threads(work, warmup=2)
        return {name: statistics.median(turns) for name, turns in _turns(works).items()}


def _turns(works: Mapping[str, Work]) -> dict[str, list[float]]:
    """Milliseconds of an average batch in each turn; a turn runs over the same examples for every model."""
    found: dict[str, list[float]] = {name: [] for name in works}
    batches = {}
    for name, work in works.items():
        seconds = work.run()[0]
        work.position = 0
        whole = -(-len(work.items) // work.size)
        batches[name] = whole * max(1, round(LEAST_SECONDS / max(seconds * whole, 1e-6)))
    for _ in range(ROUNDS):
        for name, work in works.items():
            runs: list[Any] = [work.run() for _ in range(batches[name])]
            found[name].append(1000 * work.size * sum(run for run, _ in runs) / sum(count for _, count in runs))
    return found

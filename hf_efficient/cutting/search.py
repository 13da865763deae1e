"""Which shape keeps most of a model within a budget."""

import functools
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from hf_efficient.blocks import layer_stacks, layers_of, units_of
from hf_efficient.cutting.costs import Costs
from hf_efficient.cutting.error_table import drop_order, error_table
from hf_efficient.cutting.importance import IMPORTANCES, removal_orders
from hf_efficient.cutting.known import Known
from hf_efficient.cutting.observation import Batches, Key, divergence, logits_on, moments, streams
from hf_efficient.cutting.shape import Shape, cut, cut_copy, repair
from hf_efficient.cutting.trial import SHARE, Taught, Trial, halving, rungs
from hf_efficient.functional.allocation import allocate
from hf_efficient.functional.structured import Moments

if TYPE_CHECKING:
    from transformers import PreTrainedModel

HELD_OUT = 4
"""Every fourth calibration batch judges cuts, and is kept from the fits: batches are sorted by length, and any run of
them would be of like lengths only."""
CANDIDATES = 6
"""Depths that are cut, repaired and compared at most."""
TABLE_BATCHES = 3
"""Batches on which single cuts are judged; whole shapes are judged on all that are kept for it."""

_TOLD = ("importance", "divergence", "after_trial")


@dataclass
class Found:
    """A shape, and how it did on calibration data.

    Attributes:
        importance: of `IMPORTANCES`, by which its units were chosen.
        divergence: from the uncut model after repair, see `observation.divergence`.
        after_trial: the same after the last `Trial` that it was in; None where there was none.
        tried: each shape that was compared: layers, importance, divergence, and the latter after its trial.
    """

    shape: Shape
    importance: str
    divergence: float
    after_trial: float | None = None
    tried: list[dict[str, Any]] = field(default_factory=list)

    def told(self) -> dict[str, Any]:
        return {"importance": self.importance, "divergence": self.divergence, "tried": self.tried}


class Search:
    """What is known of a model's cuts on calibration batches, computed once for any number of budgets.

    Args:
        batches: labels included; every fourth is kept from the fits and judges the results.
        importance: one of `IMPORTANCES`, or "auto" to compare them.
        repairing: whether cuts will be repaired.
        steps: of the training to come; a tenth of them goes into trials of the shapes in question. 0: none comes.
        rate: its learning rate.
        folder: where other trainings look up what was found out; None: there are none.
    """

    def __init__(
        self,
        model: "PreTrainedModel",
        batches: Batches,
        importance: str = "obs",
        repairing: bool = True,
        steps: int = 0,
        rate: float = 1e-4,
        folder: Path | None = None,
    ):
        self.model, self.repairing = model, repairing
        self._known = Known(folder, model, batches)
        self.steps, self.rate = int(SHARE * steps), rate
        every = min(HELD_OUT, len(batches))
        self.judging = batches[every - 1 :: every]
        self.fitting = [batch for index, batch in enumerate(batches) if (index + 1) % every] or batches
        self.reference = logits_on(model, self.judging)
        self.kinds = IMPORTANCES if importance == "auto" else (importance,)
        self._orders: dict[str, dict[Key, list[int]]] = {}
        self._last: tuple[Shape, Mapping[str, torch.Tensor]] | None = None

    def _few(self) -> tuple[Batches, list[torch.Tensor]]:
        """Batches of all lengths on which single cuts are judged, and the uncut model's logits."""
        step = -(-len(self.judging) // TABLE_BATCHES)
        return self.judging[::step], self.reference[::step]

    @functools.cached_property
    def wanted(self) -> dict[Key, list[torch.Tensor]]:
        """What a repaired model's residual stream should be: that of the model when it is first asked for."""
        return streams(self.model, self.fitting)

    def look(self) -> None:
        """Note what repairs will be made towards, for who changes the model before it is cut."""
        if self.repairing:
            _ = self.wanted

    @functools.cached_property
    def moments(self) -> dict[Key, Moments]:
        return moments(self.model, self.fitting)

    def orders(self, kind: str) -> dict[Key, list[int]]:
        """`removal_orders` by an importance; only where units go is it worth its time."""
        if kind not in self._orders:
            self._orders[kind] = self._known.orders(
                kind, lambda: removal_orders(self.model, kind, self.fitting, self.moments)
            )
        return self._orders[kind]

    @functools.cached_property
    def errors(self) -> dict[Key, dict[int, float]]:
        return error_table(self.model, *self._few(), self.moments, self.orders(self.kinds[0]))

    @functools.cached_property
    def drops(self) -> dict[str, list[tuple[int, float]]]:
        return drop_order(self.model, *self._few())

    def within(
        self, costs: Costs, budget: float, uniform: bool = False, layers: dict[str, list[int]] | None = None
    ) -> Found | None:
        """The shape that diverges least among those that cost no more than ``budget``; None if there is none.

        Args:
            uniform: one feed-forward width for all layers, and all heads.
            layers: those that stay; None tries several depths.
        """
        shapes = []
        for kept in self._depths() if layers is None else [layers]:
            widths = self._uniform(kept, costs, budget) if uniform else self._widths(kept, costs, budget)
            if widths is not None:
                shapes.append(self.shape(kept, widths, self.kinds[0]))
        if not shapes:
            return None
        best, *others = self._ranked(shapes)
        return self._compared(best, others, best.shape.layers, self._counts(best.shape))

    def best_of(self, layers: dict[str, list[int]], widths: Mapping[Key, int]) -> Found:
        """The shape with these layers and widths, its units chosen by whichever importance diverges least."""
        return self._compared(self.judged(layers, widths, self.kinds[0]), [], layers, widths)

    def _compared(
        self, best: Found, others: list[Found], layers: dict[str, list[int]], widths: Mapping[Key, int]
    ) -> Found:
        """``best``, or the same with the units that another importance chooses."""
        alike = [best, *(self.judged(layers, widths, kind) for kind in self.kinds[1:] if widths)]
        chosen = min(alike, key=lambda found: found.divergence)
        chosen.tried = [
            {"layers": found.shape.layers, **{name: getattr(found, name) for name in _TOLD}}
            for found in (*others, *alike)
        ]
        return chosen

    def _ranked(self, shapes: Sequence[Shape]) -> list[Found]:
        """``shapes`` cut, repaired and compared, the best first; where training follows, after trials of it."""
        trying = bool(rungs(len(shapes), self.steps))
        taught = Taught(self.model, self.fitting if trying else [])
        found, trials = [], []
        for shape in shapes:
            made = self._made(shape)
            found.append(Found(shape, self.kinds[0], divergence(made, self.judging, self.reference)))
            if trying:
                trials.append(Trial(made, taught, self.rate))
        ranking = sorted(range(len(found)), key=lambda index: found[index].divergence)
        for judged in halving(trials, self.steps, lambda model: divergence(model, self.judging, self.reference)):
            for index, after in judged:
                found[index].after_trial = after
            going = [index for index, _ in judged]
            ranking = [*going, *(index for index in ranking if index not in going)]
        return [found[index] for index in ranking]

    def judged(self, layers: dict[str, list[int]], widths: Mapping[Key, int], importance: str) -> Found:
        """The shape with these layers and units, cut, repaired and compared.

        Args:
            widths: units of each sublayer, by its layer's index in the uncut model.
        """
        shape = self.shape(layers, widths, importance)
        made = cut_copy(self.model, shape)
        if self.repairing:
            made.load_state_dict(self._repaired(shape))
        return Found(shape, importance, divergence(made, self.judging, self.reference))

    def _made(self, shape: Shape) -> "PreTrainedModel":
        """A copy of the model, cut to ``shape`` and repaired."""
        made = cut_copy(self.model, shape)
        if self.repairing:
            repair(made, shape, self.fitting, self.wanted)
        return made

    def _repaired(self, shape: Shape) -> Mapping[str, torch.Tensor]:
        """State of a model of ``shape`` after its repair; the last one that was asked for is at hand."""
        if self._last is None or self._last[0] != shape:
            self._last = shape, self._known.weights(shape.to_dict(), lambda: self._made(shape).state_dict())
        return self._last[1]

    def shape(self, layers: dict[str, list[int]], widths: Mapping[Key, int], importance: str) -> Shape:
        units: dict[str, dict[str, list[list[int]]]] = {}
        for path, kept in layers.items():
            kinds = {kind for stack, _, kind in widths if stack == path}
            units[path] = {
                kind: [sorted(self.orders(importance)[path, i, kind][-widths[path, i, kind] :]) for i in kept]
                for kind in sorted(kinds)
            }
        return Shape(layers, units)

    def apply(self, model: "PreTrainedModel", shape: Shape) -> None:
        """Cut ``model``, which is the one that was searched or equal to it, and repair it."""
        repaired = self._repaired(shape) if self.repairing else None  # while the model is whole
        cut(model, shape)
        if repaired is not None:
            model.load_state_dict(repaired)

    def _counts(self, shape: Shape) -> dict[Key, int]:
        return {
            (path, index, kind): len(kept)
            for path, kinds in shape.units.items()
            for kind, rows in kinds.items()
            for index, kept in zip(shape.layers[path], rows, strict=True)
        }

    def kept_layers(self, keep: int) -> dict[str, list[int]]:
        """Indices of the ``keep`` layers of each stack that are missed most."""
        return {
            stack.path: self._remaining(stack.path, len(layers_of(self.model, stack)), keep)
            for stack in layer_stacks(self.model)
        }

    def _depths(self) -> list[dict[str, list[int]]]:
        """Layers that stay, from all to one, in at most `CANDIDATES` steps; stacks shrink together.

        Of each depth those that are missed most when layers go one by one; and, where trials can compare them, evenly
        spread ones: which layers cannot be missed now says little about which are the best to train on from.
        """
        stacks = {stack.path: stack for stack in layer_stacks(self.model)}
        totals = {path: len(layers_of(self.model, stack)) for path, stack in stacks.items()}
        deepest = max(totals.values())
        steps = sorted({round(step) for step in torch.linspace(1, deepest, min(CANDIDATES, deepest)).tolist()})
        counts = [
            {
                path: total if stacks[path].layers_stay else max(1, round(total * depth / deepest))
                for path, total in totals.items()
            }
            for depth in reversed(steps)
        ]
        counts = [each for index, each in enumerate(counts) if each not in counts[:index]]
        missed = [{path: self._remaining(path, total, each[path]) for path, total in totals.items()} for each in counts]
        spread = [{path: _spread(total, each[path]) for path, total in totals.items()} for each in counts]
        found = [*missed, *(each for each in spread if each not in missed)]
        return found if rungs(len(found), self.steps) else missed

    def _remaining(self, path: str, total: int, keep: int) -> list[int]:
        gone = {index for index, _ in self.drops[path][: total - keep]} if keep < total else set()
        return [index for index in range(total) if index not in gone]

    def _widths(self, layers: dict[str, list[int]], costs: Costs, budget: float) -> dict[Key, int] | None:
        keys = [key for key in self.errors if key[1] in layers[key[0]]]
        left = budget - costs.rest - sum(costs.layers[path] * len(kept) for path, kept in layers.items())
        options = [list(self.errors[key]) for key in keys]
        errors = [list(self.errors[key].values()) for key in keys]
        prices = [
            [costs.of(path, kind, count) for count in counts]
            for (path, _, kind), counts in zip(keys, options, strict=True)
        ]
        chosen = allocate(errors, prices, left)
        if chosen is None:
            return None
        return {key: counts[option] for key, counts, option in zip(keys, options, chosen, strict=True)}

    def _uniform(self, layers: dict[str, list[int]], costs: Costs, budget: float) -> dict[Key, int] | None:
        """All heads, and the greatest feed-forward width that the budget allows."""
        widths: dict[Key, int] = {}
        tables = {key: row for key, row in self.errors.items() if key[1] in layers[key[0]]}
        ffn = [key for key in tables if key[2] == "ffn"]
        fixed = {key: max(row) for key, row in tables.items() if key[2] != "ffn"}
        for counts in itertools.zip_longest(*(list(tables[key]) for key in ffn)):
            widths = {**fixed, **dict(zip(ffn, counts, strict=True))}
            price = costs.rest + sum(costs.layers[path] * len(kept) for path, kept in layers.items())
            price += sum(costs.of(path, kind, count) for (path, _, kind), count in widths.items())
            if price <= budget:
                return widths
        return None


def _spread(total: int, keep: int) -> list[int]:
    return [round(index) for index in torch.linspace(0, total - 1, keep).tolist()]


def all_units(model: "PreTrainedModel", layers: Mapping[str, Sequence[int]]) -> dict[Key, int]:
    """Units of every sublayer of the layers that stay."""
    return {
        (stack.path, index, sublayer.kind): units_of(model, layers_of(model, stack)[index], sublayer)
        for stack in layer_stacks(model)
        for index in layers[stack.path]
        for sublayer in stack.sublayers
    }

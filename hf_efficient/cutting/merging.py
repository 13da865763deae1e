"""Units of a model that become one: which, chosen over all layers by what is lost, and their weights added up."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from hf_efficient.blocks import layers_of, output_of, sublayers_of, unit_size, units_of
from hf_efficient.cutting.error_table import WIDE, WIDTH_STEP
from hf_efficient.cutting.observation import Key, key_of
from hf_efficient.cutting.shape import Shape
from hf_efficient.functional.merge import Merger
from hf_efficient.functional.structured import Moments, matrix

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass
class Merges:
    """What becomes one; plain values throughout.

    Attributes:
        pairs: for each sublayer that loses units its key and, in this order, [unit that goes, unit it becomes part of].
        lost: sum over the sublayers of the share of their outputs' variance that is lost before repair.
    """

    pairs: list[tuple[Key, list[list[int]]]]
    lost: float = 0.0

    @property
    def count(self) -> int:
        return sum(len(pairs) for _, pairs in self.pairs)

    def to_list(self) -> list[Any]:
        return [[*key, pairs] for key, pairs in self.pairs]

    @classmethod
    def from_list(cls, values: list[Any]) -> "Merges":
        return cls([((path, index, kind), pairs) for path, index, kind, pairs in values])

    def shape(self, model: "PreTrainedModel") -> Shape:
        """What is left of ``model``, which has all units still."""
        shape = Shape.of(model)
        gone = {key: {pair[0] for pair in pairs} for key, pairs in self.pairs}
        kinds = {kind for _, _, kind in gone}
        for stack, index, sublayer in sublayers_of(model):
            if sublayer.kind in kinds:
                units = range(units_of(model, layers_of(model, stack)[index], sublayer))
                left = [unit for unit in units if unit not in gone.get(key_of(stack, index, sublayer), ())]
                shape.units.setdefault(stack.path, {}).setdefault(sublayer.kind, []).append(left)
        return shape


def find_merges(
    model: "PreTrainedModel", moments: Mapping[Key, Moments], shares: Mapping[str, float], alike: float
) -> Merges:
    """The merges that lose least, one after the other, each where it is cheapest.

    Wide sublayers that lose units are brought to a width that kernels like.

    Args:
        moments: of each output projection's inputs with its outputs.
        shares: kind of sublayer -> share of all its units, over the layers, that goes.
        alike: see `Merger`.
    """
    found: dict[Key, list[list[int]]] = {}
    lost = 0.0
    for kind, share in shares.items():
        mergers = _mergers(model, moments, kind, alike)
        wanted = round(share * sum(len(merger.left) for merger in mergers.values()))
        while wanted > 0 or any(_is_uneven(merger) for merger in mergers.values()):
            offers = {key: m.cheapest() for key, m in mergers.items() if wanted > 0 or _is_uneven(m)}
            key = min(offers, key=lambda key: offers[key][0])
            cost, gone, into = offers[key]
            if cost == float("inf"):
                break
            mergers[key].merge(gone, into)
            found.setdefault(key, []).append([gone, into])
            lost, wanted = lost + cost, wanted - 1
    return Merges(list(found.items()), lost)


def _is_uneven(merger: Merger) -> bool:
    """Whether a sublayer has lost units, but not down to a width that kernels like."""
    units, left = len(merger.left), int(merger.left.sum())
    return left < units and units >= WIDE and left % WIDTH_STEP > 0


def _mergers(model: "PreTrainedModel", moments: Mapping[Key, Moments], kind: str, alike: float) -> dict[Key, Merger]:
    made = {}
    for stack, index, sublayer in sublayers_of(model):
        if sublayer.kind == kind:
            key, output = key_of(stack, index, sublayer), output_of(layers_of(model, stack)[index], sublayer)
            made[key] = Merger(moments[key], matrix(output), unit_size(model, sublayer), alike)
    return made


@torch.no_grad()
def fold(model: "PreTrainedModel", moments: Mapping[Key, Moments], merges: Merges) -> None:
    """Let the units that stay give what those that go gave; these give nothing any more, and can be cut."""
    pairs = dict(merges.pairs)
    for stack, index, sublayer in sublayers_of(model):
        key = key_of(stack, index, sublayer)
        if key not in pairs:
            continue
        output = output_of(layers_of(model, stack)[index], sublayer)
        merger = Merger(moments[key], matrix(output), unit_size(model, sublayer))
        for gone, into in pairs[key]:
            merger.merge(gone, into)
        matrix(output).copy_(merger.weight)
        if output.bias is not None:
            output.bias.add_(merger.bias.to(output.bias))

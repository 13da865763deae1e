"""The shape of a cut: which layers and which of their units stay; making the cut, and repairing what is left."""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Self

import torch

from hf_efficient.blocks import (
    cut_layers,
    cut_units,
    inputs_of,
    layer_stacks,
    layers_of,
    output_of,
    simplify_manifest,
    unit_size,
    units_of,
)
from hf_efficient.cutting.observation import Batches, Key, moments_towards
from hf_efficient.functional.structured import matrix, repaired

if TYPE_CHECKING:
    from transformers import PreTrainedModel, TrainingArguments

RIDGE = 0.01
"""Pull of a repaired projection towards its old weights, relative to the mean square of its inputs."""


@dataclass
class Shape:
    """What is left of a model; plain values throughout.

    Attributes:
        layers: path of a stack -> indices of the layers that stay, as they were numbered before.
        units: path of a stack -> kind of sublayer -> for each layer that stays, the units that do; a kind that is not
            named keeps all.
    """

    layers: dict[str, list[int]]
    units: dict[str, dict[str, list[list[int]]]]

    @classmethod
    def of(cls, model: "PreTrainedModel") -> Self:
        """The whole of ``model``."""
        return cls({s.path: list(range(len(layers_of(model, s)))) for s in layer_stacks(model)}, {})

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def widths(self) -> dict[str, dict[str, list[int]]]:
        """As `units`, but how many."""
        return {
            path: {kind: [len(kept) for kept in layers] for kind, layers in kinds.items()}
            for path, kinds in self.units.items()
        }


def cut(model: "PreTrainedModel", shape: Shape) -> None:
    """Cut ``model`` to ``shape``, in place; config and manifest follow."""
    for stack in layer_stacks(model):
        if len(shape.layers[stack.path]) < len(layers_of(model, stack)):
            cut_layers(model, stack, shape.layers[stack.path])
        for sublayer in stack.sublayers:
            for index, kept in enumerate(shape.units.get(stack.path, {}).get(sublayer.kind, [])):
                if len(kept) < units_of(model, layers_of(model, stack)[index], sublayer):
                    cut_units(model, stack, index, sublayer, kept)
    simplify_manifest(model)


def fits(model: "PreTrainedModel", shape: Shape) -> bool:
    """Whether ``model`` has this shape already."""
    for stack in layer_stacks(model):
        layers = layers_of(model, stack)
        if len(layers) != len(shape.layers[stack.path]):
            return False
        for sublayer in stack.sublayers:
            for layer, kept in zip(layers, shape.units.get(stack.path, {}).get(sublayer.kind, []), strict=False):
                if units_of(model, layer, sublayer) != len(kept):
                    return False
    return True


def repair(
    model: "PreTrainedModel",
    shape: Shape,
    batches: Batches,
    wanted: Mapping[Key, Sequence[torch.Tensor]],
    ridge: float = RIDGE,
) -> None:
    """Refit the output projections of a cut ``model``, first to last, so that its residual stream is as it was before.

    Each fit sees the inputs that the layers before it, already refitted, give, and so makes up for their errors as
    well, and for whole layers that are gone.

    Args:
        wanted: `streams` of the uncut model on ``batches``.
    """
    for stack in layer_stacks(model):
        for index, before in enumerate(shape.layers[stack.path]):
            layer = layers_of(model, stack)[index]
            for sublayer in stack.sublayers:
                target = wanted[stack.path, before, sublayer.kind]
                found = moments_towards(model, stack, index, sublayer, batches, target)
                output = output_of(layer, sublayer)
                columns = torch.arange(matrix(output).shape[1])
                weight, bias = repaired(found, columns, matrix(output), ridge)
                matrix(output).copy_(weight)
                if output.bias is not None:
                    output.bias.data.copy_(bias)


def applied_alike(model: "PreTrainedModel", shape: Shape, apply: Callable[[], None], args: "TrainingArguments") -> None:
    """``apply`` a cut and its repair on the main process, and hand the others its weights: they must train the very
    same model."""
    if args.process_index == 0:
        apply()
    else:
        cut(model, shape)
    if args.world_size > 1:
        with torch.no_grad():
            for parameter in model.parameters():
                torch.distributed.broadcast(parameter.data, 0)


def cut_copy(model: "PreTrainedModel", shape: Shape) -> "PreTrainedModel":
    """A cut copy of ``model``, not repaired."""
    made = copy.deepcopy(model)
    cut(made, shape)
    return made


def parameters_of(model: "PreTrainedModel") -> dict[str, Any]:
    """Parameters of a model by what can be cut: per unit of each kind, per layer beside units, and the rest.

    Returns:
        ``{"rest": int, "stacks": {path: {"layer": int, "units": {kind: int}}}}``, of each stack's last layer.
    """
    stacks: dict[str, Any] = {}
    total = sum(parameter.numel() for parameter in model.parameters())
    for stack in layer_stacks(model):
        layers = layers_of(model, stack)
        layer = layers[-1]
        units = {}
        inside = 0
        for sublayer in stack.sublayers:
            size, count = unit_size(model, sublayer), units_of(model, layer, sublayer)
            output = output_of(layer, sublayer)
            one = len(matrix(output)) * size
            for _, module in inputs_of(layer, sublayer):
                one += sum(parameter.numel() for parameter in module.parameters()) // count
            units[sublayer.kind] = one
            inside += one * count
        whole = sum(parameter.numel() for parameter in layer.parameters())
        stacks[stack.path] = {"layer": whole - inside, "units": units}
        total -= sum(parameter.numel() for each in layers for parameter in each.parameters())
    return {"rest": total, "stacks": stacks}

"""Hidden states and query, key, value projections of chosen layers, caught while a model runs."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from hf_efficient.blocks import inputs_of, layer_stacks, layers_of
from hf_efficient.errors import ConfigError
from hf_efficient.families import ATTENTION, FAMILIES, LayerStack
from hf_efficient.functional.packing import padded

if TYPE_CHECKING:
    from transformers import PreTrainedModel

RELATIONS = ("query", "key", "value")

Place = tuple[int, int]
"""(stack, layer), both counted from 0."""


@dataclass
class Capture:
    """Forward hooks on a model's layers; `remove` takes them off again.

    Attributes:
        model: whose layers they sit on.
        hidden: layers whose outputs are caught, named ``hidden.<stack>.<layer>``.
        relations: layers whose self-attention's projections are caught, named ``query.<stack>.<layer>`` and so on.
        training_only: catch nothing while the model evaluates.

    Raises:
        ConfigError: a family without a row in `FAMILIES`, or a layer without such projections.
    """

    model: "PreTrainedModel"
    hidden: Sequence[Place] = ()
    relations: Sequence[Place] = ()
    training_only: bool = False
    _caught: dict[str, torch.Tensor] = field(default_factory=dict, init=False)
    _handles: list[Any] = field(default_factory=list, init=False)

    def __post_init__(self) -> None:
        if not self.hidden and not self.relations:
            return
        rows = layer_stacks(self.model)
        stacks = [layers_of(self.model, row) for row in rows]
        for stack, layer in self.hidden:
            self._hook(stacks[stack][layer], stacks[stack][layer], [f"hidden.{stack}.{layer}"])
        for stack, layer in self.relations:
            names = [f"{relation}.{stack}.{layer}" for relation in RELATIONS]
            modules = projections(stacks[stack][layer], rows[stack])
            if len(modules) == 1:
                self._hook(modules[0], stacks[stack][layer], names)
            else:
                for module, name in zip(modules, names, strict=True):
                    self._hook(module, stacks[stack][layer], [name])

    def take(self) -> dict[str, torch.Tensor]:
        """What the last forward pass left: name -> (examples, positions, width); forgotten here."""
        caught, self._caught = self._caught, {}
        return caught

    def remove(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles, self._caught = [], {}

    def _hook(self, module: nn.Module, layer: nn.Module, names: Sequence[str]) -> None:
        def note(module: nn.Module, inputs: Any, output: Any) -> None:
            if module.training or not self.training_only:
                value = padded(layer, output if isinstance(output, torch.Tensor) else output[0])
                self._caught.update(zip(names, value.chunk(len(names), dim=-1), strict=True))

        self._handles.append(module.register_forward_hook(note))


def projections(layer: nn.Module, stack: LayerStack) -> Sequence[nn.Module]:
    """The modules that compute query, key and value of a layer's self-attention: three, or one for all.

    Raises:
        ConfigError: the family's row in `FAMILIES` names none; what asks for them is a setting called attention.
    """
    attention = next((sublayer for sublayer in stack.sublayers if sublayer.kind == ATTENTION), None)
    if attention is None:
        raise ConfigError(f"query, key and value of a {type(layer).__name__} are not known; set attention: 0")
    return [module for _, module in inputs_of(layer, attention)][: len(RELATIONS)]


def depths(model: Any, name: str, remedy: str) -> list[int]:
    """Layers in each stack of ``model``.

    Raises:
        ConfigError: a family without a row in `FAMILIES`, or a model wrapped by another library; starts with ``name``,
            ends in ``remedy``.
    """
    family = getattr(getattr(model, "config", None), "model_type", type(model).__name__)
    if family not in FAMILIES or hasattr(model, "peft_config"):
        what = "a model that carries PEFT adapters" if hasattr(model, "peft_config") else f"a '{family}' model"
        raise ConfigError(
            f"{name} cannot look into the layers of {what}; {remedy}. Supported families: {', '.join(FAMILIES)}"
        )
    return [len(layers_of(model, stack)) for stack in layer_stacks(model)]

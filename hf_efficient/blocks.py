"""Where the layers of a model family are: one table row per family."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import nn

from hf_efficient.checkpoint import keep_shapes_of_layers
from hf_efficient.errors import ConfigError
from hf_efficient.functional.structured import keep_layers, renumber

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class LayerStack:
    """A stack of equal layers.

    Attributes:
        path: from the base model to the `nn.ModuleList`.
        count: config field with the number of layers.
        per_layer: config fields that hold a list with one entry per layer.
        first_is_special: layer 0 is built unlike the others, so it cannot be dropped.
    """

    path: str
    count: str = "num_hidden_layers"
    per_layer: tuple[str, ...] = ()
    first_is_special: bool = False


_ENCODER = (LayerStack("encoder.layer"),)
_FLAT = (LayerStack("layers"),)
_SEQ2SEQ = (LayerStack("encoder.layers", "encoder_layers"), LayerStack("decoder.layers", "decoder_layers"))

FAMILIES: dict[str, tuple[LayerStack, ...]] = {
    "bart": _SEQ2SEQ,
    "bert": _ENCODER,
    "deberta-v2": _ENCODER,
    "deit": _FLAT,
    "distilbert": (LayerStack("transformer.layer", "n_layers"),),
    "electra": _ENCODER,
    "marian": _SEQ2SEQ,
    # layer 0 has no attention norm, because the embeddings end in one
    "modernbert": (LayerStack("layers", per_layer=("layer_types",), first_is_special=True),),
    "roberta": _ENCODER,
    "vit": _FLAT,
    "xlm-roberta": _ENCODER,
}
"""`config.model_type` -> its layer stacks."""


def layer_stacks(model: "PreTrainedModel") -> tuple[LayerStack, ...]:
    """The layer stacks of ``model``.

    Raises:
        ConfigError: a family that is not in the table, or a model wrapped by another library.
    """
    family = getattr(getattr(model, "config", None), "model_type", type(model).__name__)
    if family not in FAMILIES:
        raise ConfigError(f"cannot cut layers of a '{family}' model; supported families: {', '.join(FAMILIES)}")
    return FAMILIES[family]


def layers_of(model: "PreTrainedModel", stack: LayerStack) -> nn.ModuleList:
    """The live `nn.ModuleList` of ``stack`` in ``model``."""
    return model.base_model.get_submodule(stack.path)  # type: ignore[return-value]


def replace_layers(model: "PreTrainedModel", stack: LayerStack, layers: nn.ModuleList) -> None:
    """Put ``layers`` in the place of the stack; the config is left alone (see `cut_layers`)."""
    model.base_model.set_submodule(stack.path, layers)


def cut_layers(model: "PreTrainedModel", stack: LayerStack, indices: Sequence[int]) -> None:
    """Keep only the layers at ``indices`` (ascending), and make the config say so: stock loading rebuilds it."""
    layers = keep_layers(layers_of(model, stack), indices)
    renumber(layers)
    replace_layers(model, stack, layers)
    keep_shapes_of_layers(model, stack.path, indices)
    for name in stack.per_layer:
        values = getattr(model.config, name)
        setattr(model.config, name, [values[index] for index in indices])
    setattr(model.config, stack.count, len(indices))

"""Layers of a model, and heads and features inside them: found, cut out, and written into config and manifest."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from torch import nn

from hf_efficient.checkpoint import forget_shapes, keep_shapes_of_layers, record_shapes
from hf_efficient.errors import ConfigError
from hf_efficient.families import FAMILIES, FFN, LayerStack, Sublayer
from hf_efficient.functional.structured import (
    Projection,
    keep_layers,
    matrix,
    narrowed,
    renumber,
    rows_of_units,
    size_names,
)

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def layer_stacks(model: "PreTrainedModel") -> tuple[LayerStack, ...]:
    """The layer stacks of ``model``.

    Raises:
        ConfigError: a family that is not in the table, a model wrapped by another library, or one with weights that are
            tied to the number of layers.
    """
    family = getattr(getattr(model, "config", None), "model_type", type(model).__name__)
    if family not in FAMILIES:
        raise ConfigError(f"cannot cut layers of a '{family}' model; supported families: {', '.join(FAMILIES)}")
    config: Any = model.config
    if getattr(config, "use_weighted_layer_sum", False):
        raise ConfigError(
            "the model's head weighs its layers, so none can go; set use_weighted_layer_sum to false in its config"
        )
    if getattr(config, "use_mid_position_embeddings", False):
        raise ConfigError(
            "the model adds positions of their own after each of its layers, so none can go; take one whose config has "
            "use_mid_position_embeddings set to false, as that of hustvl/yolos-tiny has"
        )
    built = (one for one in FAMILIES[family] if one.when is None or getattr(config, one.when[0]) == one.when[1])
    return tuple(one for one in built if _has(model.base_model, one.path))


def _has(module: nn.Module, path: str) -> bool:
    try:
        module.get_submodule(path)
    except AttributeError:
        return False
    return True


def require_heads_can_go(model: "PreTrainedModel", name: str, setting: str, value: float) -> None:
    """Refuse to take heads away, as the ``setting`` of the optimization ``name`` asks, where none can go.

    Raises:
        ConfigError: with the reason.
    """
    for stack in layer_stacks(model):
        if stack.heads_stay:
            raise ConfigError(
                f"{name}.{setting}={value:g}: no head of this model can go, because {stack.heads_stay}; drop {setting}"
            )


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
    if stack.count:
        setattr(model.config, stack.count, len(indices))
    if getattr(model.config, "stage_names", None):  # of a backbone, one after each layer; loading checks them
        config: Any = model.config
        config.stage_names = config.stage_names[: len(indices) + 1]
        config.set_output_features_output_indices(out_features=None, out_indices=None)


def sublayers_of(model: "PreTrainedModel") -> Iterator[tuple[LayerStack, int, Sublayer]]:
    """Every sublayer that can be cut, in the order of computation: its stack, its layer's index, and what it is."""
    for stack in layer_stacks(model):
        for index in range(len(layers_of(model, stack))):
            for sublayer in stack.sublayers:
                yield stack, index, sublayer


def inputs_of(layer: nn.Module, sublayer: Sublayer) -> list[tuple[str, Projection]]:
    """Path and module of the input projections that ``layer`` has."""
    modules: dict[str, Any] = dict(layer.named_modules())
    return [(path, modules[path]) for path in sublayer.inputs if path in modules]


def output_of(layer: nn.Module, sublayer: Sublayer) -> Projection:
    return layer.get_submodule(sublayer.output)  # type: ignore[return-value]


def unit_size(model: "PreTrainedModel", sublayer: Sublayer) -> int:
    """Columns of the output projection that belong to one unit: a head's width, or 1."""
    if sublayer.kind == FFN:
        return 1
    config: Any = model.config
    return config.hidden_size // config.num_attention_heads  # cutting heads leaves both as they were


def units_of(model: "PreTrainedModel", layer: nn.Module, sublayer: Sublayer) -> int:
    """How many units ``layer`` has."""
    return matrix(output_of(layer, sublayer)).shape[1] // unit_size(model, sublayer)


def cut_units(model: "PreTrainedModel", stack: LayerStack, index: int, sublayer: Sublayer, kept: Sequence[int]) -> None:
    """Keep only the units ``kept`` (ascending) of a sublayer, and note its shapes in the manifest."""
    layer, size = layers_of(model, stack)[index], unit_size(model, sublayer)
    where, shapes = f"{stack.path}.{index}", {}
    for path, module in inputs_of(layer, sublayer):
        rows = rows_of_units(kept, size, len(matrix(module)), sublayer.parts)
        layer.set_submodule(path, narrowed(module, rows=rows))
        shapes[f"{where}.{path}"] = {size_names(module)[1]: len(rows)}
    output = output_of(layer, sublayer)
    columns = rows_of_units(kept, size, matrix(output).shape[1])
    layer.set_submodule(sublayer.output, narrowed(output, columns=columns))
    shapes[f"{where}.{sublayer.output}"] = {size_names(output)[0]: len(columns)}
    if sublayer.count is not None:
        path, attribute = sublayer.count
        sizes = {attribute: len(kept), **({sublayer.width: len(columns)} if sublayer.width else {})}
        for name, value in sizes.items():
            setattr(layer.get_submodule(path), name, value)
        shapes[f"{where}.{path}"] = sizes
    record_shapes(model, shapes)


def simplify_manifest(model: "PreTrainedModel") -> None:
    """Say by the config alone what it can say: one feed-forward width in all layers of a stack.

    A model whose other shapes are the config's as well then loads anywhere, with nothing imported.
    """
    for stack in layer_stacks(model):
        ffn = next((sublayer for sublayer in stack.sublayers if sublayer.kind == FFN), None)
        layers = layers_of(model, stack)
        widths = {matrix(output_of(layer, ffn)).shape[1] for layer in layers} if ffn else set()
        if ffn is None or len(widths) != 1 or not stack.width:
            continue
        setattr(model.config, stack.width, widths.pop())
        paths = [path for path, _ in inputs_of(layers[0], ffn)]
        forget_shapes(model, [f"{stack.path}.{i}.{path}" for i in range(len(layers)) for path in (*paths, ffn.output)])


def share_out(model: "PreTrainedModel", device: str) -> None:
    """Leave each process of the default group a part of the weights, on its device of this type.

    They come together layer by layer while the model computes (FSDP2), so all processes have to run it together.
    """
    from torch.distributed import get_world_size
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(device, (get_world_size(),))
    for stack in layer_stacks(model):
        for layer in layers_of(model, stack):
            fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)

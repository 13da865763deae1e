"""Where the layers of a model family, and what can be cut inside them, are: one table row per family."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import nn

from hf_efficient.checkpoint import forget_shapes, keep_shapes_of_layers, record_shapes
from hf_efficient.errors import ConfigError
from hf_efficient.functional.structured import keep_layers, narrowed, renumber, rows_of_units

if TYPE_CHECKING:
    from transformers import PreTrainedModel

ATTENTION, FFN = "attention", "ffn"


@dataclass(frozen=True)
class Sublayer:
    """Attention or feed-forward network of a layer: units that can be cut, each some rows in and some columns out.

    A unit is a head, or one intermediate feature of the feed-forward network.

    Attributes:
        kind: `ATTENTION` or `FFN`.
        inputs: paths, from the layer, of the projections whose rows belong to units.
        output: path of the projection whose columns do.
        stream: path of the module whose input is the residual stream just after the sublayer; empty where that is the
            layer's output.
        parts: blocks of rows in each input projection that every unit has a share of: 3 where query, key and value are
            one matrix.
        count: module and attribute that hold the number of units, where the forward pass reads it.
        width: attribute of the same module that holds their width together, likewise.
    """

    kind: str
    inputs: tuple[str, ...]
    output: str
    stream: str
    parts: int = 1
    count: tuple[str, str] | None = None
    width: str = ""


@dataclass(frozen=True)
class LayerStack:
    """A stack of equal layers.

    Attributes:
        path: from the base model to the `nn.ModuleList`.
        count: config field with the number of layers.
        per_layer: config fields that hold a list with one entry per layer.
        first_is_special: layer 0 is built unlike the others, so it cannot be dropped.
        sublayers: what can be cut inside a layer; empty where only whole layers can.
        width: config field with the width of the feed-forward network; empty where stacks share one.
        heads_stay: why no head can go, where none can.
        stable: value of the config field ``do_stable_layer_norm`` of a family that has two ways to build its layers.
    """

    path: str
    count: str = "num_hidden_layers"
    per_layer: tuple[str, ...] = ()
    first_is_special: bool = False
    sublayers: tuple[Sublayer, ...] = ()
    width: str = "intermediate_size"
    heads_stay: str = ""
    stable: bool | None = None


def _bert(query: str = "query", key: str = "key", value: str = "value", positions: tuple[str, ...] = ()) -> LayerStack:
    inputs = tuple(f"attention.self.{name}" for name in (query, key, value, *positions))
    heads = ("attention.self", "num_attention_heads")
    return LayerStack(
        "encoder.layer",
        sublayers=(
            Sublayer(ATTENTION, inputs, "attention.output.dense", "attention.output.LayerNorm", count=heads),
            Sublayer(FFN, ("intermediate.dense",), "output.dense", "output.LayerNorm"),
        ),
    )


def _bart(side: str, after: tuple[str, str] = ("self_attn_layer_norm", "final_layer_norm")) -> LayerStack:
    """``after``: what takes the residual stream after each sublayer: its own norm, or the next one's."""
    attention = tuple(f"self_attn.{name}_proj" for name in "qkv")
    return LayerStack(
        f"{side}.layers",
        f"{side}_layers",
        sublayers=(
            Sublayer(ATTENTION, attention, "self_attn.out_proj", after[0], count=("self_attn", "num_heads")),
            Sublayer(FFN, ("fc1",), "fc2", after[1]),
        ),
        width=f"{side}_ffn_dim",
    )


def _wav2vec2(stable: bool) -> LayerStack:
    """Norms come after sublayers, or before them where that is more stable."""
    attention = tuple(f"attention.{name}_proj" for name in "qkv")
    dense = "feed_forward.intermediate_dense", "feed_forward.output_dense"
    after = ("final_layer_norm", "") if stable else ("layer_norm", "final_layer_norm")
    return LayerStack(
        "encoder.layers",
        sublayers=(
            Sublayer(ATTENTION, attention, "attention.out_proj", after[0]),
            Sublayer(FFN, dense[:1], dense[1], after[1]),
        ),
        stable=stable,
    )


_BERT = (_bert(),)
_SEQ2SEQ = (_bart("encoder"), _bart("decoder"))
_WHISPER = (_bart("encoder", ("final_layer_norm", "")), _bart("decoder", ("encoder_attn_layer_norm", "")))
_VIT = (
    LayerStack(
        "layers",
        sublayers=(
            Sublayer(
                ATTENTION,
                ("attention.q_proj", "attention.k_proj", "attention.v_proj"),
                "attention.o_proj",
                "layernorm_after",
                count=("attention", "num_attention_heads"),
            ),
            Sublayer(FFN, ("mlp.fc1",), "mlp.fc2", ""),
        ),
    ),
)
_YOLOS = (
    LayerStack(
        "encoder.layer",
        sublayers=(
            Sublayer(
                ATTENTION,
                ("attention.attention.query", "attention.attention.key", "attention.attention.value"),
                "attention.output.dense",
                "layernorm_after",
                count=("attention.attention", "num_attention_heads"),
                width="all_head_size",
            ),
            Sublayer(FFN, ("intermediate.dense",), "output.dense", ""),
        ),
    ),
)
_DISTILBERT = (
    LayerStack(
        "transformer.layer",
        "n_layers",
        sublayers=(
            Sublayer(
                ATTENTION,
                ("attention.q_lin", "attention.k_lin", "attention.v_lin"),
                "attention.out_lin",
                "sa_layer_norm",
                count=("attention", "n_heads"),
            ),
            Sublayer(FFN, ("ffn.lin1",), "ffn.lin2", "output_layer_norm"),
        ),
        width="hidden_dim",
    ),
)
_MODERNBERT = (
    LayerStack(
        "layers",
        per_layer=("layer_types",),
        first_is_special=True,  # it has no attention norm, because the embeddings end in one
        sublayers=(
            Sublayer(ATTENTION, ("attn.Wqkv",), "attn.Wo", "mlp_norm", parts=3),
            Sublayer(FFN, ("mlp.Wi",), "mlp.Wo", "", parts=2),  # what is gated, and the gates
        ),
    ),
)

_MPNET = (
    LayerStack(
        "encoder.layer",
        sublayers=(Sublayer(FFN, ("intermediate.dense",), "output.dense", "output.LayerNorm"),),
        heads_stay="all layers read one table of position biases, with a column for each head",
    ),
)


def _t5(side: str, count: str, last: int) -> LayerStack:
    feed_forward = f"layer.{last}.DenseReluDense"
    gated = tuple(f"{feed_forward}.{name}" for name in ("wi", "wi_0", "wi_1"))  # one, or two
    return LayerStack(
        f"{side}.block",
        count,
        first_is_special=True,  # it has the table of position biases
        sublayers=(Sublayer(FFN, gated, f"{feed_forward}.wo", ""),),
        width="",
        heads_stay="all layers read the first one's table of position biases, with a column for each head",
    )


_T5 = (_t5("encoder", "num_layers", 1), _t5("decoder", "num_decoder_layers", 2))


def _llama(*per_layer: str) -> tuple[LayerStack, ...]:
    feed_forward = Sublayer(FFN, ("mlp.gate_proj", "mlp.up_proj"), "mlp.down_proj", "")
    return (
        LayerStack(
            "layers",
            per_layer=per_layer,
            sublayers=(feed_forward,),
            heads_stay="groups of heads share keys and values",
        ),
    )


_WAV2VEC2 = (_wav2vec2(False), _wav2vec2(True))

FAMILIES: dict[str, tuple[LayerStack, ...]] = {
    "audio-spectrogram-transformer": _VIT,
    "bart": _SEQ2SEQ,
    "bert": _BERT,
    # without share_att_key, positions have projections of their own
    "deberta-v2": (_bert("query_proj", "key_proj", "value_proj", ("pos_key_proj", "pos_query_proj")),),
    "deit": _VIT,
    "distilbert": _DISTILBERT,
    "electra": _BERT,
    "hubert": _WAV2VEC2,
    "llama": _llama(),
    "marian": _SEQ2SEQ,
    "mistral": _llama(),
    "modernbert": _MODERNBERT,
    "mpnet": _MPNET,
    "mt5": _T5,
    "qwen2": _llama("layer_types"),
    "qwen3": _llama("layer_types"),
    "roberta": _BERT,
    "t5": _T5,
    "vit": _VIT,
    "wav2vec2": _WAV2VEC2,
    "whisper": _WHISPER,
    "xlm-roberta": _BERT,
    "yolos": _YOLOS,
}
"""`config.model_type` -> its layer stacks."""


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
    return tuple(one for one in FAMILIES[family] if one.stable in (None, getattr(config, "do_stable_layer_norm", None)))


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
    setattr(model.config, stack.count, len(indices))


def sublayers_of(model: "PreTrainedModel") -> Iterator[tuple[LayerStack, int, Sublayer]]:
    """Every sublayer that can be cut, in the order of computation: its stack, its layer's index, and what it is."""
    for stack in layer_stacks(model):
        for index in range(len(layers_of(model, stack))):
            for sublayer in stack.sublayers:
                yield stack, index, sublayer


def inputs_of(layer: nn.Module, sublayer: Sublayer) -> list[tuple[str, nn.Linear]]:
    """Path and module of the input projections that ``layer`` has."""
    modules: dict[str, Any] = dict(layer.named_modules())
    return [(path, modules[path]) for path in sublayer.inputs if path in modules]


def output_of(layer: nn.Module, sublayer: Sublayer) -> nn.Linear:
    return layer.get_submodule(sublayer.output)  # type: ignore[return-value]


def unit_size(model: "PreTrainedModel", sublayer: Sublayer) -> int:
    """Columns of the output projection that belong to one unit: a head's width, or 1."""
    if sublayer.kind == FFN:
        return 1
    config: Any = model.config
    return config.hidden_size // config.num_attention_heads  # cutting heads leaves both as they were


def units_of(model: "PreTrainedModel", layer: nn.Module, sublayer: Sublayer) -> int:
    """How many units ``layer`` has."""
    return output_of(layer, sublayer).in_features // unit_size(model, sublayer)


def cut_units(model: "PreTrainedModel", stack: LayerStack, index: int, sublayer: Sublayer, kept: Sequence[int]) -> None:
    """Keep only the units ``kept`` (ascending) of a sublayer, and note its shapes in the manifest."""
    layer, size = layers_of(model, stack)[index], unit_size(model, sublayer)
    where, shapes = f"{stack.path}.{index}", {}
    for path, module in inputs_of(layer, sublayer):
        rows = rows_of_units(kept, size, module.out_features, sublayer.parts)
        layer.set_submodule(path, narrowed(module, rows=rows))
        shapes[f"{where}.{path}"] = {"out_features": len(rows)}
    output = output_of(layer, sublayer)
    columns = rows_of_units(kept, size, output.in_features)
    layer.set_submodule(sublayer.output, narrowed(output, columns=columns))
    shapes[f"{where}.{sublayer.output}"] = {"in_features": len(columns)}
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
        widths = {output_of(layer, ffn).in_features for layer in layers} if ffn else set()
        if ffn is None or len(widths) != 1 or not stack.width:
            continue
        setattr(model.config, stack.width, widths.pop())
        paths = [path for path, _ in inputs_of(layers[0], ffn)]
        forget_shapes(model, [f"{stack.path}.{i}.{path}" for i in range(len(layers)) for path in (*paths, ffn.output)])

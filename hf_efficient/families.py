"""Where the layers of a model family, and what can be cut inside them, are: one table row per family."""

from dataclasses import dataclass
from typing import Any

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
        scale: path of the parameter by which the layer multiplies what the sublayer adds to the stream; empty where
            there is none.
    """

    kind: str
    inputs: tuple[str, ...]
    output: str
    stream: str
    parts: int = 1
    count: tuple[str, str] | None = None
    width: str = ""
    scale: str = ""


@dataclass(frozen=True)
class LayerStack:
    """A stack of equal layers.

    Attributes:
        path: from the base model to the `nn.ModuleList`.
        count: config field with the number of layers; empty where `layers_stay`.
        per_layer: config fields that hold a list with one entry per layer.
        first_is_special: layer 0 is built unlike the others, so it cannot be dropped.
        sublayers: what can be cut inside a layer; empty where only whole layers can.
        width: config field with the width of the feed-forward network; empty where stacks share one.
        heads_stay: why no head can go, where none can.
        layers_stay: why no whole layer can go, where none can.
        when: config field and its value with which a family that has two ways to build its layers builds these.
    """

    path: str
    count: str = "num_hidden_layers"
    per_layer: tuple[str, ...] = ()
    first_is_special: bool = False
    sublayers: tuple[Sublayer, ...] = ()
    width: str = "intermediate_size"
    heads_stay: str = ""
    layers_stay: str = ""
    when: tuple[str, Any] | None = None


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


_QKV = tuple(f"attention.{name}_proj" for name in "qkv")


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
    dense = "feed_forward.intermediate_dense", "feed_forward.output_dense"
    after = ("final_layer_norm", "") if stable else ("layer_norm", "final_layer_norm")
    return LayerStack(
        "encoder.layers",
        sublayers=(
            Sublayer(ATTENTION, _QKV, "attention.out_proj", after[0]),
            Sublayer(FFN, dense[:1], dense[1], after[1]),
        ),
        when=("do_stable_layer_norm", stable),
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
                _QKV,
                "attention.o_proj",
                "layernorm_after",
                count=("attention", "num_attention_heads"),
            ),
            Sublayer(FFN, ("mlp.fc1",), "mlp.fc2", ""),
        ),
    ),
)


def _dinov2(gated: bool) -> LayerStack:
    inputs, output = (("gate_proj", "up_proj"), "down_proj") if gated else (("fc1",), "fc2")
    heads = ("attention", "num_attention_heads")
    return LayerStack(
        "encoder.layer",
        sublayers=(
            Sublayer(ATTENTION, _QKV, "attention.o_proj", "norm2", count=heads, scale="layer_scale1.lambda1"),
            Sublayer(FFN, tuple(f"mlp.{name}" for name in inputs), f"mlp.{output}", "", scale="layer_scale2.lambda1"),
        ),
        width="",  # the config has a ratio, for both kinds of network
        when=("use_swiglu_ffn", gated),
    )


_DINOV2 = (_dinov2(False), _dinov2(True))
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


_GPT2 = (
    LayerStack(
        "h",
        "n_layer",
        sublayers=(
            Sublayer(
                ATTENTION, ("attn.c_attn",), "attn.c_proj", "ln_2", 3, count=("attn", "num_heads"), width="split_size"
            ),
            Sublayer(FFN, ("mlp.c_fc",), "mlp.c_proj", ""),
        ),
        width="n_inner",
    ),
)


def _swin(stage: int) -> LayerStack:
    return LayerStack(
        f"encoder.layers.{stage}.blocks",
        "",
        sublayers=(Sublayer(FFN, ("mlp.fc1",), "mlp.fc2", ""),),
        width="",  # the config has a ratio
        heads_stay="each layer has a table of position biases, with a column for each head",
        layers_stay="every other layer of a stage shifts its windows",
    )


_SWIN = tuple(_swin(stage) for stage in range(4))
_WAV2VEC2 = (_wav2vec2(False), _wav2vec2(True))

FAMILIES: dict[str, tuple[LayerStack, ...]] = {
    "audio-spectrogram-transformer": _VIT,
    "bart": _SEQ2SEQ,
    "bert": _BERT,
    # without share_att_key, positions have projections of their own
    "deberta-v2": (_bert("query_proj", "key_proj", "value_proj", ("pos_key_proj", "pos_query_proj")),),
    "deit": _VIT,
    "dinov2": _DINOV2,
    "distilbert": _DISTILBERT,
    "electra": _BERT,
    "gpt2": _GPT2,
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
    "swin": _SWIN,
    "t5": _T5,
    "vit": _VIT,
    "wav2vec2": _WAV2VEC2,
    "whisper": _WHISPER,
    "xlm-roberta": _BERT,
    "yolos": _YOLOS,
}
"""`config.model_type` -> its layer stacks; a model need not have all of them."""

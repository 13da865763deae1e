"""Every family of the table: a tiny random model is cut, computes as if layers were skipped, and reloads equal."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModel, BloomConfig, T5EncoderModel, TrainingArguments, set_seed

from hf_efficient.blocks import (
    cut_layers,
    cut_units,
    layer_stacks,
    layers_of,
    output_of,
    simplify_manifest,
    sublayers_of,
    unit_size,
    units_of,
)
from hf_efficient.errors import ConfigError
from hf_efficient.families import ATTENTION, FAMILIES, FFN
from hf_efficient.functional.structured import matrix
from hf_efficient.optimization import Context
from hf_efficient.optimizations.structured_pruning import StructuredPruning
from hf_efficient.optimizations.weight_fusion import WeightFusion

LAYERS = 4
_SPEECH = {"conv_dim": (8,), "conv_kernel": (4,), "conv_stride": (2,), "num_conv_pos_embeddings": 4} | {
    "num_conv_pos_embedding_groups": 2,
    "mask_time_prob": 0.0,
}
SIZES: dict[str, dict[str, Any]] = {
    "audio-spectrogram-transformer": {"max_length": 8, "num_mel_bins": 8, "patch_size": 4},
    "bart": {"d_model": 16, "encoder_layers": LAYERS, "decoder_layers": LAYERS, "encoder_attention_heads": 2}
    | {"decoder_attention_heads": 2, "encoder_ffn_dim": 8, "decoder_ffn_dim": 8, "vocab_size": 32},
    "deit": {"image_size": 8, "patch_size": 4},
    "dinov2": {"image_size": 8, "patch_size": 4, "hidden_size": 8, "mlp_ratio": 1},
    "distilbert": {"dim": 16, "n_layers": LAYERS, "n_heads": 2, "hidden_dim": 8, "vocab_size": 32},
    "gpt2": {"n_inner": 8, "vocab_size": 32},
    "hubert": _SPEECH,
    "modernbert": {"vocab_size": 32, "pad_token_id": 0, "cls_token_id": 1, "sep_token_id": 2, "local_attention": 4}
    | {"bos_token_id": 1, "eos_token_id": 2, "attn_implementation": "sdpa"},
    "swin": {"image_size": 8, "patch_size": 2, "embed_dim": 16, "depths": [2], "num_heads": [2], "window_size": 2}
    | {"mlp_ratio": 0.5},
    "vit": {"image_size": 8, "patch_size": 4},
    "wav2vec2": _SPEECH,
    "yolos": {"image_size": (8, 8), "patch_size": 4, "num_detection_tokens": 2, "use_mid_position_embeddings": False},
}
_T5 = {"d_model": 16, "num_layers": LAYERS, "num_decoder_layers": LAYERS, "num_heads": 2, "d_kv": 8, "d_ff": 8}
SIZES["t5"] = {**_T5, "vocab_size": 32, "decoder_start_token_id": 0}
SIZES["mt5"] = SIZES["t5"]
SIZES["llama"] = SIZES["mistral"] = SIZES["qwen2"] = SIZES["qwen3"] = {"num_key_value_heads": 1, "head_dim": 8}
SIZES["whisper"] = {**SIZES["bart"], "num_mel_bins": 4, "max_source_positions": 8, "pad_token_id": 0}
SIZES["marian"] = {**SIZES["bart"], "pad_token_id": 0, "decoder_start_token_id": 0}
SEQ2SEQ = ("bart", "marian", "mt5", "t5")
COMMON = {
    "hidden_size": 16,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 2,
    "intermediate_size": 8,
    "vocab_size": 32,
    "pad_token_id": 0,
}


def model(family: str, **changes: Any) -> Any:
    set_seed(0)
    own = {**SIZES.get(family, {}), **changes}
    sizes = own if {"d_model", "dim", "embed_dim"} & own.keys() else {**COMMON, **own}
    return AutoModel.from_config(AutoConfig.for_model(family, **sizes)).eval()


def inputs(family: str) -> dict[str, torch.Tensor]:
    set_seed(1)
    if family in ("vit", "deit", "dinov2", "swin", "yolos"):
        return {"pixel_values": torch.rand(2, 3, 8, 8)}
    if family in ("audio-spectrogram-transformer", "hubert", "wav2vec2"):
        return {"input_values": torch.rand(2, *((8, 8) if family.startswith("audio") else (20,)))}
    tokens = torch.randint(3, 32, (2, 6))
    if family == "whisper":
        return {"input_features": torch.rand(2, 4, 16), "decoder_input_ids": tokens}
    return {"input_ids": tokens, **({"decoder_input_ids": tokens} if family in SEQ2SEQ else {})}


def output(model: Any, family: str) -> torch.Tensor:
    with torch.no_grad():
        return model(**inputs(family)).last_hidden_state


@pytest.mark.parametrize("family", [name for name, stacks in FAMILIES.items() if not stacks[0].layers_stay])
def test_cut_model_reloads_without_a_manifest(family: str, tmp_path: Path) -> None:
    cut, whole = model(family), output(model(family), family)
    for stack in layer_stacks(cut):
        cut_layers(cut, stack, [0, 2, 3])
        assert len(layers_of(cut, stack)) == 3
    expected = output(cut, family)
    assert not torch.allclose(expected, whole)
    cut.save_pretrained(tmp_path)
    reloaded = AutoModel.from_pretrained(tmp_path).eval()
    assert torch.equal(output(reloaded, family), expected)
    assert "quantization_config" not in (tmp_path / "config.json").read_text()


@pytest.mark.parametrize("family", FAMILIES)
def test_cut_units_compute_as_if_silenced(family: str, tmp_path: Path) -> None:
    """A narrower sublayer gives what the whole one does with zeros in the output projection's columns; it reloads."""
    cut, silenced = model(family), model(family)
    for stack, index, sublayer in sublayers_of(silenced):
        layer = layers_of(silenced, stack)[index]
        size, units = unit_size(silenced, sublayer), units_of(silenced, layer, sublayer)
        assert units == {ATTENTION: 2, FFN: 8}[sublayer.kind]
        kept = [1] if sublayer.kind == ATTENTION else [0, 3, 4, 6 + index % 2]
        gone = [column for column in range(units * size) if column // size not in kept]
        matrix(output_of(layer, sublayer))[:, gone] = 0
        cut_units(cut, stack, index, sublayer, kept)
        assert units_of(cut, layers_of(cut, stack)[index], sublayer) == len(kept)
    expected = output(silenced, family)
    assert not torch.allclose(expected, output(model(family), family), atol=1e-5)
    torch.testing.assert_close(output(cut, family), expected, rtol=1e-5, atol=1e-6)
    cut.save_pretrained(tmp_path)
    torch.testing.assert_close(output(AutoModel.from_pretrained(tmp_path).eval(), family), output(cut, family))


@pytest.mark.parametrize("family", FAMILIES)
def test_one_feed_forward_width_needs_no_manifest(family: str, tmp_path: Path) -> None:
    cut = model(family)
    for stack, index, sublayer in sublayers_of(cut):
        if sublayer.kind == FFN:
            cut_units(cut, stack, index, sublayer, [0, 2, 5])
    assert hasattr(cut.config, "quantization_config")
    simplify_manifest(cut)
    cut.save_pretrained(tmp_path)
    sharing = not all(stack.width for stack in layer_stacks(cut))
    assert ("quantization_config" in (tmp_path / "config.json").read_text()) == sharing
    assert torch.equal(output(AutoModel.from_pretrained(tmp_path).eval(), family), output(cut, family))


def test_deberta_with_projections_of_positions(tmp_path: Path) -> None:
    config = AutoConfig.for_model(
        "deberta-v2", **COMMON, relative_attention=True, pos_att_type=["c2p", "p2c"], position_buckets=4
    )
    set_seed(0)
    cut = AutoModel.from_config(config).eval()
    for stack, index, sublayer in sublayers_of(cut):
        cut_units(cut, stack, index, sublayer, [0])
    assert layers_of(cut, layer_stacks(cut)[0])[0].attention.self.pos_key_proj.out_features == 8
    cut.save_pretrained(tmp_path)
    reloaded = AutoModel.from_pretrained(tmp_path).eval()
    assert torch.equal(output(reloaded, "deberta-v2"), output(cut, "deberta-v2"))


SPEECH = {
    "wav2vec2": ("wav2vec2", 0, {"do_stable_layer_norm": False}),
    "stable": ("wav2vec2", 0, {"do_stable_layer_norm": True}),
    "whisper's encoder": ("whisper", 0, {}),
    "whisper's decoder": ("whisper", 1, {}),
}


@pytest.mark.parametrize("case", SPEECH)
@pytest.mark.parametrize("kind", [ATTENTION, FFN])
def test_the_stream_of_all_ways_to_place_norms(case: str, kind: str) -> None:
    """What the row calls the stream after a sublayer grows by the sublayer's output where that is doubled."""
    family, number, settings = SPEECH[case]
    speech, streams, outputs = model(family, **settings), [], []
    stack = layer_stacks(speech)[number]
    layer, sublayer = layers_of(speech, stack)[1], next(one for one in stack.sublayers if one.kind == kind)
    if sublayer.stream:
        layer.get_submodule(sublayer.stream).register_forward_pre_hook(lambda _, given: streams.append(given[0]))
    else:
        layer.register_forward_hook(lambda _, given, result: streams.append(result))
    projection = output_of(layer, sublayer)
    projection.register_forward_hook(lambda _, given, result: outputs.append(result))
    output(speech, family)
    projection.register_forward_hook(lambda _, given, result: 2 * result)
    output(speech, family)
    torch.testing.assert_close(streams[1] - streams[0], outputs[0], rtol=1e-4, atol=1e-5)


def test_a_head_that_weighs_layers_is_refused() -> None:
    with pytest.raises(ConfigError, match="use_weighted_layer_sum to false"):
        layer_stacks(model("wav2vec2", use_weighted_layer_sum=True))


def test_positions_between_layers_are_refused() -> None:
    with pytest.raises(ConfigError, match="use_mid_position_embeddings set to false"):
        layer_stacks(model("yolos", use_mid_position_embeddings=True))


def test_cut_equals_skipping() -> None:
    """Dropping layer 1 of a BERT gives what layers 0, 2 and 3 compute one after the other."""
    bert = model("bert")
    (stack,) = layer_stacks(bert)
    with torch.no_grad():
        hidden = bert.embeddings(**inputs("bert"))
        for index in (0, 2, 3):
            result = layers_of(bert, stack)[index](hidden)
            hidden = result[0] if isinstance(result, tuple) else result
    cut_layers(bert, stack, [0, 2, 3])
    torch.testing.assert_close(output(bert, "bert"), hidden)


def test_layer_indices_follow() -> None:
    bart = model("bart")
    for stack in layer_stacks(bart):
        cut_layers(bart, stack, [1, 3])
    found = {module.layer_idx for module in bart.decoder.modules() if hasattr(module, "layer_idx")}
    assert found == {0, 1}


def test_only_stacks_that_a_model_has_are_named() -> None:
    encoder: Any = T5EncoderModel(AutoConfig.for_model("t5", **SIZES["t5"]))
    assert [stack.path for stack in layer_stacks(encoder)] == ["encoder.block"]
    stages = {"depths": [2, 2, 2], "num_heads": [2, 2, 4]}
    assert [stack.path for stack in layer_stacks(model("swin", **stages))] == [
        f"encoder.layers.{stage}.blocks" for stage in range(3)
    ]


def test_layers_that_must_stay_are_refused_with_the_reason() -> None:
    context = Context(args=TrainingArguments("out", use_cpu=True), model=model("swin"))
    with pytest.raises(ConfigError, match="no layer of this model can go, because every other layer"):
        StructuredPruning(keep_layers=1).check(context)
    StructuredPruning(keep_ffn=0.5).check(context)


def test_unknown_family_is_refused() -> None:
    bloom = AutoModel.from_config(BloomConfig(vocab_size=8, hidden_size=8, n_layer=1, n_head=1))
    with pytest.raises(ConfigError, match=r"'bloom'.*bert"):
        layer_stacks(bloom)
    with pytest.raises(ConfigError, match="Linear"):
        layer_stacks(torch.nn.Linear(1, 1))  # type: ignore[arg-type]


@pytest.mark.parametrize("family", [name for name, stacks in FAMILIES.items() if stacks[0].heads_stay])
def test_heads_that_must_stay_are_refused_with_the_reason(family: str) -> None:
    context = Context(args=TrainingArguments("out", use_cpu=True), model=model(family))
    for asking in (StructuredPruning(keep_heads=0.5), WeightFusion(merge_heads=0.5)):
        with pytest.raises(ConfigError, match=r"no head of this model can go, because .*(keys|position)"):
            asking.check(context)

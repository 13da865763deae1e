"""Fewer token embeddings, the same logits: families with and without a head that predicts tokens."""

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers import EncoderDecoderConfig, EncoderDecoderModel, set_seed

from hf_efficient import ConfigError
from hf_efficient.functional.token_embeddings import special_ids, token_embeddings, trim_token_embeddings
from tests.tiny import image_model, text_model

ROWS = 60
SMALL = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
PAIR = {f"{part}_{name}": value for part in ("encoder", "decoder") for name, value in {
    "layers": 1, "attention_heads": 2, "ffn_dim": 16}.items()} | {"d_model": 16}  # fmt: skip
AT_THE_END = {"pad_token_id": 59, "decoder_start_token_id": 59, "eos_token_id": 0, "forced_eos_token_id": 0}
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "BertForMaskedLM": ("BertConfig", SMALL),
    "RobertaForMaskedLM": ("RobertaConfig", {**SMALL, "max_position_embeddings": 40, "pad_token_id": 6}),
    "DistilBertForMaskedLM": ("DistilBertConfig", {"dim": 16, "n_layers": 1, "n_heads": 2, "hidden_dim": 16}),
    "AlbertForMaskedLM": ("AlbertConfig", {**SMALL, "embedding_size": 8}),
    "DebertaV2ForSequenceClassification": ("DebertaV2Config", SMALL),
    "ModernBertForMaskedLM": ("ModernBertConfig", {**SMALL, "pad_token_id": 3, "bos_token_id": 1, "eos_token_id": 2,
                                                   "cls_token_id": 1, "sep_token_id": 2}),
    "GPT2LMHeadModel": ("GPT2Config", {"n_embd": 16, "n_layer": 1, "n_head": 2, "bos_token_id": 59,
                                       "eos_token_id": [59, 58]}),
    "LlamaForCausalLM": ("LlamaConfig", {**SMALL, "num_key_value_heads": 2}),
    "T5ForConditionalGeneration": ("T5Config", {"d_model": 16, "d_kv": 8, "d_ff": 16, "num_layers": 1, "num_heads": 2}),
    "BartForConditionalGeneration": ("BartConfig", PAIR),
    "MarianMTModel": ("MarianConfig", {**PAIR, **AT_THE_END}),
}  # fmt: skip
USED = [7, 5, 50, 33, 41, 20, 8, 7]


def random_model(name: str) -> Any:
    set_seed(0)
    config, sizes = FAMILIES[name]
    model = getattr(transformers, name)(getattr(transformers, config)(vocab_size=ROWS, **sizes)).eval()
    for parameter in (p for p in model.parameters() if p.requires_grad):
        parameter.data.normal_()
    for key, buffer in model.named_buffers():
        if key.endswith("final_logits_bias"):
            buffer.normal_()
    return model


@torch.no_grad()
def logits(model: Any, ids: list[int]) -> torch.Tensor:
    inputs = {"input_ids": torch.tensor([ids])}
    if model.config.is_encoder_decoder:
        inputs["decoder_input_ids"] = inputs["input_ids"]
    return model(**inputs).logits


@pytest.mark.parametrize("name", FAMILIES)
def test_logits_stay(name: str, tmp_path: Path) -> None:
    model = random_model(name)
    kept = sorted(special_ids(model) | set(USED))
    before, padding = logits(model, USED), model.config.pad_token_id
    trim_token_embeddings(model, torch.tensor(kept))
    ids = [kept.index(index) for index in USED]
    after = logits(model, ids)
    expected = before[..., kept] if before.shape[-1] == ROWS else before
    torch.testing.assert_close(after, expected, rtol=1e-4, atol=1e-4)
    assert model.config.vocab_size == len(kept) < ROWS
    assert model.config.pad_token_id == (None if padding is None else kept.index(padding))
    assert token_embeddings(model).padding_idx in (None, model.config.pad_token_id)
    assert not [key for key, value in model.state_dict().items() if ROWS in value.shape]
    model.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path).eval()
    if "Marian" not in name:  # its positions, made random above, are no parameters of the file
        assert torch.equal(logits(loaded, ids), after)
    assert token_embeddings(loaded).padding_idx == token_embeddings(model).padding_idx


def test_lists_of_ids_and_generation_follow() -> None:
    model = random_model("GPT2LMHeadModel")
    model.generation_config.suppress_tokens = [5, 11]
    trim_token_embeddings(model, torch.tensor([5, 58, 59]))
    assert (model.config.eos_token_id, model.config.bos_token_id) == ([2, 1], 2)
    assert (model.generation_config.eos_token_id, model.generation_config.suppress_tokens) == ([2, 1], [0])


def test_padding_that_positions_count_from_does_not_move() -> None:
    assert set(range(7)) <= special_ids(random_model("RobertaForMaskedLM"))
    assert special_ids(text_model()) == {0}


def test_models_without_token_embeddings() -> None:
    assert token_embeddings(image_model()) is None
    assert token_embeddings(torch.nn.Linear(1, 1)) is None


def test_two_vocabularies_are_refused() -> None:
    parts = [transformers.BertConfig(vocab_size=size, **SMALL) for size in (40, 60)]
    model = EncoderDecoderModel(EncoderDecoderConfig.from_encoder_decoder_configs(*parts))
    with pytest.raises(ConfigError, match="encoder and decoder have embeddings of their own"):
        trim_token_embeddings(model, torch.arange(4))

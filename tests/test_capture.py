"""What hooks catch is what the model computes."""

from typing import Any

import pytest
import torch
from transformers import (
    DebertaV2Config,
    DebertaV2ForSequenceClassification,
    DistilBertConfig,
    DistilBertForSequenceClassification,
    ModernBertConfig,
    ModernBertForSequenceClassification,
)

from hf_efficient.blocks import layer_stacks
from hf_efficient.capture import Capture, depths, projections
from hf_efficient.errors import ConfigError
from hf_efficient.families import LayerStack
from tests.tiny import KINDS, pad


@pytest.mark.parametrize("kind", ["text", "vision"])
def test_hidden_states_are_the_models_own(kind: str) -> None:
    model = KINDS[kind].model().eval()
    batch = pad(KINDS[kind].examples(4).examples) if kind == "text" else _images(kind)
    capture = Capture(model, [(0, 0), (0, 1)], [(0, 1)])
    with torch.no_grad():
        told = model(**batch, output_hidden_states=True).hidden_states
    caught = capture.take()
    assert set(caught) == {"hidden.0.0", "hidden.0.1", "query.0.1", "key.0.1", "value.0.1"}
    assert torch.equal(caught["hidden.0.0"], told[1])
    assert torch.equal(caught["hidden.0.1"], told[2])
    capture.remove()
    model(**batch)
    assert capture.take() == {}


def _images(kind: str) -> dict[str, torch.Tensor]:
    rows = KINDS[kind].examples(4).examples
    return {"pixel_values": torch.stack([row["pixel_values"] for row in rows])}


def test_training_only() -> None:
    model, batch = KINDS["text"].model(), pad(KINDS["text"].examples(4).examples)
    capture = Capture(model, [(0, 2)], training_only=True)
    model.eval()(**batch)
    assert capture.take() == {}
    model.train()(**batch)
    assert list(capture.take()) == ["hidden.0.2"]


def test_self_attention_of_a_decoder_layer() -> None:
    model = KINDS["seq2seq"].model()
    layer = model.model.decoder.layers[0]
    assert projections(layer, layer_stacks(model)[1]) == [
        layer.self_attn.q_proj,
        layer.self_attn.k_proj,
        layer.self_attn.v_proj,
    ]


SMALL = {"vocab_size": 16, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
OTHERS = {
    "deberta-v2": lambda: DebertaV2ForSequenceClassification(DebertaV2Config(**SMALL)),
    "distilbert": lambda: DistilBertForSequenceClassification(
        DistilBertConfig(vocab_size=16, dim=16, n_layers=1, n_heads=2, hidden_dim=8)
    ),
    "modernbert": lambda: ModernBertForSequenceClassification(
        ModernBertConfig(**SMALL, pad_token_id=0, cls_token_id=1, sep_token_id=2)
    ),
}


@pytest.mark.parametrize("family", OTHERS)
def test_other_families(family: str) -> None:
    model = OTHERS[family]().eval()
    assert depths(model, "test", "none") == [1]
    capture = Capture(model, [(0, 0)], [(0, 0)])
    model(input_ids=torch.tensor([[3, 4, 5]]), attention_mask=torch.ones(1, 3, dtype=torch.long))
    assert {name: value.shape for name, value in capture.take().items()} == dict.fromkeys(
        ["hidden.0.0", "query.0.0", "key.0.0", "value.0.0"], (1, 3, 16)
    )


def test_layers_without_projections() -> None:
    with pytest.raises(ConfigError, match=r"value of a Linear are not known.*attention: 0"):
        projections(torch.nn.Linear(2, 2), LayerStack("layers"))


def test_family_without_a_row() -> None:
    class Config:
        model_type = "strange"

    model: Any = torch.nn.Linear(2, 2)
    model.config = Config()
    with pytest.raises(ConfigError, match=r"distillation cannot look into .*'strange' model; set hidden: 0"):
        depths(model, "distillation", "set hidden: 0")

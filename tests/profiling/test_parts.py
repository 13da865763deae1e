"""Time and bytes by part."""

from typing import Any

import pytest
import torch
from torch import nn

from hf_efficient.blocks import layer_stacks, layers_of
from hf_efficient.errors import ConfigError
from hf_efficient.profiling.parts import (
    ATTENTION,
    EMBEDDING,
    FEED_FORWARD,
    HEAD,
    OVERHEAD,
    PARTS,
    bytes_of_parts,
    time_parts,
)
from tests.tiny import KINDS, LAYERS, image_model, pad, text_examples, text_model

KIND_NAMES = list(KINDS)


def collate_of(kind: str) -> Any:
    return KINDS[kind].trainer.get("data_collator", pad)


class Slow(nn.Module):
    """A module that takes longer by as much as one notices."""

    def __init__(self, module: nn.Module, size: int = 400):
        super().__init__()
        self.module, self.load = module, torch.rand(size, size)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        for _ in range(4):
            self.load @ self.load
        return self.module(*args, **kwargs)


@pytest.mark.parametrize("kind", KIND_NAMES)
def test_bytes_add_up(kind: str) -> None:
    model = KINDS[kind].model()
    found = bytes_of_parts(model)
    assert list(found) == list(PARTS[:-1])
    assert sum(found.values()) == sum(parameter.nbytes for parameter in model.parameters())
    assert all(value > 0 for part, value in found.items() if part != HEAD)


def test_bytes_lie_where_they_belong() -> None:
    model = text_model()
    found = bytes_of_parts(model)
    layer: Any = layers_of(model, layer_stacks(model)[0])[0]
    ffn = sum(p.nbytes for part in (layer.intermediate, layer.output.dense) for p in part.parameters())
    assert found[FEED_FORWARD] == LAYERS * ffn
    assert found[ATTENTION] == LAYERS * (sum(p.nbytes for p in layer.parameters()) - ffn)
    assert found[EMBEDDING] == sum(p.nbytes for p in model.bert.embeddings.parameters())
    assert found[HEAD] == sum(p.nbytes for part in (model.bert.pooler, model.classifier) for p in part.parameters())


def slow_embedding(model: Any) -> None:
    model.bert.embeddings.word_embeddings = Slow(model.bert.embeddings.word_embeddings)


def slow_attention(model: Any) -> None:
    for layer in model.bert.encoder.layer:
        layer.attention.output.dropout = Slow(layer.attention.output.dropout)


def slow_ffn(model: Any) -> None:
    for layer in model.bert.encoder.layer:
        layer.output.dropout = Slow(layer.output.dropout)


def slow_head(model: Any) -> None:
    model.classifier = Slow(model.classifier)


SLOWED = {EMBEDDING: slow_embedding, ATTENTION: slow_attention, FEED_FORWARD: slow_ffn, HEAD: slow_head}


@pytest.mark.parametrize("part", SLOWED)
def test_time_is_found_where_it_is_spent(part: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hf_efficient.profiling.parts._narrow", lambda model: text_model().eval())
    model = text_model().eval()
    SLOWED[part](model)
    found = time_parts(model, text_examples(8).examples, pad, 8)
    del found[OVERHEAD]  # of a machine that is busy with something else it may be more than all
    assert max(found, key=found.__getitem__) == part, found


@pytest.mark.parametrize("kind", KIND_NAMES)
def test_every_part_of_every_kind_is_timed(kind: str) -> None:
    model = KINDS[kind].model().eval()
    found = time_parts(model, KINDS[kind].examples(8).examples, collate_of(kind), 8)
    assert list(found) == list(PARTS)
    assert found[OVERHEAD] > 0
    assert all(value >= 0 for value in found.values())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_unknown_families_are_refused() -> None:
    model = image_model()
    model.config.model_type = "unheard-of"
    with pytest.raises(ConfigError, match="supported families"):
        bytes_of_parts(model)

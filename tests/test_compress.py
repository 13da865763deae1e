"""Compression without training, as a library call."""

import copy
from typing import Any

import pytest
import torch

from hf_efficient import ConfigError
from hf_efficient.compress import compress
from tests.exports import balanced, labelled, widened
from tests.tiny import pad, text_examples, text_model


@pytest.fixture(scope="module")
def model() -> Any:
    return balanced(widened(text_model(num_attention_heads=4)), text_examples(128).examples)


@pytest.fixture(scope="module")
def examples(model: Any) -> list[dict[str, Any]]:
    return labelled(model, text_examples(128).examples, pad)


def agreement(one: Any, other: Any, examples: list[dict[str, Any]]) -> float:
    batch = pad(examples)
    with torch.no_grad():
        answers = [model(**batch).logits.argmax(-1) for model in (one, other)]
    return (answers[0] == answers[1]).float().mean().item()


def test_repair_keeps_more(model: Any, examples: list[dict[str, Any]]) -> None:
    state = copy.deepcopy(model.state_dict())
    kept = {}
    for repair in (True, False):
        small, changes = compress(model, examples, pad, keep_ffn=0.3, keep_heads=0.5, repair=repair)
        assert changes["widths"]["encoder.layer"]["ffn"] == [10, 10, 10]
        kept[repair] = changes["divergence"]
        if repair:
            assert agreement(model, small, examples) > 0.8
    assert kept[True] < kept[False]
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


def test_is_deterministic(model: Any, examples: list[dict[str, Any]]) -> None:
    first, second = (compress(model, examples, pad, keep_ffn=0.5)[0] for _ in range(2))
    assert all(torch.equal(value, second.state_dict()[name]) for name, value in first.state_dict().items())


def test_refuses_what_it_cannot_use(model: Any, examples: list[dict[str, Any]]) -> None:
    with pytest.raises(ConfigError, match="real examples"):
        compress(model, [], pad, keep_ffn=0.5)
    with pytest.raises(ConfigError, match="target_speedup"):
        compress(model, examples, pad, target_sped=2)

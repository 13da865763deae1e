"""The layers that int8 hurts most are found."""

from typing import Any

import pytest
import torch

from hf_efficient.sensitivity import sensitivities
from tests.exports import widened
from tests.tiny import KINDS, pad, text_examples, text_model


@pytest.mark.parametrize("kind", ["text", "token", "vision"])
def test_every_linear_layer_is_judged_and_nothing_changes(kind: str) -> None:
    model, collate = widened(KINDS[kind].model()).train(), KINDS[kind].trainer.get("data_collator", pad)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    found = sensitivities(model, [collate(KINDS[kind].examples(8).examples)])
    linear = {path for path, module in model.named_modules() if isinstance(module, torch.nn.Linear)}
    assert set(found) == linear
    assert list(found.values()) == sorted(found.values(), reverse=True)
    assert all(value >= 0 for value in found.values())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert model.training
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_an_outlier_makes_its_layer_come_first() -> None:
    model: Any = widened(text_model())
    with torch.no_grad():
        model.bert.encoder.layer[1].intermediate.dense.bias[0] = 4000.0  # its neighbours share the range
        model.bert.encoder.layer[1].output.dense.weight[:, 0] = 0.0
    found = sensitivities(model, [pad(text_examples(16).examples)])
    assert next(iter(found)) == "bert.encoder.layer.1.output.dense"

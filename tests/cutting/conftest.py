"""A tiny classifier whose logits depend on everything in it, and calibration batches, made once."""

from typing import Any

import pytest
import torch

from tests.exports import balanced, labelled, widened
from tests.tiny import pad, text_examples, text_model

Batches = list[dict[str, torch.Tensor]]


@pytest.fixture(scope="package")
def trained() -> Any:
    return balanced(widened(text_model(num_attention_heads=4)), text_examples(96).examples)


@pytest.fixture(scope="package")
def batches(trained: Any) -> Batches:
    """Labelled by what the model says, as training would have it."""
    examples = labelled(trained, text_examples(96).examples, pad)
    return [pad(examples[start : start + 8]) for start in range(0, 96, 8)]

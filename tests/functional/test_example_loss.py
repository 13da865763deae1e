"""Each example's loss, against what models of transformers return for a batch."""

from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, set_seed
from transformers.trainer_pt_utils import LabelSmoother

from hf_efficient.functional.example_loss import example_losses, shifts_labels
from tests.tiny import (
    SMALL,
    VOCABULARY,
    image_examples,
    image_model,
    pad,
    text_examples,
    text_model,
    token_examples,
    token_model,
)
from tests.tiny import seq2seq_examples as sequences


def causal_model() -> Any:
    set_seed(0)
    return LlamaForCausalLM(LlamaConfig(vocab_size=VOCABULARY, **SMALL))


def with_floats(shape: tuple[int, ...]) -> list[dict[str, Any]]:
    examples = [text_examples()[index] for index in range(6)]
    return [{**example, "labels": torch.rand(shape).round()} for example in examples]


CASES: dict[str, tuple[Any, Any]] = {
    "text": (text_model, text_examples),
    "token": (token_model, token_examples),
    "vision": (image_model, image_examples),
    "causal": (causal_model, sequences),
    "multi-label": (
        lambda: text_model(num_labels=4, problem_type="multi_label_classification"),
        lambda: with_floats((4,)),
    ),
    "number": (lambda: text_model(num_labels=1, problem_type="regression"), lambda: with_floats(())),
    "numbers": (lambda: text_model(num_labels=4, problem_type="regression"), lambda: with_floats((4,))),
}


@pytest.mark.parametrize("name", CASES)
@torch.no_grad()
def test_weighted_mean_is_the_models_loss(name: str) -> None:
    build, examples = CASES[name]
    model, rows = build().eval(), [examples()[index] for index in range(6)]
    multi, shifted = name == "multi-label", shifts_labels(type(model).__name__)
    assert shifted == (name == "causal")
    batch = pad(rows)
    outputs = model(**batch)
    losses, counts = example_losses(outputs.logits, batch["labels"], multi, shifted)
    assert losses.shape == counts.shape == (6,)
    torch.testing.assert_close((losses * counts).sum() / counts.sum(), outputs.loss)
    for row, loss in zip(rows, losses, strict=True):
        torch.testing.assert_close(model(**pad([row])).loss, loss, rtol=1e-4, atol=1e-6)


def test_label_smoothing_is_the_trainers() -> None:
    model, batch = token_model().eval(), pad([token_examples()[index] for index in range(4)])
    outputs = model(**batch)
    losses, counts = example_losses(outputs.logits, batch["labels"], label_smoothing=0.1)
    expected = LabelSmoother(epsilon=0.1)(outputs, batch["labels"])
    torch.testing.assert_close((losses * counts).sum() / counts.sum(), expected)


def test_an_example_without_labels_has_no_loss() -> None:
    losses, counts = example_losses(torch.rand(2, 3, 4), torch.tensor([[-100] * 3, [1, -100, 2]]))
    assert losses[0] == 0
    assert counts.tolist() == [0, 2]


@pytest.mark.parametrize("labels", [torch.zeros(2, 5, dtype=torch.long), torch.zeros(2, 3)])
def test_shapes_that_do_not_go_together(labels: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="do not go with labels"):
        example_losses(torch.rand(2, 4), labels)

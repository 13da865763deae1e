"""Tiny models of each kind that is exported, and their exports, made once for all tests: tracing takes seconds."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import BertForTokenClassification, EvalPrediction, ViTImageProcessorPil, set_seed

from hf_efficient.export import ExportResult, export
from tests.golden import make
from tests.tasks.conftest import tiny_tokenizer
from tests.test_checkpoint import layer_cut
from tests.tiny import image_examples, image_model, pad, text_model, token_examples, token_model

TEXTS = [
    "my card is lost",
    "how do i pay",
    "where is the money",
    "a new card",
    "no",
    "do not pay the app now i lost it",
]


@dataclass(frozen=True)
class Case:
    """A model with logits that tell, and what exporting it takes."""

    model: Callable[[], Any]
    examples: Callable[[], list[dict[str, Any]]]
    collate: Callable[[list[Any]], dict[str, torch.Tensor]] = pad
    processor: Callable[[], Any] = lambda: None


def widened(model: Any) -> Any:
    """``model`` with weights that give other logits for other inputs; classes "0", "1", ... by name."""
    set_seed(0)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model.eval()


def text() -> Any:
    model = text_model(num_hidden_layers=2, id2label={0: "pay", 1: "card"}, label2id={"pay": 0, "card": 1})
    return widened(model)


def text_examples() -> list[dict[str, Any]]:
    """Tokens of `TEXTS`, labelled by what the model itself says, so that its accuracy is 1."""
    tokenizer = tiny_tokenizer()
    examples = [{name: torch.tensor(ids) for name, ids in tokenizer(words).items()} for words in TEXTS * 4]
    return labelled(text(), examples, pad)


def balanced(model: Any, examples: list[dict[str, Any]], collate: Any = pad) -> Any:
    """``model`` of two classes with its bias shifted so that it says each of them for half of the examples."""
    with torch.no_grad():
        logits = torch.cat([model(**collate([example])).logits for example in examples])
        model.classifier.bias.data[0] -= (logits[:, 0] - logits[:, 1]).median()
    return model


def labelled(model: Any, examples: list[dict[str, Any]], collate: Any) -> list[dict[str, Any]]:
    with torch.no_grad():
        answers = [model(**collate([example])).logits.argmax(-1)[0] for example in examples]
    return [{**example, "labels": answer} for example, answer in zip(examples, answers, strict=True)]


def small_vocabulary(examples: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{name: ids % 16 for name, ids in example.items() if name != "labels"} for example in examples]


def stack(examples: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    return {name: torch.stack([torch.as_tensor(example[name]) for example in examples]) for name in examples[0]}


def token() -> BertForTokenClassification:
    return widened(token_model())


CASES = {
    "text": Case(text, text_examples, processor=tiny_tokenizer),
    "token": Case(token, lambda: token_examples(24).examples, processor=tiny_tokenizer),
    "image": Case(
        lambda: widened(image_model()),
        lambda: image_examples(24).examples,
        stack,
        lambda: ViTImageProcessorPil(size={"height": 8, "width": 8}),
    ),
    "narrow": Case(make.model, lambda: small_vocabulary(token_examples(24).examples)),
    "layer cut": Case(lambda: widened(layer_cut()), lambda: small_vocabulary(token_examples(24).examples)),
}


def accuracy(prediction: EvalPrediction) -> dict[str, float]:
    return {"accuracy": float((prediction.predictions.argmax(-1) == prediction.label_ids).mean())}


def make_export(folder: Path, case: str = "text", **settings: Any) -> ExportResult:
    """Export ``case``; not measured unless ``seconds`` is given."""
    made = CASES[case]
    examples, processor = made.examples(), made.processor()
    given = {"examples": examples, "collate": made.collate, "processor": processor, "seconds": 0, **settings}
    return export(made.model(), folder, **given)

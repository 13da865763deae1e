"""Tiny random models and learnable data of each kind: a test trains one in well under a second."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    BertConfig,
    BertForSequenceClassification,
    BertForTokenClassification,
    ViTConfig,
    ViTForImageClassification,
    set_seed,
)

VOCABULARY, LENGTH, LAYERS = 48, 8, 3


class Examples(torch.utils.data.Dataset):
    """A map-style data set of dicts."""

    def __init__(self, examples: list[dict[str, Any]]):
        self.examples = examples

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.examples[index]


def pad(examples: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    """Pad token sequences of a batch to its longest; `labels` with -100."""
    batch = {}
    for key in examples[0]:
        values = [torch.as_tensor(example[key]) for example in examples]
        if values[0].dim() == 1:
            fill = -100 if key == "labels" else 0
            batch[key] = torch.nn.utils.rnn.pad_sequence(values, batch_first=True, padding_value=fill)
        else:
            batch[key] = torch.stack(values)
    return batch


def _tokens(generator: torch.Generator, count: int) -> list[torch.Tensor]:
    lengths = torch.randint(3, LENGTH + 1, (count,), generator=generator).tolist()
    return [torch.randint(4, VOCABULARY, (length,), generator=generator) for length in lengths]


def text_examples(count: int = 48, seed: int = 0) -> Examples:
    """The first token tells the class."""
    generator = torch.Generator().manual_seed(seed)
    examples = []
    for tokens in _tokens(generator, count):
        label = int(tokens[0] % 2)
        examples.append({"input_ids": tokens, "attention_mask": torch.ones_like(tokens), "labels": label})
    return Examples(examples)


def token_examples(count: int = 48, seed: int = 0) -> Examples:
    """Each token tells its own tag."""
    generator = torch.Generator().manual_seed(seed)
    return Examples(
        [
            {"input_ids": tokens, "attention_mask": torch.ones_like(tokens), "labels": tokens % 3}
            for tokens in _tokens(generator, count)
        ]
    )


def image_examples(count: int = 48, seed: int = 0) -> Examples:
    """The brighter colour tells the class."""
    generator = torch.Generator().manual_seed(seed)
    examples = []
    for index in range(count):
        pixels = torch.rand(3, 8, 8, generator=generator)
        label = index % 2
        pixels[label] += 2
        examples.append({"pixel_values": pixels, "labels": label})
    return Examples(examples)


def seq2seq_examples(count: int = 48, seed: int = 0) -> Examples:
    """Copy the source."""
    generator = torch.Generator().manual_seed(seed)
    return Examples(
        [
            {"input_ids": tokens, "attention_mask": torch.ones_like(tokens), "labels": tokens}
            for tokens in _tokens(generator, count)
        ]
    )


SMALL = {
    "hidden_size": 16,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 2,
    "intermediate_size": 32,
}


def text_model(**changes: Any) -> BertForSequenceClassification:
    set_seed(0)
    config = BertConfig(max_position_embeddings=16, **{"vocab_size": VOCABULARY, **SMALL, **changes})
    return BertForSequenceClassification(config)


def token_model() -> BertForTokenClassification:
    set_seed(0)
    return BertForTokenClassification(
        BertConfig(vocab_size=VOCABULARY, max_position_embeddings=16, num_labels=3, **SMALL)
    )


def image_model() -> ViTForImageClassification:
    set_seed(0)
    return ViTForImageClassification(ViTConfig(image_size=8, patch_size=4, num_labels=2, **SMALL))


def seq2seq_model() -> BartForConditionalGeneration:
    set_seed(0)
    return BartForConditionalGeneration(
        BartConfig(
            vocab_size=VOCABULARY,
            max_position_embeddings=16,
            d_model=16,
            encoder_layers=LAYERS,
            decoder_layers=LAYERS,
            encoder_attention_heads=2,
            decoder_attention_heads=2,
            encoder_ffn_dim=32,
            decoder_ffn_dim=32,
        )
    )


@dataclass(frozen=True)
class Kind:
    """A model and data that fit together."""

    model: Callable[..., Any]
    examples: Callable[..., Examples]
    trainer: dict[str, Any] = field(default_factory=lambda: {"data_collator": pad})


KINDS = {
    "text": Kind(text_model, text_examples),
    "token": Kind(token_model, token_examples),
    "vision": Kind(image_model, image_examples, {}),
    "seq2seq": Kind(seq2seq_model, seq2seq_examples),
}


def arguments(cls: type, folder: Any, **changes: Any) -> Any:
    """Training arguments for a run of 12 steps on the CPU."""
    defaults = {
        "num_train_epochs": 2,
        "per_device_train_batch_size": 8,
        "per_device_eval_batch_size": 16,
        "learning_rate": 5e-3,
        "logging_steps": 1,
        "save_steps": 4,
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": True,
    }
    return cls(output_dir=str(folder), **{**defaults, **changes})

"""Text generation: a causal language model, trained on blocks of text."""

import itertools
import logging
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from datasets import Dataset, DatasetDict
from pydantic import Field
from torch.nn.utils.rnn import pad_sequence
from transformers import EvalPrediction, PreTrainedModel

from hf_efficient.data import DataSettings
from hf_efficient.tasks.columns import TEXT, check_type
from hf_efficient.tasks.text import TextTask
from hf_efficient.timing import GeneratingRuntime

logger = logging.getLogger(__name__)

IGNORED = -100
"""Label of padding."""

NEW_TOKENS = 32
"""Generated at most after each prompt that the model is timed on."""


class TextGenerationData(DataSettings):
    """Column of a set of texts."""

    text: str = "text"
    """Column of the text."""

    block_size: int = Field(default=128, ge=4)
    """Tokens that the model sees at once."""

    pack: bool = True
    """Texts stand one after the other in blocks that are full, each ended by the end-of-text token; the model sees the
    texts before in its block. Else each is a row of its own, cut to ``block_size`` and padded."""

    def columns(self) -> list[str]:
        return [self.text]


class TextGeneration(TextTask):
    """A causal language model, judged by perplexity; packs texts into full blocks."""

    name = "text-generation"
    pipeline = "text-generation"
    auto_model = "AutoModelForCausalLM"
    main_metric = "perplexity"
    greater_is_better = False
    data_settings = TextGenerationData
    length_settings = ("block_size",)

    settings: TextGenerationData

    def check(self, data: DatasetDict) -> None:
        for split, dataset in data.items():
            check_type(dataset, self.settings.text, TEXT, f"data.{split}: column '{self.settings.text}' must hold text")
        super().check(data)

    def encode(self, split: Dataset) -> Dataset:
        """``input_ids``, ``attention_mask`` and, the same as the ids, ``labels``: of blocks, or of rows."""
        tokenizer, settings = self.processor, self.settings

        def tokenize(batch: dict[str, list]) -> dict[str, list]:
            texts = ended(tokenizer(batch[settings.text], verbose=False)["input_ids"], tokenizer.eos_token_id)
            size = settings.block_size
            rows = packed(texts, size) if settings.pack else [text[:size] for text in texts]
            return {"input_ids": rows, "attention_mask": [[1] * len(row) for row in rows], "labels": rows}

        made = self.map_batches(split, tokenize)
        full = 0 if settings.pack else sum(len(row) >= settings.block_size for row in made["input_ids"])
        if full:
            logger.warning(
                "%d of %d texts fill data.block_size=%d and may have been cut; raise it, or set data.pack=true",
                *(full, len(made), settings.block_size),
            )
        return made

    def collator(self) -> Callable[[list[dict[str, Any]]], dict[str, Any]]:
        """Pads each batch to its longest row."""
        return TextCollator(self.processor.pad_token_id)

    @staticmethod
    def reduce_logits(logits: Any, labels: torch.Tensor) -> torch.Tensor:
        """Loss of each token but the first, in nats, shape (examples, length - 1), 0 for padding.

        Args:
            logits: shape (examples, length, tokens), or a tuple that begins with them.
            labels: shape (examples, length).
        """
        logits = logits[0] if isinstance(logits, tuple) else logits
        told = logits[:, :-1].float().transpose(1, 2)
        return F.cross_entropy(told, labels[:, 1:], ignore_index=IGNORED, reduction="none")

    def compute_metrics(self, prediction: EvalPrediction) -> dict[str, float]:
        """Perplexity, and loss in nats per token, from what `reduce_logits` gives and labels (examples, length)."""
        labels = np.asarray(prediction.label_ids)[:, 1:]
        return _scores(np.asarray(prediction.predictions)[labels != IGNORED])

    def baseline(self, data: DatasetDict, split: str) -> tuple[str, dict[str, float]]:
        """Each token as probable as it is frequent in train, where one more of each is counted: none is impossible."""
        train, judged = (self._predicted(self.encode(data[name])) for name in ("train", split))
        counts = np.bincount(train, minlength=max(len(self.processor), int(judged.max()) + 1)) + 1
        return "each token by its frequency in train", _scores(-np.log(counts[judged] / counts.sum()))

    def raw(self, example: dict[str, Any]) -> str:
        """The text."""
        return example[self.settings.text]

    def preprocess(self, inputs: list[Any]) -> dict[str, Any]:
        """Prompts of the texts, padded on the left."""
        prompts = self._prompts(inputs)
        return self.collator()([dict(zip(prompts, row, strict=True)) for row in zip(*prompts.values(), strict=True)])

    def requests(self, rows: Dataset) -> Dataset:
        """Prompts: the texts, cut so that what is generated after them still fits into a block."""
        return Dataset.from_dict(self._prompts(list(rows[self.settings.text])))

    def runtime(self, model: PreTrainedModel) -> GeneratingRuntime:
        """Generates equally many tokens after each prompt, whatever the model would say."""
        tokens, padding = self._new_tokens, self.processor.pad_token_id
        return GeneratingRuntime(
            model, min_new_tokens=tokens, max_new_tokens=tokens, do_sample=False, pad_token_id=padding
        )

    @property
    def _new_tokens(self) -> int:
        return min(NEW_TOKENS, self.settings.block_size // 2)

    def _prompts(self, texts: list[str]) -> dict[str, list[list[int]]]:
        limit, end = self.settings.block_size - self._new_tokens, self.processor.eos_token_id
        rows = [row[:-1] if len(row) > 1 and row[-1] == end else row for row in self.processor(texts)["input_ids"]]
        return {"input_ids": [row[:limit] for row in rows], "attention_mask": [[1] * len(row[:limit]) for row in rows]}

    def _predicted(self, encoded: Dataset) -> np.ndarray:
        """Every token that the loss is about."""
        return np.fromiter(itertools.chain.from_iterable(row[1:] for row in encoded["labels"]), dtype=np.int64)


class TextCollator:
    """Joins rows into tensors (rows, length).

    Rows with labels are padded on the right; prompts, which have none, on the left: generation goes on from their ends.
    """

    def __init__(self, padding: int):
        self.padding = padding

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        fill = {"input_ids": self.padding, "attention_mask": 0, "labels": IGNORED}
        side = "right" if "labels" in rows[0] else "left"
        return {
            name: pad_sequence([torch.as_tensor(row[name]) for row in rows], True, value, side)
            for name, value in fill.items()
            if name in rows[0]
        }


def ended(texts: list[list[int]], end: int | None) -> list[list[int]]:
    """Token ids of ``texts``, each with the end-of-text token ``end`` at its end, where there is such a token."""
    return [text if end is None or text[-1:] == [end] else [*text, end] for text in texts]


def packed(texts: list[list[int]], size: int) -> list[list[int]]:
    """``texts`` one after the other in blocks of ``size`` tokens; the last is shorter, and left out if of one token."""
    ids = list(itertools.chain.from_iterable(texts))
    blocks = [ids[start : start + size] for start in range(0, len(ids), size)]
    return [block for block in blocks if len(block) > 1]


def _scores(losses: np.ndarray) -> dict[str, float]:
    loss = float(losses.mean(dtype=np.float64))
    return {"perplexity": float(np.exp(loss)), "loss": loss}

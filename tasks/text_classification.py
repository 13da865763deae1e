"""Text classification: a class, several, or a number for each text or pair of texts."""

from collections.abc import Callable
from typing import Any

from datasets import Dataset
from transformers import DataCollatorWithPadding

from hf_efficient.tasks.classification import Classification
from hf_efficient.tasks.columns import TEXT, check_type
from hf_efficient.tasks.targets import LabelledData
from hf_efficient.tasks.text import TextData, TextTask


class TextClassificationData(TextData, LabelledData):
    """Columns of a text classification data set."""

    text: str = "text"
    """Column of the text."""

    text_pair: str | None = None
    """Column of a second text, for tasks about pairs of texts."""

    def columns(self) -> list[str]:
        return [column for column in (self.text, self.text_pair, self.label) if column]


class TextClassification(Classification, TextTask):
    """A label per text, or per pair of texts."""

    name = "text-classification"
    pipeline = "text-classification"
    auto_model = "AutoModelForSequenceClassification"
    data_settings = TextClassificationData

    settings: TextClassificationData

    def check_inputs(self, dataset: Dataset, where: str) -> None:
        for column in filter(None, (self.settings.text, self.settings.text_pair)):
            check_type(dataset, column, TEXT, f"{where}: column '{column}' must hold text")

    def encode(self, split: Dataset) -> Dataset:
        """``input_ids``, ``attention_mask`` and so on, cut to ``max_length`` and not padded; ``labels``."""
        tokenizer, settings, indices = self.processor, self.settings, self.indexer(split)

        def tokenize(batch: dict[str, list]) -> dict[str, list]:
            pairs = batch[settings.text_pair] if settings.text_pair else None
            encoded = tokenizer(batch[settings.text], pairs, truncation=True, max_length=settings.max_length)
            if indices is not None:
                encoded["labels"] = indices(batch[settings.label])
            return dict(encoded)

        return self.map_batches(split, tokenize)

    def collator(self) -> Callable[[list[dict[str, Any]]], dict[str, Any]]:
        """Pads each batch to its longest row."""
        return DataCollatorWithPadding(self.processor)

    def raw(self, example: dict[str, Any]) -> str | dict[str, str]:
        """The text; for pairs ``{"text": ..., "text_pair": ...}``."""
        if self.settings.text_pair:
            return {"text": example[self.settings.text], "text_pair": example[self.settings.text_pair]}
        return example[self.settings.text]

    def preprocess(self, inputs: list[Any]) -> dict[str, Any]:
        """Tokenised, cut to ``max_length`` and padded to the longest."""
        texts, pairs = inputs, None
        if self.settings.text_pair:
            texts, pairs = [row["text"] for row in inputs], [row["text_pair"] for row in inputs]
        limit = self.settings.max_length
        return self.processor(texts, pairs, truncation=True, max_length=limit, padding=True, return_tensors="pt")

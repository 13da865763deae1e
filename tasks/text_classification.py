"""Text classification: one label per text, or per pair of texts."""

import re
from collections.abc import Callable
from typing import Any

import datasets
from datasets import ClassLabel, Dataset, DatasetDict
from transformers import DataCollatorWithPadding, EvalPrediction, PreTrainedModel

from hf_efficient.errors import DataError, unknown
from hf_efficient.functional.confidence import calibration_error
from hf_efficient.tasks.metrics import ClassificationMetrics
from hf_efficient.tasks.text import TEXT, TextData, TextTask, check_type, logits_of

_LABEL = (*TEXT, "bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64")


class TextClassificationData(TextData):
    """Columns of a text classification data set."""

    text: str = "text"
    """Column of the text."""

    text_pair: str | None = None
    """Column of a second text, for tasks about pairs of texts."""

    label: str = "label"
    """Column of the class: a name or a whole number."""

    def columns(self) -> list[str]:
        return [column for column in (self.text, self.text_pair, self.label) if column]

    def label_column(self) -> str:
        return self.label


class TextClassification(TextTask):
    """One label per text, or per pair of texts."""

    name = "text-classification"
    pipeline = "text-classification"
    auto_model = "AutoModelForSequenceClassification"
    data_settings = TextClassificationData

    settings: TextClassificationData

    def check(self, data: DatasetDict) -> None:
        for split, dataset in data.items():
            self._check_types(dataset, f"data.{split}")
        super().check(data)
        if len(self.label_names) < 2:
            raise DataError(f"data.train has one class only ({self.label_names[0]}); classification needs two or more")
        seen = set(self._names(data["train"]))
        for split in set(data) - {"train"}:
            self._check_labels_seen(data[split], seen, split)

    def labels(self, data: DatasetDict) -> list[str]:
        """Names of the classes of train: as declared by a ClassLabel, else sorted, numbers by value."""
        feature = data["train"].features[self.settings.label]
        if isinstance(feature, ClassLabel):
            return list(feature.names)
        return sorted(set(self._names(data["train"])), key=_by_value)

    def load_model(self, model: str, **kwargs: Any) -> PreTrainedModel:
        loaded = super().load_model(model, **kwargs)
        loaded.config.problem_type = "single_label_classification"
        return loaded

    def encode(self, split: Dataset) -> Dataset:
        """``input_ids``, ``attention_mask`` and so on, cut to ``max_length`` and not padded; ``labels`` int64."""
        tokenizer, settings = self.processor, self.settings
        indices = {name: index for index, name in enumerate(self.label_names)}
        feature = split.features.get(settings.label)

        def tokenize(batch: dict[str, list]) -> dict[str, list]:
            pairs = batch[settings.text_pair] if settings.text_pair else None
            encoded = tokenizer(batch[settings.text], pairs, truncation=True, max_length=settings.max_length)
            if feature is not None:
                encoded["labels"] = [_index(_name(value, feature), indices) for value in batch[settings.label]]
            return dict(encoded)

        return self.map_batches(split, tokenize)

    def collator(self) -> Callable[[list[dict[str, Any]]], dict[str, Any]]:
        """Pads each batch to its longest row."""
        return DataCollatorWithPadding(self.processor)

    def compute_metrics(self, prediction: EvalPrediction) -> dict[str, float]:
        """Accuracy, macro F1 and calibration error from logits (examples, classes) and class indices (examples,)."""
        logits, labels = logits_of(prediction), prediction.label_ids
        found = ClassificationMetrics().compute(predictions=logits.argmax(axis=-1), references=labels)
        return {**found, "calibration_error": calibration_error(logits, labels)}

    def per_class(self, prediction: EvalPrediction) -> dict[str, float]:
        """Recall of each class that occurs."""
        right, labels = logits_of(prediction).argmax(axis=-1) == prediction.label_ids, prediction.label_ids
        return {self.label_names[index]: float(right[labels == index].mean()) for index in sorted(set(labels.tolist()))}

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

    def _names(self, dataset: Dataset) -> list[str]:
        feature = dataset.features[self.settings.label]
        return [_name(value, feature) for value in dataset[self.settings.label]]

    def _check_types(self, dataset: Dataset, where: str) -> None:
        for column in filter(None, (self.settings.text, self.settings.text_pair)):
            check_type(dataset, column, TEXT, f"{where}: column '{column}' must hold text")
        label, feature = self.settings.label, dataset.features[self.settings.label]
        allowed = f"{where}: column '{label}' must hold one name or whole number per row"
        if isinstance(feature, ClassLabel):
            if -1 in dataset.unique(label):
                raise DataError(f"{allowed}, got rows without a label (-1); use rows that have one")
        elif not isinstance(feature, datasets.Json):  # names and numbers mixed
            check_type(dataset, label, _LABEL, allowed)

    def _check_labels_seen(self, dataset: Dataset, seen: set[str], split: str) -> None:
        names = self._names(dataset)
        for name in names:
            if name not in seen:
                raise DataError(
                    f"data.{split} has {names.count(name)} rows labelled '{name}', but data.train has none; "
                    f"add such rows to train, remove them from {split}, or correct the label"
                )


def _name(value: Any, feature: Any) -> str:
    return feature.int2str(value) if isinstance(feature, ClassLabel) else str(value)


def _index(name: str, indices: dict[str, int]) -> int:
    if name not in indices:
        raise DataError(f"{unknown('label', name, indices)}; the model has no class for it")
    return indices[name]


def _by_value(name: str) -> tuple[bool, float, str]:
    """Sort key: whole numbers by value, before names."""
    is_number = re.fullmatch(r"-?\d+", name) is not None
    return (not is_number, int(name) if is_number else 0, name)

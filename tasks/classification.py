"""What tasks with one class per example share: labels by name or number, metrics, recalls, a confusion matrix."""

import re
from abc import abstractmethod
from collections import Counter
from collections.abc import Callable
from typing import Any

import datasets
import numpy as np
from datasets import ClassLabel, Dataset, DatasetDict
from transformers import EvalPrediction, PreTrainedModel

from hf_efficient.data import DataSettings
from hf_efficient.errors import DataError, unknown
from hf_efficient.functional.confidence import calibration_error
from hf_efficient.task import Task
from hf_efficient.tasks.columns import TEXT, check_type
from hf_efficient.tasks.confusion import confusion_png
from hf_efficient.tasks.metrics import ClassificationMetrics, logits_of

_LABEL = (*TEXT, "bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64")


class LabelledData(DataSettings):
    """The column of the class."""

    label: str = "label"
    """Column of the class: a name or a whole number."""

    def label_column(self) -> str:
        return self.label


class Classification(Task):
    """One class per example; what the example is, the class below this one knows."""

    settings: LabelledData

    @abstractmethod
    def check_inputs(self, dataset: Dataset, where: str) -> None:
        """Refuse columns of inputs that are of another type than the task takes.

        Raises:
            DataError: names ``where``, the column and its type.
        """

    def check(self, data: DatasetDict) -> None:
        for split, dataset in data.items():
            self.check_inputs(dataset, f"data.{split}")
            self._check_labels(dataset, f"data.{split}")
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

    def indexer(self, split: Dataset) -> Callable[[list[Any]], list[int]] | None:
        """What turns values of the label column of ``split`` into indices of classes; None where it has no labels.

        It refers to values only, as `map_batches` asks.
        """
        feature = split.features.get(self.settings.label)
        if feature is None:
            return None
        indices = {name: index for index, name in enumerate(self.label_names)}
        return lambda values: [_index(_name(value, feature), indices) for value in values]

    def compute_metrics(self, prediction: EvalPrediction) -> dict[str, float]:
        """Accuracy, macro F1 and calibration error from logits (examples, classes) and class indices (examples,)."""
        logits, labels = logits_of(prediction), prediction.label_ids
        found = ClassificationMetrics().compute(predictions=logits.argmax(axis=-1), references=labels)
        return {**found, "calibration_error": calibration_error(logits, labels)}

    def per_class(self, prediction: EvalPrediction) -> dict[str, float]:
        """Recall of each class that occurs."""
        labels = np.asarray(prediction.label_ids)
        right = logits_of(prediction).argmax(axis=-1) == labels
        return {self.label_names[index]: float(right[labels == index].mean()) for index in sorted(set(labels.tolist()))}

    def details(self, prediction: EvalPrediction) -> dict[str, str | bytes]:
        """``confusion.png``: which classes are taken for which."""
        said = logits_of(prediction).argmax(axis=-1)
        return {"confusion.png": confusion_png(np.asarray(prediction.label_ids), said, self.label_names)}

    def baseline(self, data: DatasetDict, split: str) -> tuple[str, dict[str, float]]:
        """The most frequent class of train, always."""
        names = self._names(data[split])
        most, _ = Counter(self._names(data["train"])).most_common(1)[0]
        indices = {name: index for index, name in enumerate(self.label_names)}
        said, labels = [indices[most]] * len(names), [indices[name] for name in names]
        return f"always '{most}'", ClassificationMetrics().compute(predictions=said, references=labels)

    def _names(self, dataset: Dataset) -> list[str]:
        feature = dataset.features[self.settings.label]
        return [_name(value, feature) for value in dataset[self.settings.label]]

    def _check_labels(self, dataset: Dataset, where: str) -> None:
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

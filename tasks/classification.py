"""What tasks with a label per example share: the labels, metrics and reports of its kind."""

from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from datasets import Dataset, DatasetDict
from transformers import EvalPrediction, PreTrainedModel

from hf_efficient.task import Task
from hf_efficient.tasks.metrics import logits_of
from hf_efficient.tasks.targets import TARGETS, LabelledData
from hf_efficient.timing import Runtime


class Classification(Task):
    """A label per example; what the example is, the class below this one knows.

    Attributes:
        target: what the label is.
    """

    settings: LabelledData

    def __init__(self, settings: LabelledData):
        super().__init__(settings)
        self.target = TARGETS[settings.problem_type](settings)
        self.main_metric = self.target.main_metric

    @abstractmethod
    def check_inputs(self, dataset: Dataset, where: str) -> None:
        """Refuse columns of inputs that are of another type than the task takes.

        Raises:
            DataError: names ``where``, the column and its type.
        """

    def check(self, data: DatasetDict) -> None:
        for split, dataset in data.items():
            self.check_inputs(dataset, f"data.{split}")
            self.target.check(dataset, f"data.{split}")
        super().check(data)
        for split in set(data) - {"train"}:
            self.target.check_seen(data[split], split, data["train"])

    def labels(self, data: DatasetDict) -> list[str]:
        return self.target.names(data["train"])

    def load_model(self, model: str, **kwargs: Any) -> PreTrainedModel:
        loaded = super().load_model(model, **kwargs)
        loaded.config.problem_type = self.target.problem_type
        return loaded

    def indexer(self, split: Dataset) -> Callable[[list[Any]], list[Any]] | None:
        """What turns values of the label column of ``split`` into labels; None where it has no such column."""
        if self.settings.label not in split.features:
            return None
        return self.target.indexer(split, self.label_names)

    def compute_metrics(self, prediction: EvalPrediction) -> dict[str, float]:
        """Those of the kind of label, from logits (examples, outputs) and labels (examples, ...)."""
        return self.target.metrics(*_arrays(prediction))

    def per_class(self, prediction: EvalPrediction) -> dict[str, float]:
        """Recall of each class that occurs."""
        return self.target.per_class(*_arrays(prediction), self.label_names)

    def details(self, prediction: EvalPrediction) -> dict[str, str | bytes]:
        """``classes.txt`` and ``confusion.png``, where there are classes."""
        return self.target.details(*_arrays(prediction), self.label_names)

    def answers(self, runtime: Runtime, inputs: Sequence[Any]) -> list[dict[str, Any]]:
        """Those of the kind of label, such as ``{"label": ..., "score": ..., "scores": {...}}``."""
        return self.target.answers(self.logits(runtime, inputs), self.label_names)

    def baseline(self, data: DatasetDict, split: str) -> tuple[str, dict[str, float]]:
        """The most frequent class of train, or the mean, always."""
        return self.target.baseline(data["train"], data[split], self.label_names)


def _arrays(prediction: EvalPrediction) -> tuple[np.ndarray, np.ndarray]:
    return np.asarray(logits_of(prediction)), np.asarray(prediction.label_ids)

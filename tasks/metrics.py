"""Metrics as local `evaluate` modules: `evaluate.load` would look for them on the Hub."""

from typing import Any

import datasets
import evaluate
from sklearn.metrics import accuracy_score, f1_score


class ClassificationMetrics(evaluate.Metric):
    """Accuracy and macro F1 (mean over the classes that occur) of predicted class indices; both in [0, 1]."""

    def __init__(self, **kwargs: Any):
        # Nothing on disk: processes that evaluate at the same time share no cache file
        super().__init__(**{"keep_in_memory": True, **kwargs})

    def _info(self) -> evaluate.MetricInfo:
        index = datasets.Value("int64")
        return evaluate.MetricInfo(
            description=type(self).__doc__,
            citation="",
            inputs_description="predictions, references: class indices, one per example",
            features=datasets.Features({"predictions": index, "references": index}),
        )

    def _compute(self, predictions: list[int], references: list[int]) -> dict[str, float]:
        return {
            "accuracy": float(accuracy_score(references, predictions)),
            "f1_macro": float(f1_score(references, predictions, average="macro", zero_division=0.0)),
        }

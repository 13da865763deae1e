"""What the guard accepts and refuses, on runtimes whose answers are known."""

import json
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
from transformers.modeling_outputs import SequenceClassifierOutput

from hf_efficient import ConfigError, ExportError
from hf_efficient.guard import TOLERANCE, Comparison, compare, judge, predictions
from tests.exports import accuracy

LABELS = [0, 1, 0, 1, 1]


class Said:
    """A runtime that answers row i with ``logits[i]``."""

    name, version, device = "Said", "1", "cpu"

    def __init__(self, logits: Any):
        self.logits = torch.as_tensor(logits, dtype=torch.float32)
        self.sizes: list[int] = []

    def set_threads(self, threads: int) -> None:
        pass

    def predict(self, batch: Mapping[str, Any]) -> SequenceClassifierOutput:
        self.sizes.append(len(batch["row"]))
        return SequenceClassifierOutput(logits=self.logits[batch["row"]])


def collate(examples: list[Any]) -> dict[str, torch.Tensor]:
    return {name: torch.tensor([example[name] for example in examples]) for name in examples[0]}


def examples(labels: list[int] = LABELS) -> list[dict[str, int]]:
    return [{"row": row, "labels": label} for row, label in enumerate(labels)]


RIGHT = torch.nn.functional.one_hot(torch.tensor(LABELS)) * 4.0
"""Logits of a model that is always right."""


def wrong_in(*rows: int) -> torch.Tensor:
    logits = RIGHT.clone()
    logits[list(rows)] = logits[list(rows)].flip(-1)
    return logits


def compared(export: Any, model: Any = RIGHT, **settings: Any) -> Comparison:
    return compare(Said(model), Said(export), examples(), collate, **settings)


class TestCompare:
    def test_counts_what_it_says(self) -> None:
        comparison = compared(wrong_in(3), metrics=accuracy)
        assert (comparison.examples, comparison.max_difference, comparison.largest_logit) == (5, 4.0, 4.0)
        assert comparison.agreement == pytest.approx(0.8)
        assert comparison.drop == pytest.approx(0.2)
        assert "accuracy 1.0000 -> 0.8000" in str(comparison)

    def test_runs_a_single_example_and_batches(self) -> None:
        runtime = Said(torch.zeros(70, 2))
        compare(Said(torch.zeros(70, 2)), runtime, examples([0] * 70), collate)
        assert runtime.sizes == [1, 32, 32, 5]

    def test_lower_can_be_better(self) -> None:
        def error(prediction: Any) -> dict[str, float]:
            return {"size": 1.0, "error": 1 - accuracy(prediction)["accuracy"]}

        comparison = compared(wrong_in(0, 1), metrics=error, main_metric="error", greater_is_better=False)
        assert comparison.drop == pytest.approx(0.4)
        assert compared(RIGHT, wrong_in(0), metrics=accuracy).drop == pytest.approx(-0.2)

    def test_padded_tokens_do_not_count(self) -> None:
        model, export = torch.zeros(2, 3, 2), torch.zeros(2, 3, 2)
        model[..., 0] = export[..., 0] = 1
        export[1, 2] = torch.tensor([0.0, 9.0])

        def masked(examples: list[Any]) -> dict[str, torch.Tensor]:
            rows = [example["row"] for example in examples]
            return {"row": torch.tensor(rows), "attention_mask": torch.tensor([[1, 1, 1], [1, 1, 0]])[rows]}

        comparison = compare(Said(model), Said(export), examples([0, 0]), masked)
        assert (comparison.max_difference, comparison.agreement) == (0, 1)
        export[1, 1, 1] = 9.0
        assert compare(Said(model), Said(export), examples([0, 0]), masked).agreement == pytest.approx(0.8)

    def test_metrics_need_labels(self) -> None:
        unlabelled = [{"row": row} for row in range(5)]
        comparison = compare(Said(RIGHT), Said(RIGHT), unlabelled, collate, metrics=accuracy)
        assert (comparison.metrics_model, comparison.drop) == ({}, None)

    def test_refuses_what_cannot_be_compared(self) -> None:
        with pytest.raises(ConfigError, match="real examples"):
            compare(Said(RIGHT), Said(RIGHT), [], collate)
        with pytest.raises(ConfigError, match="no 'f1'; they have accuracy"):
            compared(RIGHT, metrics=accuracy, main_metric="f1")
        with pytest.raises(ExportError, match=r"shape \(1, 3\) where the model gives \(1, 2\)"):
            compared(torch.zeros(5, 3))

    def test_is_plain_json(self) -> None:
        values = compared(RIGHT * math.nan, metrics=accuracy).to_dict()
        assert json.loads(json.dumps(values, allow_nan=False))["max_difference"] is None

    def test_predictions_are_padded_as_a_trainer_does(self) -> None:
        class Longer(Said):
            def predict(self, batch: Mapping[str, Any]) -> SequenceClassifierOutput:
                return SequenceClassifierOutput(logits=torch.ones(len(batch["row"]), len(batch["row"]), 2))

        found = predictions(Longer(RIGHT), examples(), collate)
        assert found.predictions.shape == (5, 4, 2)
        assert np.all(found.predictions[0, 1:] == -100)
        assert found.label_ids.tolist() == LABELS


class TestJudge:
    def test_fp32_within_rounding(self) -> None:
        judge(compared(RIGHT + 4 * 0.9 * TOLERANCE), exact=True, max_drop=0)
        with pytest.raises(ExportError, match=r"differ by up to 0\.0044.*allowed is 0\.004"):
            judge(compared(RIGHT + 4 * 1.1 * TOLERANCE), exact=True, max_drop=1)

    def test_drop_of_the_metric(self) -> None:
        comparison = compared(wrong_in(3), metrics=accuracy)
        judge(comparison, exact=False, max_drop=0.2)
        with pytest.raises(ExportError, match=r"drop of accuracy is 0\.2000, allowed is 0\.1.*quantize='none'"):
            judge(comparison, exact=False, max_drop=0.1)

    def test_other_predictions_where_there_is_no_metric(self) -> None:
        judge(compared(wrong_in(3)), exact=False, max_drop=0.2)
        with pytest.raises(ExportError, match=r"share of other predictions is 0\.2000"):
            judge(compared(wrong_in(3)), exact=False, max_drop=0.1)

    @pytest.mark.parametrize("exact", [True, False])
    @pytest.mark.parametrize("value", [math.nan, math.inf])
    def test_not_a_number(self, exact: bool, value: float) -> None:
        broken = RIGHT.clone()
        broken[4, 0] = value
        with pytest.raises(ExportError, match="NaN or infinite"):
            judge(compared(broken, metrics=accuracy), exact=exact, max_drop=1)

    def test_metric_that_is_no_number(self) -> None:
        comparison = compared(RIGHT, metrics=lambda prediction: {"accuracy": math.nan})
        with pytest.raises(ExportError, match="nan"):
            judge(comparison, exact=False, max_drop=1)

    def test_regression_needs_a_metric(self) -> None:
        scores = torch.arange(5.0)[:, None]
        comparison = compared(scores + 0.1, scores)
        assert comparison.agreement is None
        with pytest.raises(ConfigError, match="pass metrics"):
            judge(comparison, exact=False, max_drop=1)
        judge(compared(scores, scores), exact=True, max_drop=0)

"""EfficientTrainer.export: of the model in the trainer, judged by the trainer's own metric."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import EvalPrediction

from hf_efficient import ConfigError, EfficientTrainer, EfficientTrainingArguments, ExportError, exported_pipeline
from tests.exports import TEXTS, accuracy, pad, text, text_examples
from tests.tasks.conftest import tiny_tokenizer
from tests.tiny import Examples, arguments


def make_trainer(folder: Path, given: dict[str, Any] | None = None, **settings: Any) -> EfficientTrainer:
    examples = Examples(text_examples())
    args = arguments(EfficientTrainingArguments, folder, measure_seconds=0, **{"max_steps": 1, **settings})
    defaults = {"eval_dataset": examples, "compute_metrics": accuracy, "processing_class": tiny_tokenizer()}
    return EfficientTrainer(text(), args, data_collator=pad, train_dataset=examples, **{**defaults, **(given or {})})


@pytest.mark.parametrize("settings", [{}, {"bf16": True}])
def test_exports_what_was_trained(settings: dict[str, Any], tmp_path: Path) -> None:
    """Mixed precision wraps `forward`; the export is of the model underneath."""
    trainer = make_trainer(tmp_path, **settings)
    trainer.train()
    result = trainer.export()
    assert result is not None
    assert result.folder == tmp_path / "exported"
    assert result.metrics["accuracy"] == pytest.approx(trainer.evaluate()["eval_accuracy"], abs=0.05)
    batch = pad(text_examples()[:3])
    with torch.no_grad():
        expected = trainer.model.float()(**batch).logits
    atol = 0.05 if settings else 1e-4
    torch.testing.assert_close(result.runtime().predict(batch).logits, expected, rtol=0, atol=atol)
    assert len(exported_pipeline(result.folder)(TEXTS)) == len(TEXTS)


def cost(prediction: EvalPrediction) -> dict[str, float]:
    """Best for random answers."""
    return {"size": float(len(prediction.predictions)), "cost": accuracy(prediction)["accuracy"]}


def first_class(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return torch.zeros_like(logits)


def test_the_trainers_metric_decides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Metric by `metric_for_best_model`, in its direction, of logits as `preprocess_logits_for_metrics` leaves them."""
    seen: dict[str, Any] = {}

    def export(model: Any, folder: Any, **settings: Any) -> None:
        seen.update(settings)

    monkeypatch.setattr("hf_efficient.export.export", export)
    given = {"compute_metrics": cost, "preprocess_logits_for_metrics": first_class}
    make_trainer(tmp_path, given, metric_for_best_model="eval_cost", greater_is_better=False).export(max_drop=0.5)
    assert (seen["main_metric"], seen["greater_is_better"], seen["max_drop"]) == ("cost", False, 0.5)
    prediction = EvalPrediction(np.ones((4, 2)), np.array([0, 0, 0, 1]))
    assert seen["metrics"](prediction) == {"size": 4.0, "cost": 0.75}
    make_trainer(tmp_path, {"compute_metrics": None}, metric_for_best_model="loss").export()
    assert (seen["metrics"], seen["main_metric"], seen["greater_is_better"]) == (None, None, True)


def test_refusals(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="did you mean 'onnx'"):
        make_trainer(tmp_path).export("onxx")
    with pytest.raises(ConfigError, match="real examples"):
        make_trainer(tmp_path, {"eval_dataset": None}).export()
    monkeypatch.setattr("hf_efficient.guard.TOLERANCE", 0)
    monkeypatch.setattr("hf_efficient.guard.FLOOR", 0)
    with pytest.raises(ExportError, match="does not compute"):
        make_trainer(tmp_path).export()
    assert not (tmp_path / "exported").exists()

"""Does an export compute what its model does? Both on the same real inputs, side by side, judged by stated limits."""

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from transformers import EvalPrediction
from transformers.trainer_pt_utils import nested_concat

from hf_efficient.errors import ConfigError, ExportError
from hf_efficient.timing import Runtime

TOLERANCE = 1e-3
"""Greatest difference between fp32 logits, as a share of the largest logit.

fp32 kernels that add in another order differ by less than 1e-6 of it on small models (measured: docs/export.md); the
rest is room for deeper ones.
"""

FLOOR = 1e-5
"""Difference that is always allowed: logits of an untrained head are as small as the rounding of what they are made of.
"""

BATCH = 32

Metrics = Callable[[EvalPrediction], Mapping[str, float]]
"""As the `compute_metrics` of a Trainer."""

_PADDING = -100


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """An export beside its model on the same examples.

    Attributes:
        examples: how many; the first alone, the others in batches of `BATCH`.
        max_difference: between logits, of inputs that are not padding; NaN where the export gave NaN or infinity.
        largest_logit: of the model, without sign.
        agreement: share of predictions (of tokens, for token classification) that are the same; None for regression.
        metrics_model, metrics_export: from labels; empty without labels or metrics.
        main_metric: the one that `drop` is about; None without metrics.
        drop: how much worse the export is by it, in its own units; negative where it is better.
    """

    examples: int
    max_difference: float
    largest_logit: float
    agreement: float | None
    metrics_model: dict[str, float]
    metrics_export: dict[str, float]
    main_metric: str | None
    drop: float | None

    def to_dict(self) -> dict[str, Any]:
        """Plain values; NaN, which JSON has not, as None."""
        values = asdict(self)
        return {name: None if isinstance(v, float) and not math.isfinite(v) else v for name, v in values.items()}

    def __str__(self) -> str:
        told = [f"logits differ by up to {self.max_difference:.2g} (the largest is {self.largest_logit:.3g})"]
        if self.agreement is not None:
            told.append(f"{self.agreement:.2%} of the predictions agree")
        if self.main_metric is not None:
            name = self.main_metric
            told.append(f"{name} {self.metrics_model[name]:.4f} -> {self.metrics_export[name]:.4f}")
        return f"{'; '.join(told)}; on {self.examples} examples"


@dataclass
class _Answers:
    """What two runtimes say to the same batches."""

    model: list[np.ndarray]
    export: list[np.ndarray]
    counted: list[np.ndarray]
    labels: list[np.ndarray]


def compare(
    model: Runtime,
    export: Runtime,
    examples: Sequence[Mapping[str, Any]],
    collate: Callable[[list[Any]], Mapping[str, Any]],
    *,
    metrics: Metrics | None = None,
    main_metric: str | None = None,
    greater_is_better: bool = True,
) -> Comparison:
    """Run ``examples`` (model-ready features, labels included) through both.

    Args:
        collate: from a list of features to a batch.
        metrics: from logits, padded with -100 where their lengths differ, and labels.
        main_metric: key of what it returns; the first when None.

    Raises:
        ConfigError: no examples, or no such metric.
    """
    if not len(examples):
        raise ConfigError("an export is checked on real examples, and there are none; pass some with their labels")
    answers = _ask(model, export, examples, collate)
    found = [_metrics(metrics, logits, answers.labels) for logits in (answers.model, answers.export)]
    main = _main(found[0], main_metric)
    drop = None
    if main is not None:
        drop = (found[0][main] - found[1][main]) * (1 if greater_is_better else -1)
    model_logits, export_logits = (_picked(logits, answers.counted) for logits in (answers.model, answers.export))
    with np.errstate(invalid="ignore"):
        difference = np.abs(model_logits - export_logits)
    is_regression = model_logits.shape[-1] == 1
    if answers.labels and answers.labels[0].shape == answers.model[0].shape:  # several classes for each example
        same = (model_logits > 0) == (export_logits > 0)
    else:
        same = model_logits.argmax(-1) == export_logits.argmax(-1)
    return Comparison(
        examples=len(examples),
        max_difference=float(difference.max()) if np.isfinite(export_logits).all() else math.nan,
        largest_logit=float(np.abs(model_logits).max()),
        agreement=None if is_regression else float(same.mean()),
        metrics_model=found[0],
        metrics_export=found[1],
        main_metric=main,
        drop=drop,
    )


def judge(comparison: Comparison, *, exact: bool, max_drop: float) -> None:
    """Accept or refuse.

    Args:
        exact: whether the logits must be the model's within `TOLERANCE`; else the drop of the metric decides, or the
            share of other predictions where there is no metric.
        max_drop: greatest drop, in units of the metric: 0.01 is a point of accuracy.

    Raises:
        ExportError: with the figures and what to do.
        ConfigError: nothing to judge by.
    """
    if not math.isfinite(comparison.max_difference):
        raise ExportError(
            f"the export gives NaN or infinite logits on {comparison.examples} examples; "
            "check that the model itself does not, then export with quantize='none' or to another format"
        )
    if exact:
        limit = max(FLOOR, TOLERANCE * comparison.largest_logit)
        if comparison.max_difference > limit:
            raise ExportError(
                f"the export does not compute what the model does: {comparison}; allowed is {limit:.2g}. "
                "Export to another format, and report the model family to the exporter's makers"
            )
        return
    drop, what = comparison.drop, f"drop of {comparison.main_metric}"
    if drop is None:
        if comparison.agreement is None:
            raise ConfigError("quantizing a regression model needs labels and a metric to judge it by; pass metrics")
        drop, what = 1 - comparison.agreement, "share of other predictions"
    if not drop <= max_drop + 1e-9:  # rounding; NaN is refused
        raise ExportError(
            f"quantizing costs too much: {comparison}. The {what} is {drop:.4f}, allowed is {max_drop:g} (max_drop). "
            "Export with quantize='none', or raise max_drop if that is acceptable"
        )


def predictions(
    runtime: Runtime, examples: Sequence[Mapping[str, Any]], collate: Callable[[list[Any]], Mapping[str, Any]]
) -> EvalPrediction:
    """Logits of ``runtime`` and labels, as the `compute_metrics` of a Trainer gets them."""
    answers = _ask(None, runtime, examples, collate)
    return EvalPrediction(predictions=_joined(answers.export), label_ids=_joined(answers.labels))


def logits_of(outputs: Any) -> torch.Tensor:
    """The logits in what a model returned: its output object, or the first tensor of a tuple."""
    logits = outputs.get("logits") if hasattr(outputs, "get") else outputs[0]
    if logits is None:
        raise ConfigError(
            f"the model returns {', '.join(outputs)}, and no logits; only models with logits are exported"
        )
    return logits.float().cpu()


def _ask(model: Runtime | None, export: Runtime, examples: Sequence[Any], collate: Callable[..., Any]) -> _Answers:
    answers = _Answers([], [], [], [])
    starts = [
        0,
        *range(1, len(examples), BATCH),
    ]  # a single example first: a graph may hold for its own batch size only
    for start, end in zip(starts, [*starts[1:], len(examples)], strict=True):
        batch = collate([examples[index] for index in range(start, end)])
        logits = logits_of(export.predict(batch)).numpy()
        if model is not None:
            answers.model.append(logits_of(model.predict(batch)).numpy())
            _check_shapes(answers.model[-1], logits)
        answers.export.append(logits)
        answers.counted.append(_counted(batch, logits))
        if batch.get("labels") is not None:
            answers.labels.append(torch.as_tensor(batch["labels"]).numpy())
    return answers


def _check_shapes(model: np.ndarray, export: np.ndarray) -> None:
    if model.shape != export.shape:
        raise ExportError(
            f"the export gives logits of shape {export.shape} where the model gives {model.shape}; its graph was made "
            "for one shape only. Export to another format"
        )


def _counted(batch: Mapping[str, Any], logits: np.ndarray) -> np.ndarray:
    """Which rows of logits answer to real input: all of them, but for padded tokens."""
    mask = batch.get("attention_mask")
    if mask is not None and tuple(mask.shape) == logits.shape[:-1]:
        return mask.numpy().astype(bool)
    return np.ones(logits.shape[:-1], dtype=bool)


def _picked(logits: list[np.ndarray], counted: list[np.ndarray]) -> np.ndarray:
    return np.concatenate([part[mask] for part, mask in zip(logits, counted, strict=True)])


def _joined(parts: list[np.ndarray]) -> Any:
    """All rows, padded to the longest; None without parts."""
    join = functools.partial(nested_concat, padding_index=_PADDING)
    return functools.reduce(join, parts) if parts else None


def _metrics(metrics: Metrics | None, logits: list[np.ndarray], labels: list[np.ndarray]) -> dict[str, float]:
    if metrics is None or not labels:
        return {}
    found = metrics(EvalPrediction(predictions=_joined(logits), label_ids=_joined(labels)))
    return {name: float(value) for name, value in found.items()}


def _main(found: Mapping[str, float], name: str | None) -> str | None:
    if not found:
        return None
    if name is None:
        return next(iter(found))
    if name not in found:
        raise ConfigError(f"the metrics have no '{name}'; they have {', '.join(found)}")
    return name

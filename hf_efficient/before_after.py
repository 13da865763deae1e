"""The report of one `train()`: the model as it was before optimizations changed it, and as it came out."""

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_efficient.accounting import starved
from hf_efficient.measure import Measurement, TorchRuntime, measure
from hf_efficient.report import Report

if TYPE_CHECKING:
    from hf_efficient.plan import Plan

logger = logging.getLogger(__name__)

EXAMPLES = 128
"""Real examples on which latency and throughput are measured."""

_CLOCK = ("runtime", "samples_per_second", "steps_per_second", "model_preparation_time")


class BeforeAfter:
    """Measures ``trainer``'s model when made and again for `report`; on the main process, while the others wait."""

    def __init__(self, trainer: Any):
        self.trainer = trainer
        self.seconds = getattr(trainer.args, "measure_seconds", 2.0)
        self.before = self._snapshot()

    def report(self, plan: "Plan", training: dict[str, dict[str, Any]]) -> Report | None:
        """None where measuring is off, on other processes, and where the model could not be measured.

        Args:
            training: phase -> figures of its training.
        """
        packed = self.trainer.finished if plan.overriding("pack") else None
        # On every process, though only the main one has a `before`: they evaluate together
        after = self._snapshot(packed)
        if not self.before or not after:
            return None
        return Report(
            title=f"{type(self.trainer.model).__name__}: before and after",
            before=self.before[0],
            after=after[0],
            metrics_before=self.before[1],
            metrics_after=after[1],
            training=training,
            changes=plan.describe(),
            notes=[
                "Metrics on evaluation data." if after[1] else "No evaluation data: no metrics.",
                *starved(training),
            ],
        )

    def _snapshot(self, folder: Path | None = None) -> tuple[Measurement, dict[str, float]] | None:
        if not self.seconds:
            return None
        metrics = self._metrics()  # on every process
        measurement = None
        if self.trainer.is_world_process_zero():
            try:
                measurement = self._measurement(folder)
            except Exception as error:  # a finished training is worth more than its report
                logger.warning("the model could not be measured (%s: %s)", type(error).__name__, error)
        self.trainer.accelerator.wait_for_everyone()
        return (measurement, metrics) if measurement else None

    def _metrics(self) -> dict[str, float]:
        dataset = self.trainer.eval_dataset
        if isinstance(dataset, dict):
            dataset = next(iter(dataset.values()), None)
        if dataset is None:
            return {}
        return plain_metrics(self.trainer.predict(dataset, metric_key_prefix="test").metrics or {}, "test")

    def _measurement(self, folder: Path | None) -> Measurement:
        trainer = self.trainer
        dataset = trainer.train_dataset if trainer.eval_dataset is None else trainer.eval_dataset
        dataset = next(iter(dataset.values())) if isinstance(dataset, dict) else dataset
        examples = trainer.examples(dataset, EXAMPLES)
        timing = measure(TorchRuntime(trainer.model), examples, trainer.collate, repeats=1, seconds=self.seconds)
        return Measurement.of(timing, trainer.model, folder)


def plain_metrics(values: dict[str, float], prefix: str) -> dict[str, float]:
    """Metrics without ``prefix`` and without the clock's; the loss, which no user asks for first, comes last."""
    named = {name.removeprefix(f"{prefix}_"): value for name, value in values.items()}
    metrics = {name: value for name, value in named.items() if name not in (*_CLOCK, "epoch")}
    return dict(sorted(metrics.items(), key=lambda item: item[0] == "loss"))

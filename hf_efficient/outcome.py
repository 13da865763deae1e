"""What comes of a recipe's training: the finished model measured, exported and described."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasets import Dataset, DatasetDict

from hf_efficient.card import About
from hf_efficient.export import REPORT, ExportResult, export
from hf_efficient.guard import predictions
from hf_efficient.measure import Measurement, Runtime, Timing, TorchRuntime, measure, peak_memory_mb
from hf_efficient.recipe import Recipe
from hf_efficient.task import Task

MEASURED_EXAMPLES = 256
"""Real examples on which latency and throughput are measured."""


@dataclass
class Outcome:
    """A recipe with what its models are judged by.

    Attributes:
        data, encoded: train, validation and, where there is one, test; as rows and as model inputs.
        processor: tokenizer or image processor.
    """

    recipe: Recipe
    task: Task
    data: DatasetDict
    encoded: DatasetDict
    processor: Any

    def export(self, model: Path, folder: Path) -> ExportResult | None:
        """Export the finished model, judged on validation data; an interrupted run finds what it had done."""
        chosen = self.recipe.export
        if chosen is None:
            return None
        if (folder / REPORT).is_file():
            return ExportResult.load(folder)
        return export(
            self.task.load_model(str(model)),
            folder,
            **chosen.model_dump(),
            examples=self.encoded["validation"],
            calibration=self.encoded["train"],
            collate=self.task.collator(),
            metrics=self.task.compute_metrics,
            main_metric=self.task.main_metric,
            greater_is_better=self.task.greater_is_better,
            processor=self.processor,
            timing=self.timing,
        )

    def exported_metrics(self, exported: ExportResult) -> dict[str, float]:
        """The export's metrics on the data that the report speaks of."""
        found = self.task.compute_metrics(
            predictions(exported.runtime(), self.encoded[self.judged], self.task.collator())
        )
        return {name: float(value) for name, value in found.items()}

    @property
    def sample(self) -> str | dict[str, str] | None:
        """The first question of the judged data, where inputs are text."""
        found = self.task.raw(self.data[self.judged][0])
        texts = found.values() if isinstance(found, dict) else [found]
        return found if all(isinstance(text, str) for text in texts) else None

    def about(self) -> About:
        """What the model card tells of the recipe."""
        return About(
            name=self.recipe.name,
            base_model=self.recipe.model,
            data=self.recipe.data.get("train"),
            split=self.judged,
            training={name: stage.training for name, stage in self.recipe.stages.items()},
        )

    @property
    def judged(self) -> str:
        """The split that the report speaks of."""
        return "test" if "test" in self.encoded else "validation"

    def measured_rows(self) -> Dataset:
        """Real inputs on which latency and throughput are measured."""
        count = min(MEASURED_EXAMPLES, len(self.encoded[self.judged]))
        return self.data[self.judged].shuffle(seed=self.recipe.seed).select(range(count))

    def timing(self, runtime: Runtime) -> Timing:
        rows = self.measured_rows()
        raw = [self.task.raw(row) for row in rows]
        examples = list(self.task.encode(rows))
        return measure(runtime, examples, self.task.collator(), preprocess=self.task.preprocess, raw=raw)

    def measurement(self, path: Path) -> Measurement:
        """Size, latency and memory of a saved model."""
        model = self.task.load_model(str(path))
        timing = self.timing(TorchRuntime(model))
        batch = self.task.collator()(list(self.task.encode(self.measured_rows().select(range(timing.batch_size)))))
        return Measurement.of(timing, model, path, peak_memory_mb(path, batch))

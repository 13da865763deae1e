"""What comes of a recipe's training: the finished model measured, exported and described."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from datasets import Dataset, DatasetDict

from hf_efficient.card import About
from hf_efficient.export import REPORT, ExportResult, export
from hf_efficient.guard import predictions
from hf_efficient.measure import Measurement, Runtime, Timing, measure, measure_speed, peak_memory_mb
from hf_efficient.recipe import Recipe
from hf_efficient.task import Task

STAGE_FILE = "stage.json"
"""What a stage's training came to; says that it is done."""
MEASURED_EXAMPLES = 256
"""Real examples on which latency and throughput are measured."""
TURNS = 3
SECONDS = 3.0
"""For latency, and again for throughput, of each model."""


@dataclass
class Outcome:
    """A recipe with what its models are judged by.

    Attributes:
        data, encoded: train, validation and, where there is one, test; as rows and as model inputs.
        processor: tokenizer or image processor that encoded them.
    """

    recipe: Recipe
    task: Task
    data: DatasetDict
    encoded: DatasetDict
    processor: Any
    _encodings: dict[str, tuple[Any, DatasetDict]] = field(default_factory=dict)
    """Model -> its processor, and the data as that encodes it."""

    def use(self, model: str | Path) -> None:
        """Let task and data go by the processor of ``model``: a stage may have trimmed the vocabulary.

        Every step that works on a stage's model calls this first; data is encoded once for each vocabulary.
        """
        self._encodings.setdefault(self.recipe.model, (self.processor, self.encoded))
        if str(model) not in self._encodings:
            self._encodings[str(model)] = self._encoded_for(str(model))
        self.processor, self.encoded = self._encodings[str(model)]
        self.task.processor = self.processor

    def _encoded_for(self, model: str) -> tuple[Any, DatasetDict]:
        processor = self.task.load_processor(model)
        for known, encoded in self._encodings.values():
            if _vocabulary(known) == _vocabulary(processor):
                return known, encoded
        return processor, self.task.encode_all(self.data)

    def export(self, model: Path, folder: Path, *, timed: bool = True) -> ExportResult | None:
        """Export the finished model, judged on validation data; an interrupted run finds what it had done.

        Args:
            timed: whether it is measured as well.
        """
        chosen = self.recipe.export
        if chosen is None:
            return None
        if (folder / REPORT).is_file():
            return ExportResult.load(folder)
        self.use(model)
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
            timing=self.timing if timed else None,
            seconds=0,
        )

    def judge_export(self, exported: ExportResult) -> tuple[dict[str, float], dict[str, float]]:
        """The export's metrics on the data that the report speaks of, and what it recognises of each class."""
        self.use(exported.folder)
        said = predictions(exported.runtime(), self.encoded[self.judged], self.task.collator())
        metrics = {name: float(value) for name, value in self.task.compute_metrics(said).items()}
        return metrics, self.task.per_class(said)

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
        count = min(MEASURED_EXAMPLES, len(self.data[self.judged]))
        return self.data[self.judged].shuffle(seed=self.recipe.seed).select(range(count))

    def timing(self, runtime: Runtime, turns: int = 1) -> Timing:
        """How fast ``runtime`` is on this machine, from model-ready and from raw inputs, in one turn of ``turns``."""
        rows = self.measured_rows()
        given: dict[str, Any] = {"preprocess": self.task.preprocess, "raw": [self.task.raw(row) for row in rows]}
        given.update(repeats=max(1, TURNS // turns), seconds=SECONDS / turns)
        return measure(runtime, list(self.task.requests(rows)), self.task.collator(), **given)

    def speed(self, name: str, runtime: Runtime) -> float:
        """``latency_ms`` or ``throughput`` alone, from model-ready inputs."""
        return measure_speed(name, runtime, list(self.task.requests(self.measured_rows())), self.task.collator())

    def measurements(self, *paths: Path) -> list[Measurement]:
        """Size, latency and memory of saved models, timed in turns: while a machine is busy, it is so for all."""
        models, turns = {}, {path: list[Timing]() for path in paths}
        for path in paths:
            self.use(path)
            models[path] = self.task.load_model(str(path))
        for _ in range(TURNS):
            for path, model in models.items():
                self.use(path)
                turns[path].append(self.timing(self.task.runtime(model), TURNS))
        return [self._measurement(path, models[path], Timing.of_turns(turns[path])) for path in paths]

    def _measurement(self, path: Path, model: Any, timing: Timing) -> Measurement:
        self.use(path)
        batch = self.task.collator()(list(self.task.requests(self.measured_rows().select(range(timing.batch_size)))))
        return Measurement.of(timing, model, path, peak_memory_mb(path, batch))


def _vocabulary(processor: Any) -> dict[str, int] | None:
    """Token -> id; None for what is no tokenizer."""
    return processor.get_vocab() if hasattr(processor, "get_vocab") else None

"""How much better averaged weights score than those that train: `python -m benchmarks.weight_averaging`.

CrossNER with all-MiniLM-L6-v2 and clothing_small with a small ViT from scratch, as `benchmarks.training_speed_tasks`
trains them. Twice an epoch both are judged on validation data, at the end on test data: the same training with and
without averaging, since it goes on with the same weights.
"""

import functools
import statistics
from tempfile import TemporaryDirectory
from typing import Any

from transformers import TrainerCallback

from benchmarks.harness import Bench, main
from benchmarks.training_speed import LEARNING, Case, arguments, loaded, trainer
from benchmarks.training_speed_tasks import CASES

TEXT: dict[str, Any] = {"length_batching": {}, "dropout_masks": {}}
IMAGE: dict[str, Any] = {"attention": {"implementation": "eager"}}
SETTINGS: dict[str, dict[str, Any]] = {
    "crossner": {"learning_rate": 5e-4, "per_device_train_batch_size": 32, "optimizations": TEXT},
    "clothing_small": {"learning_rate": 3e-4, "per_device_train_batch_size": 16, "optimizations": IMAGE},
}
PARTS = {"second_quarter": (0.25, 0.5), "third_quarter": (0.5, 0.75), "last_quarter": (0.75, 1.0)}


def body(bench: Bench) -> None:
    for name, settings in SETTINGS.items():
        found = [
            bench.cell({"case": name, "seed": seed, **settings}, functools.partial(judged, bench, name, seed))
            for seed in bench.seeds
        ]
        for part, (start, end) in PARTS.items():
            gains = [gain(each["curve"], start, end) for each in found]
            bench.claim(f"{name}_{part}", gains, "points on validation data, averaged - plain, mean over the quarter")
        last = [100 * (each["test"][0] - each["test"][1]) for each in found]
        bench.claim(f"{name}_test", last, "points on test data at the end, averaged - plain")


def gain(curve: list[list[float]], start: float, end: float) -> float:
    """Mean difference, in points, over evaluations from more than ``start`` to ``end`` of the training."""
    inside = [(averaged, plain) for at, averaged, plain in curve if start < at <= end]
    return 100 * statistics.fmean(averaged - plain for averaged, plain in inside)


class _Both(TrainerCallback):
    """Judges the weights that train, too, whenever the average has been judged; at the end both on test data."""

    def __init__(self, judge: Any, metric: str, test: Any):
        self.judge, self.metric, self.test, self.busy = judge, metric, test, False
        self.curve: list[list[float]] = []
        self.scores: list[float] = []

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: Any = None, **kwargs: Any) -> None:
        if self.busy:
            return
        self.busy, averaging, at_end = True, self.judge.optimizations[0], state.global_step == state.max_steps
        averaged = self._tested() if at_end else []
        averaging.show(False)
        plain = self.judge.evaluate()[f"eval_{self.metric}"]
        self.scores = [*averaged, *(self._tested() if at_end else [])]
        averaging.show(True)
        self.busy = False
        self.curve.append([state.global_step / state.max_steps, metrics[f"eval_{self.metric}"], plain])

    def _tested(self) -> list[float]:
        return [float(self.judge.predict(self.test, metric_key_prefix="test").metrics[f"test_{self.metric}"])]


def judged(bench: Bench, name: str, seed: int) -> dict[str, Any]:
    """Of one training: [[part of it, averaged score, plain score], ...] and both test scores."""
    case: Case = CASES[name]
    task, splits, _ = loaded(case.row, bench.quick)
    settings = SETTINGS[name]
    steps = 1 if bench.quick else len(splits["train"]) // (2 * settings["per_device_train_batch_size"])
    listed = {"weight_averaging": {"every": 1} if bench.quick else {}, **settings["optimizations"]}
    often = {"eval_strategy": "steps", "eval_steps": steps, "num_train_epochs": case.epochs[0]}
    with TemporaryDirectory() as folder:
        given = {**settings, **often, "use_cpu": True, "bf16": True, "optimizations": listed}
        made = trainer(bench, case, arguments(bench, case, folder, seed, given))
        both = _Both(made, task.main_metric, splits["test"])
        made.add_callback(both)
        made.train()
    return {"curve": both.curve, "test": both.scores}


if __name__ == "__main__":
    main("weight_averaging", body, LEARNING)

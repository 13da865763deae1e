"""Time to the same validation score: `python -m benchmarks.training_speed`.

Three ways to train the first stage of a recipe on a real set:

- default: the stock Trainer with its defaults at batch 32;
- best: the stock Trainer with the best of its own flags, searched here with one seed, one after the other: learning
  rate, batch size, sampling (`group_by_length`, `batch_rebalance`), then bf16, compile and optimizer by their pace;
- ours: `autotune=True`, data_pruning (of the nine tenths with the lowest loss, half) and layerwise_learning_rates, with
  the learning rate, batch size and epochs of best.

Banking77 and all-MiniLM-L6-v2; other sets in `benchmarks.training_speed_tasks`. A way's time is the steps until the
target is first reached on validation data, in trainings judged four times an epoch (all of its steps where it is not),
times the seconds that a step takes, timed in turns with the other ways and with nothing beside them (where steps grow
with progressive_resizing, of those steps); for ours with what tuning took, for a compiled way with compiling.
Evaluations are counted on no side. The default's trainings
end when they have reached the target, those of the others go on to their end, where they are judged on test data; one
of the search ends when it has taken longer than the best so far. Steps of the default and of the search are counted in
bf16 and, for texts, without computing padding, with the batches that stock forms and dropout_masks: what a step learns
is the same but for chance; what it takes is measured apart, as stock computes it.
"""

import functools
import math
import os
import statistics
from collections.abc import Mapping
from dataclasses import dataclass, field
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import patch

from transformers import PrinterCallback, TrainerCallback, set_seed

from benchmarks.harness import Bench, alone, main, ratios
from benchmarks.tasks import QUIET, ROWS, ready, with_stock_trainer
from hf_efficient import autotune, passes, trial, tuning
from hf_efficient.functional import packing as packed_layers
from hf_efficient.functional import rows
from hf_efficient.optimization import changed
from hf_efficient.optimizations import (
    attention,
    data_loading,
    data_pruning,
    dropout_masks,
    layerwise_learning_rates,
    length_batching,
    packing,
    precision,
    progressive_resizing,
    sparse_embeddings,
    weight_averaging,
)
from hf_efficient.trial import run_trial

DEFAULT, BEST, OURS = "default", "best", "ours"
TURNS, STEPS = 3, 20


@dataclass(frozen=True)
class Case:
    """A set to train on.

    Attributes:
        row: of `benchmarks.tasks`.
        target: validation score to reach.
        epochs: of best and ours; of the default, which needs more.
        rates: learning rates that are searched; batches: sizes of batches; sampling: ways to form them. The first of
            each while another is searched.
        padded: whether batches are.
        default_seeds: trainings of the default, which takes longest.
        optimizations: of ours, beside what autotune finds.
    """

    row: str
    target: float
    epochs: tuple[int, int]
    rates: tuple[float, ...]
    batches: tuple[int, ...] = (32, 16)
    sampling: tuple[str, ...] = ("group_by_length", "random", "batch_rebalance")
    padded: bool = True
    default_seeds: int = 1
    optimizations: dict[str, Any] = field(default_factory=dict)


CASE = Case(
    "banking77",
    0.92,
    epochs=(5, 12),
    rates=(3e-4, 5e-4, 1e-3, 1.5e-4),
    optimizations={"data_pruning": {"low": 0.9}, "layerwise_learning_rates": {}},
)
FLAGS: tuple[dict[str, Any], ...] = (
    {},
    {"bf16": True},
    {"torch_compile": True},
    {"bf16": True, "torch_compile": True},
    {"bf16": True, "optim": "adamw_torch"},
)


def body(bench: Bench) -> None:
    measured(bench, CASE)


def measured(bench: Bench, case: Case, prefix: str = "") -> None:
    """All claims of one set, their names after ``prefix``."""
    best = searched(bench, case)
    ways = {DEFAULT: default(case), BEST: best, OURS: ours(case, best)}
    pace = paced(bench, case, ways)
    ways[OURS] = {**ways[OURS], "autotune": False, **pace[OURS]["chosen"]}
    times: dict[str, list[float]] = {}
    tests: dict[str, list[float]] = {}
    for way, settings in ways.items():
        trained = counted(case, settings) if way == DEFAULT else settings
        seeds = bench.seeds[: case.default_seeds] if way == DEFAULT else bench.seeds
        found = [reached(bench, case, seed, trained, whole=way != DEFAULT) for seed in seeds]
        steps = [each["steps"] or each["all_steps"] for each in found]
        ends = [each["all_steps"] for each in found]
        times[way] = [_elapsed(pace[way], *each) for each in zip(steps, ends, strict=True)]
        tests[way] = [each["test"] for each in found]
        bench.claim(f"{prefix}{way}_seconds", times[way], f"s to {case.target} on validation data")
        missed = "".join(f", {each['best']:.3f} at its end" for each in found if each["steps"] is None)
        bench.notes.append(f"{prefix}{way}: {settings}; {pace[way]['step_s']:.3f} s a step, {steps} steps{missed}.")
    for way, target in ((DEFAULT, ">= 5"), (BEST, ">= 1.5")):
        faster = ratios(times[way] * (len(times[OURS]) // len(times[way])), times[OURS])
        bench.claim(f"{prefix}speedup_vs_stock_{way}", faster, f"time of {way} / ours, tuning included", target)
    lost = [100 * (one - other) for one, other in zip(tests[BEST], tests[OURS], strict=True)]
    bench.claim(f"{prefix}points_lost", lost, "points of test score, best - ours", "<= 0.2")
    bench.claim(f"{prefix}tuning_seconds", pace[OURS]["before_s"], "s that autotune took")


def _elapsed(pace: Mapping[str, Any], steps: int, of: int) -> float:
    """Seconds until the first ``steps`` of a training of ``of`` steps are done."""
    course = pace["course"] or [pace["step_s"]]
    return pace["before_s"] + sum(course[step * len(course) // of] for step in range(steps))


def default(case: Case) -> dict[str, Any]:
    return {"num_train_epochs": case.epochs[1], "per_device_train_batch_size": 32}


def ours(case: Case, best: Mapping[str, Any]) -> dict[str, Any]:
    rate = {name: best[name] for name in ("learning_rate", "per_device_train_batch_size", "num_train_epochs")}
    return {**rate, "autotune": True, "optimizations": case.optimizations}


def counted(case: Case, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings with the same steps as those given, which take less time."""
    padded = case.padded and settings.get("train_sampling_strategy") != "group_by_length"
    faster: dict[str, Any] = {"dropout_masks": {}, "packing": {}} if padded else {"dropout_masks": {}}
    return {**settings, "use_cpu": True, "bf16": True, "optimizations": faster if case.padded else {}}


def searched(bench: Bench, case: Case) -> dict[str, Any]:
    """The stock flags that reach the target first: what decides the steps by trainings, the rest by its pace."""
    tried = {
        "learning_rate": case.rates,
        "per_device_train_batch_size": case.batches,
        "train_sampling_strategy": case.sampling,
    }
    formed = {f"{size} {way}": (size, way) for size in case.batches for way in case.sampling}
    shared = {"num_train_epochs": case.epochs[0], "use_cpu": True}
    best: dict[str, Any] = {**shared, **{name: values[0] for name, values in tried.items()}}
    pace = paced(bench, case, {name: _formed(best, *each) for name, each in formed.items()})
    least, steps = math.inf, 1
    for name, values in tried.items():
        for value in values[: 1 if bench.quick else None]:
            if value == best[name] and least < math.inf:  # trained already
                continue
            way = {**best, name: value}
            step_s = pace[f"{way['per_device_train_batch_size']} {way['train_sampling_strategy']}"]["step_s"]
            at_most = None if least == math.inf else int(least / step_s)
            needed = reached(bench, case, 0, counted(case, way), whole=False, at_most=at_most)["steps"]
            if needed is not None and needed * step_s < least:
                least, steps, best[name] = needed * step_s, needed, value
    flagged = {str(flags): {**best, **flags} for flags in FLAGS[: 2 if bench.quick else None]}
    pace = paced(bench, case, flagged)
    return flagged[min(flagged, key=lambda name: steps * pace[name]["step_s"] + pace[name]["before_s"])]


def _formed(settings: Mapping[str, Any], size: int, sampling: str) -> dict[str, Any]:
    return {**settings, "per_device_train_batch_size": size, "train_sampling_strategy": sampling}


def reached(
    bench: Bench, case: Case, seed: int, settings: dict[str, Any], whole: bool = True, at_most: int | None = None
) -> dict[str, Any]:
    """Steps until the target, the best validation score, and the test score at the end.

    Args:
        whole: whether training goes on when the target is reached.
        at_most: steps after which it ends; None: as the settings say.
    """
    key = {"row": case.row, "seed": seed, "target": case.target, "whole": whole, **settings}
    key.update({} if at_most is None else {"at_most": at_most})
    compute = functools.partial(_reached, bench, case, seed, settings, whole, at_most)
    return bench.cell(key, compute, peer="optimizations" not in settings, depends=LEARNING)


class _Judge(TrainerCallback):
    """Notes when the target is reached."""

    def __init__(self, metric: str, target: float, stop: bool, at_most: int | None):
        self.metric, self.target, self.stop, self.at_most = f"eval_{metric}", target, stop, at_most
        self.steps: int | None = None
        self.best = 0.0

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: Any = None, **kwargs: Any) -> None:
        self.best = max(self.best, metrics[self.metric])
        if self.steps is None and metrics[self.metric] >= self.target:
            self.steps = state.global_step
            control.should_training_stop = self.stop

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.at_most:
            control.should_training_stop = True


def _reached(
    bench: Bench, case: Case, seed: int, settings: dict[str, Any], whole: bool, at_most: int | None
) -> dict[str, Any]:
    task, splits, _ = loaded(case.row, bench.quick)
    often = max(1, len(splits["train"]) // (4 * settings["per_device_train_batch_size"]))
    with TemporaryDirectory() as folder:
        judged = {**settings, "eval_strategy": "steps", "eval_steps": often}
        made = trainer(bench, case, arguments(bench, case, folder, seed, judged))
        judge = _Judge(task.main_metric, case.target, not whole, at_most)
        made.add_callback(judge)
        made.train()
        said = made.predict(splits["test"], metric_key_prefix="test").metrics or {}
    return {
        "steps": judge.steps,
        "all_steps": made.state.global_step,
        "best": judge.best,
        "test": said[f"test_{task.main_metric}"],
    }


@functools.cache
def loaded(row: str, quick: bool) -> Any:
    recipe, task, data = ready(ROWS[row])
    splits = task.encode_all(data)
    if quick:
        splits = {name: rows.shuffle(seed=0).select(range(min(96, len(rows)))) for name, rows in splits.items()}
    return task, splits, recipe.model


def arguments(bench: Bench, case: Case, folder: str, seed: int, settings: dict[str, Any]) -> Any:
    task = loaded(case.row, bench.quick)[0]
    short = {"num_train_epochs": 1} if bench.quick else {}
    given = {**task.arguments(), **QUIET, "optimizations": {}, "measure_seconds": 0, **settings, **short}
    return task.arguments_class(folder, seed=seed, **given)


def trainer(bench: Bench, case: Case, args: Any) -> Any:
    """Ours where the arguments ask for anything of ours; stock's else."""
    task, splits, model = loaded(case.row, bench.quick)
    by = task if args.optimizations or args.autotune else with_stock_trainer(task)
    set_seed(args.seed)
    data = {"train_dataset": splits["train"], "eval_dataset": splits["validation"]}
    made = by.trainer(model=task.load_model(model), args=args, processing_class=task.processor, **data)
    made.remove_callback(PrinterCallback)
    return made


def paced(bench: Bench, case: Case, ways: Mapping[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Of each way, the seconds of a step and those before the first one, measured in turns in a process of its own."""
    key = {"row": case.row, "pace of": {name: str(settings) for name, settings in ways.items()}}
    stock = not any("autotune" in settings or settings.get("optimizations") for settings in ways.values())
    return bench.cell(key, lambda: alone(_paced, bench, case, dict(ways)), peer=stock)


def _paced(bench: Bench, case: Case, ways: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    found: dict[str, list[Any]] = {name: [] for name in ways}
    for _ in range(1 if bench.quick else TURNS):
        for name, settings in ways.items():
            found[name].append(_turn(bench, case, settings))
    return {
        name: {
            "step_s": statistics.median(turn["step_s"] for turn in turns),
            "course": [statistics.median(each) for each in zip(*(turn["course"] for turn in turns), strict=True)],
            "before_s": statistics.median(turn["before_s"] for turn in turns),
            "chosen": turns[-1]["chosen"],
        }
        for name, turns in found.items()
    }


def _turn(bench: Bench, case: Case, settings: dict[str, Any]) -> dict[str, Any]:
    """A few steps, or where they grow a training of a few steps; of a way that is tuned, after tuning it anew."""
    with TemporaryDirectory() as folder, patch.dict(os.environ, {tuning.CACHE_VARIABLE: folder}):
        args, before, chosen = arguments(bench, case, folder, 0, settings), 0.0, {}
        if args.autotune:
            found = trainer(bench, case, args).tuning
            chosen = {"optimizations": {**args.optimizations, **found.optimizations}, **found.args}
            before = found.tuning_s
            args = changed(args, autotune=False, **chosen)
        steps, grows = 2 if bench.quick else STEPS, "progressive_resizing" in (args.optimizations or {})
        args = changed(args, max_steps=steps + trial.warm_up(args)) if grows else args
        timed = run_trial(functools.partial(trainer, bench, case), args, steps)
    if args.torch_compile or "compile" in args.optimizations:
        before += timed.setup_seconds
    course = timed.step_seconds if grows else []
    step_s = statistics.fmean(course) if grows else statistics.median(timed.step_seconds)
    return {"step_s": step_s, "course": course, "before_s": before, "chosen": chosen}


LEARNING = (
    data_pruning,
    dropout_masks,
    layerwise_learning_rates,
    length_batching,
    packed_layers,
    passes,
    precision,
    progressive_resizing,
    rows,
    sparse_embeddings,
    weight_averaging,
)
"""What decides how many steps a training needs."""
DEPENDS = (attention, autotune, data_loading, packing, *LEARNING, trial, tuning)

if __name__ == "__main__":
    main("training_speed", body, DEPENDS)

"""`Trainer.hyperparameter_search` for one objective: `python -m benchmarks.hyperparameter_search`.

A part of Banking77, all-MiniLM-L6-v2; learning rate, batch size and epochs are searched with Optuna's TPE, judged after
each epoch on 500 validation examples. Twice with the same sampler and seed:

- stock: `transformers.Trainer` as it is, with Optuna's default pruner (median);
- ours: `EfficientTrainer` with length_batching and precision, successive halving by epochs, and twice as many trials,
  which still take less than half of the time.

The first 8 trials of both have the same values: the sampler draws at random for its first 10.
"""

import functools
import math
import time
from collections.abc import Mapping
from tempfile import TemporaryDirectory
from typing import Any

import optuna
from transformers import PrinterCallback, Trainer, TrainingArguments

from benchmarks.banking77 import banking77
from benchmarks.harness import Bench, alone, main, ratios
from hf_efficient import EfficientTrainer, EfficientTrainingArguments, hyperparameters
from hf_efficient.optimizations import length_batching, precision
from hf_efficient.pretrained import DEFAULT_MODEL

TRIALS, EXAMPLES, JUDGED = {"stock": 8, "ours": 16}, 500, 500
OPTIMIZATIONS: Mapping[str, Any] = {"length_batching": {}, "precision": {}}


def body(bench: Bench) -> None:
    found: dict[str, list[Any]] = {"stock": [], "ours": []}
    for seed in bench.seeds:
        for name in found:
            compute = functools.partial(alone, searched, bench.quick, seed, name)
            settings = {"way": name, "seed": seed, "trials": TRIALS[name]}
            found[name].append(bench.cell(settings, compute, peer=name == "stock"))
    stock, ours = found["stock"], found["ours"]
    gained = [100 * (one["best"] - other["best"]) for one, other in zip(ours, stock, strict=True)]
    spent = ratios([each["seconds"] for each in ours], [each["seconds"] for each in stock])
    bench.claim("accuracy_gained", gained, "points of the best validation accuracy, ours - stock", ">= 0")
    bench.claim("time", spent, "time of ours / stock's, for the whole search", "<= 0.5")
    for name, cells in found.items():
        bench.claim(f"{name}_best", [100 * each["best"] for each in cells], "% of validation examples right")
        bench.claim(f"{name}_pruned", [each["pruned"] for each in cells], f"of {TRIALS[name]} trials")


def space(quick: bool, trial: optuna.Trial) -> dict[str, Any]:
    return {
        "learning_rate": trial.suggest_float("learning_rate", 3e-5, 1e-3, log=True),
        "per_device_train_batch_size": trial.suggest_categorical("per_device_train_batch_size", [16, 32]),
        "num_train_epochs": 1 if quick else trial.suggest_int("num_train_epochs", 2, 6),
    }


def searched(quick: bool, seed: int, way: str) -> dict[str, Any]:
    """Seconds that the search takes, and the best accuracy it finds."""
    task, data = banking77()
    is_stock = way == "stock"
    more = {} if is_stock else {"optimizations": OPTIMIZATIONS, "measure_seconds": 0}
    arguments: Any = TrainingArguments if is_stock else EfficientTrainingArguments
    pruner = None if is_stock else optuna.pruners.SuccessiveHalvingPruner(min_resource=1, reduction_factor=2)
    study = f"{way}-{seed}"
    with TemporaryDirectory() as folder:
        made = (Trainer if is_stock else EfficientTrainer)(
            model_init=lambda: task.load_model(DEFAULT_MODEL),
            args=arguments(
                folder,
                per_device_eval_batch_size=64,
                warmup_steps=0.1,
                eval_strategy="epoch",
                save_strategy="no",
                logging_strategy="no",
                report_to="none",
                disable_tqdm=True,
                dataloader_pin_memory=False,
                seed=seed,
                **more,
            ),
            train_dataset=data["train"].shuffle(seed=0).select(range(64 if quick else EXAMPLES)),
            eval_dataset=data["validation"].shuffle(seed=0).select(range(64 if quick else JUDGED)),
            data_collator=task.collator(),
            processing_class=task.processor,
            compute_metrics=task.compute_metrics,
        )
        made.remove_callback(PrinterCallback)
        storage = optuna.storages.InMemoryStorage()
        began = time.perf_counter()
        best: Any = made.hyperparameter_search(
            functools.partial(space, quick),
            compute_objective=lambda metrics: metrics["eval_accuracy"],
            n_trials=2 if quick else TRIALS[way],
            direction="maximize",
            backend="optuna",
            sampler=optuna.samplers.TPESampler(seed=seed),
            pruner=pruner,
            storage=storage,
            study_name=study,
        )
        seconds = time.perf_counter() - began
    trials = optuna.load_study(study_name=study, storage=storage).trials
    reached = [max(trial.intermediate_values.values(), default=-math.inf) for trial in trials]
    pruned = sum(trial.state == optuna.trial.TrialState.PRUNED for trial in trials)
    return {"seconds": seconds, "best": best.objective, "seen": max(reached), "pruned": pruned}


DEPENDS = (hyperparameters, length_batching, precision)

if __name__ == "__main__":
    main("hyperparameter_search", body, DEPENDS)

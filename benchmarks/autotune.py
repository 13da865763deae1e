"""Is what autotune takes the fastest of what it tried? `python -m benchmarks.autotune`.

Banking77, all-MiniLM-L6-v2, three epochs at batch 32. autotune tries ways to train and takes one. Then each way that it
tried, and the training as it was given, trains an epoch of part of the training set, in turns and with nothing beside
them, in a process of their own: is the way taken the fastest, and do steps take as long as was foretold? Ways are
compared within each turn: the machine's own speed may change by half from minute to minute.
"""

import os
import statistics
import time
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import patch

from benchmarks.banking77 import banking77, trainer
from benchmarks.harness import Bench, alone, main, ratios
from hf_efficient import autotune, trial, tuning
from hf_efficient.functional import packing
from hf_efficient.optimizations import dropout_masks, length_batching, precision, sparse_embeddings

EXAMPLES, TURNS = 1000, 6


def body(bench: Bench) -> None:
    found = bench.cell({"examples": EXAMPLES, "turns": TURNS}, lambda: alone(tried_and_run, bench))
    runs = found["runs"]
    took = {name: statistics.median(run["seconds"]) for name, run in runs.items()}
    fastest = min(took, key=took.__getitem__)
    taken = runs[found["taken"]]["seconds"]
    times = ratios(taken, runs[fastest]["seconds"])
    bench.claim("taken_vs_fastest", times, "s, the way taken / the fastest way", "<= 1.05")
    given = runs["as given"]["seconds"]
    bench.claim("speedup", ratios(given, taken), "s, as given / the way taken, tuning left out")
    foretold = [took[name] / run["foretold"] for name, run in runs.items()]
    bench.claim("foretold", foretold, "s, a whole run / as foretold from a few steps, of all ways")
    bench.claim("tuning_seconds", found["tuning_s"], "s that autotune took")
    bench.claim("worth_it", found["before_s"] / (found["expected_s"] + found["tuning_s"]), "s, as given / with tuning")
    bench.notes += [
        f"{name}: {took[name]:.1f} s, foretold {run['foretold']:.1f}{' (taken)' if name == found['taken'] else ''}"
        for name, run in sorted(runs.items(), key=lambda item: took[item[0]])
    ]


def tried_and_run(bench: Bench) -> dict[str, Any]:
    data = banking77()[1]["train"].shuffle(seed=0)
    few = data.select(range(200 if bench.quick else EXAMPLES))
    tried = {"max_steps": 60} if bench.quick else {}
    with (
        TemporaryDirectory() as cache,
        patch.dict(os.environ, {tuning.CACHE_VARIABLE: cache}),
        trainer(autotune=True, **tried) as made,
    ):
        told = made.tuning
    ways = {row.way: row for row in told.rows if row.verdict in ("tried", "taken") and row.way != autotune.SO_FAR}
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    steps = 0
    for _ in range(1 if bench.quick else TURNS):
        for name, row in ways.items():
            with trainer(train=few, num_train_epochs=1, **row.settings) as made:
                start = time.perf_counter()
                made.train()
                seconds[name].append(time.perf_counter() - start)
                steps = made.state.global_step
    taken = [row for row in told.rows if row.verdict == "taken"]
    return {
        "taken": taken[-1].way if taken else "as given",
        "runs": {
            name: {"seconds": seconds[name], "foretold": steps * row.found["step_ms"] / 1000}
            for name, row in ways.items()
        },
        **{name: getattr(told, name) for name in ("before_s", "expected_s", "tuning_s")},
    }


DEPENDS = (autotune, dropout_masks, length_batching, packing, precision, sparse_embeddings, trial, tuning)

if __name__ == "__main__":
    main("autotune", body, DEPENDS)

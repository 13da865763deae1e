"""Is what autotune takes the fastest of what it tried? `python -m benchmarks.autotune`.

Banking77, all-MiniLM-L6-v2, three epochs at batch 32. autotune tries ways to train and takes one. Then each way that it
tried, and the training as it was given, trains some steps, in turns and with nothing beside them, in a process of their
own: is the way taken the fastest? Ways are compared within each turn: the machine's own speed may change by half from
minute to minute. Last each way trains in full, once: does that take as long as was foretold from a few steps?
"""

import os
import statistics
import time
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import patch

from benchmarks.banking77 import trainer
from benchmarks.harness import Bench, alone, main, ratios
from hf_efficient import autotune, trial, tuning
from hf_efficient.functional import packing
from hf_efficient.optimizations import dropout_masks, length_batching, precision, sparse_embeddings

STEPS, TURNS = 40, 6


def body(bench: Bench) -> None:
    found = bench.cell({"steps": STEPS, "turns": TURNS}, lambda: alone(tried_and_run, bench))
    runs = found["runs"]
    took = {name: statistics.median(run["seconds"]) for name, run in runs.items()}
    whole = {name: run["whole_s"] for name, run in runs.items()}
    fastest = min(took, key=took.__getitem__)
    taken = runs[found["taken"]]["seconds"]
    times = ratios(taken, runs[fastest]["seconds"])
    bench.claim("taken_vs_fastest", times, "s, the way taken / the fastest way", "<= 1.05")
    given = runs["as given"]["seconds"]
    bench.claim("speedup", ratios(given, taken), "s, as given / the way taken, tuning left out")
    in_full = whole[found["taken"]]
    bench.claim("full_vs_fastest", in_full / min(whole.values()), "s in full, the way taken / the fastest")
    off = abs(in_full - found["expected_s"]) / found["expected_error_s"]
    bench.claim("off_by_errors", off, "s in full, off what was expected / the error that was told", "<= 1")
    foretold = [whole[name] / run["foretold_s"] for name, run in runs.items()]
    bench.claim("foretold", foretold, "s in full / as foretold, of all ways")
    bench.claim("tuning_seconds", found["tuning_s"], "s that autotune took")
    bench.claim("worth_it", whole["as given"] / (in_full + found["tuning_s"]), "s in full, as given / with tuning")
    bench.notes += [
        f"{name}{' (taken)' if name == found['taken'] else ''}: {took[name]:.1f} s, in full {whole[name]:.0f}, "
        f"foretold {run['foretold_s']:.0f} +/- {run['foretold_error_s']:.0f}"
        for name, run in sorted(runs.items(), key=lambda item: took[item[0]])
    ]


def tried_and_run(bench: Bench) -> dict[str, Any]:
    full = {"max_steps": 60} if bench.quick else {}
    with (
        TemporaryDirectory() as cache,
        patch.dict(os.environ, {tuning.CACHE_VARIABLE: cache}),
        trainer(autotune=True, **full) as made,
    ):
        told = made.tuning
    ways = {row.way: row for row in told.rows if row.verdict in ("tried", "taken") and row.way != autotune.SO_FAR}
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(1 if bench.quick else TURNS):
        for name, row in ways.items():
            seconds[name].append(training_seconds(**row.settings, max_steps=5 if bench.quick else STEPS))
    taken = [row for row in told.rows if row.verdict == "taken"]
    return {
        "taken": taken[-1].way if taken else "as given",
        "runs": {
            name: {
                "seconds": seconds[name],
                "whole_s": training_seconds(**row.settings, **full),
                "foretold_s": row.found["seconds"],
                "foretold_error_s": row.found["seconds_error"],
            }
            for name, row in ways.items()
        },
        **{name: getattr(told, name) for name in ("expected_s", "expected_error_s", "tuning_s")},
    }


def training_seconds(**arguments: Any) -> float:
    with trainer(**arguments) as made:
        start = time.perf_counter()
        made.train()
        return time.perf_counter() - start


DEPENDS = (autotune, dropout_masks, length_batching, packing, precision, sparse_embeddings, trial, tuning)

if __name__ == "__main__":
    main("autotune", body, DEPENDS)

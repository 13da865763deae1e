"""What share of the machine's peak trainings reach: `python -m benchmarks.utilization`.

Banking77, all-MiniLM-L6-v2, fp32, forward and backward passes with the optimizer left out. The peak is what the
multiplication of two large matrices reaches at that moment on the same threads; operations on padding are not counted
as useful. lean: sparse_embeddings and dropout_masks on top of length_batching. Each way trains a few steps, in turns
with the others, in a process of its own, at two batch sizes.
"""

from typing import Any

from transformers import Trainer

from benchmarks.banking77 import trainer
from benchmarks.harness import Bench, alone, main
from benchmarks.steady import steady
from hf_efficient import EfficientTrainer, accounting, passes
from hf_efficient.functional import batching, packing
from hf_efficient.optimizations import dropout_masks, length_batching, sparse_embeddings

WARM_UP, STEPS, TURNS = 2, 6, 3
WAYS: dict[str, dict[str, Any]] = {
    "random": {},
    "length_batching": {"length_batching": {}},
    "packing": {"packing": {}},
    "lean": {"length_batching": {}, "sparse_embeddings": {}, "dropout_masks": {}},
    "compiled": {"length_batching": {}, "compile": {}},
}
BATCHES = (32, 128)


def body(bench: Bench) -> None:
    ways = [(way, batch) for way in WAYS for batch in BATCHES][: 4 if bench.quick else None]
    found = bench.cell({"ways": [f"{way}, {batch}" for way, batch in ways]}, lambda: alone(utilizations, bench, ways))
    for name, values in found.items():
        bench.claim(f"{name}_mfu", [100 * value for value in values], "% of the measured fp32 peak")
    best = max(found, key=lambda name: sorted(found[name])[len(found[name]) // 2])
    bench.claim("best_mfu", [100 * value for value in found[best]], f"% of the measured fp32 peak, {best}", ">= 60")


def utilizations(bench: Bench, ways: list[tuple[str, int]]) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {f"{way}_{batch}": [] for way, batch in ways}
    for _ in range(1 if bench.quick else TURNS):
        for way, batch in ways:
            found[f"{way}_{batch}"].append(utilization(bench, WAYS[way], batch))
    return found


def utilization(bench: Bench, optimizations: dict[str, Any], batch: int) -> float:
    warm_up, steps = (1, 4) if bench.quick else (WARM_UP, STEPS)
    settings = {"max_steps": warm_up + steps, "per_device_train_batch_size": batch, "optimizations": optimizations}
    with trainer(cls=EfficientTrainer if optimizations else Trainer, **settings) as made:
        return steady(made, warm_up)["mfu"]


DEPENDS = (accounting, batching, dropout_masks, length_batching, packing, passes, sparse_embeddings)

if __name__ == "__main__":
    main("utilization", body, DEPENDS)

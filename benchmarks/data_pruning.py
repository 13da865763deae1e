"""What leaving out learnt examples spares and costs: `python -m benchmarks.data_pruning`.

Banking77, all-MiniLM-L6-v2, five epochs with length batching and bf16 on both sides. Each seed trains on all examples
and with data_pruning's defaults, one after the other, first another one in each seed.
"""

from functools import partial
from typing import Any

from benchmarks.banking77 import FAST, accuracy, banking77, trainer
from benchmarks.harness import Bench, main
from hf_efficient import passes
from hf_efficient.functional import example_loss, selection
from hf_efficient.machine import measurement_lock
from hf_efficient.optimizations import data_pruning

EPOCHS = 5
PLAIN, PRUNED = "plain", "pruned"


def body(bench: Bench) -> None:
    found: dict[str, list[dict[str, Any]]] = {PLAIN: [], PRUNED: []}
    for seed in bench.seeds:
        for way in (PLAIN, PRUNED) if seed % 2 == 0 else (PRUNED, PLAIN):
            settings = {"seed": seed, "way": way, "epochs": EPOCHS}
            found[way].append(bench.cell(settings, partial(trained, bench, seed, way), peer=way == PLAIN))
    pairs = list(zip(found[PLAIN], found[PRUNED], strict=True))
    spared = [100 * (1 - ours["examples"] / plain["examples"]) for plain, ours in pairs]
    bench.claim("examples_spared", spared, "% of the examples that go through a backward pass", ">= 20")
    lost = [100 * (plain["accuracy"] - ours["accuracy"]) for plain, ours in pairs]
    bench.claim("accuracy_lost", lost, "points of test accuracy", "<= 0.2")
    bench.claim("plain_accuracy", [100 * plain["accuracy"] for plain, _ in pairs], "% of test predictions right")
    bench.claim("speedup", [plain["seconds"] / ours["seconds"] for plain, ours in pairs], "seconds, plain / pruned")


def trained(bench: Bench, seed: int, way: str) -> dict[str, Any]:
    data = banking77()[1]["train"]
    few = data.select(range(640)) if bench.quick else data
    settings = {**FAST, "data_pruning": {}} if way == PRUNED else FAST
    with measurement_lock(), trainer(seed, train=few, num_train_epochs=EPOCHS, optimizations=settings) as made:
        seconds = made.train().metrics["train_runtime"]
        correct = accuracy(made, 100 if bench.quick else None)
        return {"seconds": seconds, "examples": made.accounts.examples, "accuracy": correct}


DEPENDS = (data_pruning, example_loss, passes, selection)

if __name__ == "__main__":
    main("data_pruning", body, DEPENDS)

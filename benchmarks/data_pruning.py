"""What leaving out learnt examples spares and costs: `python -m benchmarks.data_pruning`.

Banking77, all-MiniLM-L6-v2, five epochs with length batching and bf16 on both sides. Each seed trains on all examples
and with data_pruning's defaults. Examples are counted; what that is in time, benchmarks.training_speed tells.
"""

from functools import partial
from typing import Any

from benchmarks.banking77 import FAST, accuracy, banking77, trainer
from benchmarks.harness import Bench, main
from hf_efficient import passes
from hf_efficient.functional import example_loss, selection
from hf_efficient.optimizations import data_pruning

EPOCHS = 5
PLAIN, PRUNED = "plain", "pruned"


def body(bench: Bench) -> None:
    found: dict[str, list[dict[str, Any]]] = {PLAIN: [], PRUNED: []}
    for seed in bench.seeds:
        for way in (PLAIN, PRUNED):
            settings = {"seed": seed, "way": way, "epochs": EPOCHS}
            found[way].append(bench.cell(settings, partial(trained, bench, seed, way), peer=way == PLAIN))
    pairs = list(zip(found[PLAIN], found[PRUNED], strict=True))
    spared = [100 * (1 - ours["examples"] / plain["examples"]) for plain, ours in pairs]
    bench.claim("examples_spared", spared, "% of the examples that go through a backward pass", ">= 20")
    lost = [100 * (plain["accuracy"] - ours["accuracy"]) for plain, ours in pairs]
    bench.claim("accuracy_lost", lost, "points of test accuracy", "<= 0.2")
    bench.claim("plain_accuracy", [100 * plain["accuracy"] for plain, _ in pairs], "% of test predictions right")


def trained(bench: Bench, seed: int, way: str) -> dict[str, Any]:
    data = banking77()[1]["train"]
    few = data.select(range(640)) if bench.quick else data
    settings = {**FAST, "data_pruning": {}} if way == PRUNED else FAST
    with trainer(seed, train=few, num_train_epochs=EPOCHS, optimizations=settings) as made:
        made.train()
        return {"examples": made.accounts.examples, "accuracy": accuracy(made, 100 if bench.quick else None)}


DEPENDS = (data_pruning, example_loss, passes, selection)

if __name__ == "__main__":
    main("data_pruning", body, DEPENDS)

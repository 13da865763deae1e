"""Training time and accuracy with layers that freeze: `python -m benchmarks.layer_freezing`.

Banking77, all-MiniLM-L6-v2, length batching and bf16 on both sides. Each seed trains without freezing and with it,
its layers' outputs computed, cached, and whichever is measured faster; they run one after the other, first another one
in each seed. Time is that of the whole training.
"""

from functools import partial
from typing import Any

from benchmarks.banking77 import FAST, accuracy, banking77, trainer
from benchmarks.harness import Bench, main
from hf_efficient import example_cache, prefix
from hf_efficient.machine import measurement_lock
from hf_efficient.optimizations import layer_freezing

EPOCHS = 4
PLAIN = "plain"
WAYS: dict[str, dict[str, Any]] = {
    PLAIN: {},
    "computed": {"layer_freezing": {"cache": False}},
    "cached": {"layer_freezing": {"cache": True}},
    "auto": {"layer_freezing": {}},
}


def body(bench: Bench) -> None:
    found: dict[str, list[dict[str, Any]]] = {way: [] for way in WAYS}
    for seed in bench.seeds:
        names = list(WAYS)
        for way in names[seed % len(names) :] + names[: seed % len(names)]:
            settings = {"seed": seed, "way": way, "epochs": EPOCHS, **WAYS[way]}
            found[way].append(bench.cell(settings, partial(trained, bench, seed, way), peer=way == PLAIN))
    for way in [way for way in WAYS if way != PLAIN]:
        pairs = list(zip(found[PLAIN], found[way], strict=True))
        bench.claim(f"{way}_speedup", [a["seconds"] / b["seconds"] for a, b in pairs], "seconds, plain / freezing")
        lost = [100 * (a["accuracy"] - b["accuracy"]) for a, b in pairs]
        bench.claim(f"{way}_accuracy_lost", lost, "points of test accuracy")
    told = found["auto"][0]["told"]
    bench.claim("spared", [100 * cell["told"]["layer_steps_spared"] for cell in found["auto"]], "% of layers' steps")
    bench.claim("served", [100 * cell["told"]["share_from_cache"] for cell in found["cached"]], "% of look-ups found")
    bench.notes.append(f"Layers of seed 0 froze after steps {told['after_steps']}.")


def trained(bench: Bench, seed: int, way: str) -> dict[str, Any]:
    data = banking77()[1]["train"]
    few = data.select(range(640)) if bench.quick else data
    settings = {**FAST, **WAYS[way]}
    if bench.quick and way != PLAIN:
        settings["layer_freezing"] = {**settings["layer_freezing"], "every": 5, "threshold": 1.0}
    with measurement_lock(), trainer(seed, train=few, num_train_epochs=EPOCHS, optimizations=settings) as made:
        seconds = made.train().metrics["train_runtime"]
        told = [one.describe() for one in made.optimizations if one.name == "layer_freezing"]
        return {
            "seconds": seconds,
            "accuracy": accuracy(made, 100 if bench.quick else None),
            "told": next(iter(told), {}),
        }


DEPENDS = (example_cache, layer_freezing, prefix)

if __name__ == "__main__":
    main("layer_freezing", body, DEPENDS)

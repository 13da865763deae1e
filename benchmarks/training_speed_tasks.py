"""`benchmarks.training_speed` on other tasks: `python -m benchmarks.training_speed_tasks`.

Entities: CrossNER, trained on its test part, which is the largest, all-MiniLM-L6-v2; ours with weight_averaging and
layerwise_learning_rates. Images: clothing_small and a small ViT trained from scratch; ours with progressive_resizing.
Targets: some 95 % of what stock reaches by its best rate.
"""

from benchmarks.harness import Bench, main
from benchmarks.training_speed import DEPENDS, Case, measured

CASES = {
    "crossner": Case(
        "crossner",
        0.60,
        epochs=(8, 30),
        rates=(5e-4, 3e-4),
        optimizations={"weight_averaging": {}, "layerwise_learning_rates": {}},
    ),
    "clothing_small": Case(
        "clothing_small",
        0.38,
        epochs=(12, 40),
        rates=(3e-4, 5e-4),
        sampling=("random",),
        padded=False,
        default_seeds=3,
        optimizations={"progressive_resizing": {}},
    ),
}


def body(bench: Bench) -> None:
    for name, case in CASES.items():
        measured(bench, case, f"{name}_")


if __name__ == "__main__":
    main("training_speed_tasks", body, DEPENDS)

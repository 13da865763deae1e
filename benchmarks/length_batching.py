"""Training speed and accuracy of length_batching against the stock Trainer's sampling strategies, on Banking77.

Speed: one epoch of the same rows in 32-bit floats by each strategy in turn, several rounds; ratios round by round.
Accuracy: three epochs of the whole training set from several seeds, on the test set, both sides in bf16 autocast (half
the time). Everything else is equal: model, learning rate, batch size 32 (on average, where sizes vary).
"""

import functools
from typing import Any

import torch

import hf_efficient.batches
import hf_efficient.functional.batching
import hf_efficient.optimizations.length_batching
from benchmarks.banking77 import BATCH, accuracy, banking77, trainer
from benchmarks.harness import Bench, main
from hf_efficient.functional.batching import padded_tokens
from hf_efficient.machine import measurement_lock

OURS, RANDOM = "length_batching", "random"
STRATEGIES = (OURS, RANDOM, "group_by_length", "batch_rebalance")
ROUNDS, ROWS = 5, 1600
QUICK_ROUNDS, QUICK_ROWS = 1, 160


def arguments(strategy: str) -> dict[str, Any]:
    """Training arguments of a strategy."""
    if strategy == OURS:
        return {"optimizations": {"length_batching": {}}}
    return {"train_sampling_strategy": strategy, "dataloader_drop_last": False}


def examples_per_second(strategy: str, rows: int) -> float:
    """Of one epoch over ``rows`` random rows."""
    train = banking77()[1]["train"].shuffle(seed=0).select(range(rows))
    with trainer(train=train, num_train_epochs=1, **arguments(strategy)) as made:
        return rows / made.train().metrics["train_runtime"]


def speed_round(rows: int, number: int) -> dict[str, float]:
    """Examples per second of each strategy; who goes first changes from round to round."""
    order = STRATEGIES[number % len(STRATEGIES) :] + STRATEGIES[: number % len(STRATEGIES)]
    with measurement_lock():
        return {strategy: examples_per_second(strategy, rows) for strategy in order}


def final_accuracy(strategy: str, seed: int, rows: int | None, test_rows: int | None) -> dict[str, float]:
    train = banking77()[1]["train"]
    train = train if rows is None else train.shuffle(seed=0).select(range(rows))
    options = {"num_train_epochs": 1 if rows else 3, "bf16": True, "use_cpu": True, **arguments(strategy)}
    with trainer(seed=seed, train=train, **options) as made:
        made.train()
        return {"accuracy": accuracy(made, test_rows)}


def body(bench: Bench) -> None:
    rows, rounds = (QUICK_ROWS, QUICK_ROUNDS) if bench.quick else (ROWS, ROUNDS)
    found = [
        bench.cell({"speed": "round", "rows": rows, "round": number}, functools.partial(speed_round, rows, number))
        for number in range(rounds)
    ]
    for strategy in STRATEGIES[1:]:
        target = ">= 3" if strategy == RANDOM else ">= 1"
        unit = f"examples/s of length_batching / stock {strategy}, one epoch at batch {BATCH}"
        bench.claim(f"speedup_vs_{strategy}", [one[OURS] / one[strategy] for one in found], unit, target)
    limits = {"rows": 160, "test_rows": 64} if bench.quick else {"rows": None, "test_rows": None}
    accuracies = {
        strategy: [
            bench.cell(
                {"accuracy": strategy, "seed": seed},
                functools.partial(final_accuracy, strategy, seed, **limits),
                peer=strategy != OURS,
            )["accuracy"]
            for seed in bench.seeds
        ]
        for strategy in (OURS, RANDOM)
    }
    for strategy, values in accuracies.items():
        bench.claim(f"accuracy_{strategy}", values, "accuracy on test after 3 epochs")
    differences = [100 * (ours - stock) for ours, stock in zip(*accuracies.values(), strict=True)]
    unit = "points, length_batching - random batches, seed by seed"
    bench.claim("accuracy_difference", differences, unit, ">= -0.3")
    bench.notes.append(bound())


def bound() -> str:
    """How much faster batches without any padding could be."""
    lengths = torch.tensor([len(ids) for ids in banking77()[1]["train"]["input_ids"]])
    order = torch.randperm(len(lengths), generator=torch.Generator().manual_seed(0)).tolist()
    random = [order[start : start + BATCH] for start in range(0, len(order), BATCH)]
    padded, real = padded_tokens(lengths, random) / len(lengths), float(lengths.float().mean())
    return (
        f"Random batches of {BATCH} are padded to {padded:.1f} tokens an example, the texts have {real:.1f}: where "
        f"time goes with tokens, batches of any kind are at most {padded / real:.2f} times as fast here, and "
        "less by what a step costs whatever its batch (optimizer, clipping, the Trainer's own work)."
    )


DEPENDS = (
    hf_efficient.batches,
    hf_efficient.functional.batching,
    hf_efficient.optimizations.length_batching,
)

if __name__ == "__main__":
    main("length_batching", body, DEPENDS)

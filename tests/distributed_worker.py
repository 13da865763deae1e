"""Trainings that `tests/test_distributed.py` runs on several processes and, for comparison, on one."""

import functools
import gc
import os
import sys
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import Trainer, TrainingArguments, set_seed

from hf_efficient import EfficientTrainer, EfficientTrainingArguments
from hf_efficient.tuning import CACHE_VARIABLE
from tests.test_contract import ROWS
from tests.test_parity import Stop, build
from tests.tiny import text_model

IMAGES_TOO = {"data_pruning", "distillation", "structured_pruning"}
"""Where what processes exchange depends on the kind of model: batches without lengths, other teachers, other shapes."""
TUNED = "autotuned"
"""One process may choose otherwise than two."""
SHARDED = "distillation-shard_teacher"
REPORTED = ("precision", "text")
"""With a report, which evaluates before the training, and so must not matter to it; it takes seconds."""


RARE = 1e-9
"""A rate of dropout by which nothing is dropped in a test, though it is drawn for."""


def without_dropout(kind: str, rate: float = 0.0) -> dict[str, Any]:
    """Processes draw different random numbers."""
    return {"model": text_model(hidden_dropout_prob=rate, attention_probs_dropout_prob=rate)} if kind == "text" else {}


BATCH, RATE = 8, 0.3


def accumulated(count: int) -> dict[str, Any]:
    """Arguments with which one process takes what ``count`` take. The tiny classifier's loss ignores the number of
    items, so that stock adds micro-batches up: rate and bound are by so much less and more."""
    return {
        "gradient_accumulation_steps": count,
        "per_device_train_batch_size": BATCH // count,
        "learning_rate": RATE / count,
        "max_grad_norm": float(count),
    }


def cases(processes: int, like: int = 2) -> dict[str, Any]:
    """Name -> trainer factory. The same global batches on any number of processes, in the same order.

    Args:
        like: as how many processes take them where that matters, and this is one.
    """
    batches = {
        "per_device_train_batch_size": BATCH // processes,
        "train_sampling_strategy": "sequential",
        # Stock multiplies the loss by the number of processes for models that average by themselves
        "average_tokens_across_devices": False,
        # Adam would blow rounding noise up wherever the true gradient is zero (a key's bias)
        "optim": "sgd",
        "learning_rate": RATE,
    }

    def stock(folder: Path) -> Any:
        return build(Trainer, TrainingArguments, folder, given=without_dropout("text"), **batches)

    def off(folder: Path) -> Any:
        return build(EfficientTrainer, EfficientTrainingArguments, folder, given=without_dropout("text"), **batches)

    def autotuned(folder: Path) -> Any:
        """Long enough for trials to pay; it is stopped."""
        os.environ[CACHE_VARIABLE] = str(folder / "cache")
        given = {**without_dropout("text"), "callbacks": [Stop]}
        options = {**batches, "train_sampling_strategy": "random", "num_train_epochs": 2000, "measure_seconds": 0}
        return build(EfficientTrainer, EfficientTrainingArguments, folder, given=given, autotune=True, **options)

    found: dict[str, Any] = {"stock": stock, "off": off, TUNED: autotuned}
    for name, row in ROWS.items():
        kinds = ("text", "vision") if name in IMAGES_TOO or "text" in row.idle_on else ("text",)
        for kind in (kind for kind in kinds if kind not in row.idle_on):

            def on(folder: Path, name: str = name, kind: str = kind, row: Any = row, **settings: Any) -> Any:
                more = accumulated(like) if row.accumulates and processes == 1 else {}
                changes = {**row.arguments, **batches, **row.distributed, **more}
                seconds = 0.01 if (name, kind) == REPORTED else 0
                listed = {name: {**row.settings, **settings}}
                options = {"optimizations": listed, "measure_seconds": seconds, **changes}
                given = without_dropout(kind, RARE if name == "dropout_masks" else 0.0)
                return build(EfficientTrainer, EfficientTrainingArguments, folder, kind, given, **options)

            found[f"{name}-{kind}"] = on
    found[SHARDED] = functools.partial(found["distillation-text"], cache=False, shard_teacher=processes > 1)
    return found


def run(folder: Path, processes: int, rank: int, like: int = 2) -> None:
    gc.freeze()  # Accelerate collects garbage before every training: not through what was imported
    for name, make in cases(processes, like).items():
        trainer = make(folder / name)
        set_seed(0)
        trainer.train()
        losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
        result = {
            "weights": dict(trainer.model.state_dict()),
            "losses": torch.tensor(losses) / trainer.args.gradient_accumulation_steps,  # logged is their sum
            "world_size": trainer.args.world_size,
        }
        torch.save(result, folder / f"{name}-rank{rank}.pt")


if __name__ == "__main__":
    transformers.logging.set_verbosity_error()
    run(Path(sys.argv[1]), int(os.environ["WORLD_SIZE"]), int(os.environ["RANK"]))

"""Trainings in which two processes send each other less, for `tests/test_communication.py`."""

import os
import sys
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import set_seed

from hf_efficient import ConfigError, EfficientTrainer, EfficientTrainingArguments
from tests.distributed_worker import without_dropout
from tests.test_parity import build

BATCH, RATE, EPOCHS = 4, 0.3, 2
WAYS: dict[str, Any] = {
    "exact": None,
    "fp16": {"gradients": "fp16"},
    "bf16": {"gradients": "bf16"},
    "power_sgd": {"gradients": "power_sgd", "rank": 2},
    "apart": {"local_steps": 1000},
    "two_apart": {"local_steps": 2},
    "saved": {"local_steps": 1000},
    "evaluated": {"local_steps": 1000},
    "accumulated": {"local_steps": 2},
}
MORE = {
    # Stock adds up the gradients where a model may average by itself
    "accumulated": {
        "per_device_train_batch_size": BATCH // 2,
        "gradient_accumulation_steps": 2,
        "learning_rate": RATE / 2,
    },
    "saved": {"save_strategy": "steps", "save_steps": 3},
    "evaluated": {"eval_strategy": "steps", "eval_steps": 5},
}
PLAIN = {
    "per_device_train_batch_size": BATCH,
    "train_sampling_strategy": "sequential",
    "average_tokens_across_devices": False,
    "optim": "sgd",
    "learning_rate": RATE,
    "lr_scheduler_type": "constant",
    "max_grad_norm": 0.0,
    "num_train_epochs": EPOCHS,
    "measure_seconds": 0,
    "save_strategy": "no",
}


def trainer(folder: Path, given: Any = None, **changes: Any) -> Any:
    options = {**PLAIN, **changes}
    given = {**without_dropout("text"), **(given or {})}
    return build(EfficientTrainer, EfficientTrainingArguments, folder, "text", given, **options)


def refusals(folder: Path) -> list[str]:
    found = []
    sparse = {"optimizations": {"sparse_embeddings": {"min_rows": 8}}, "communication": {"gradients": "bf16"}}
    for more in ({"optimizations": {"pruning": {}}}, {"max_skipped_steps": 2}, sparse):
        try:
            trainer(folder, **{"communication": {"local_steps": 4}, **more}).train()
        except ConfigError as error:
            found.append(str(error))
    return found


def main(folder: Path, rank: int) -> None:
    def train(way: str, name: str, checkpoint: Any = None) -> None:
        made = trainer(folder / way, communication=WAYS[way], **MORE.get(way, {}))
        set_seed(0)
        made.train(resume_from_checkpoint=checkpoint)
        losses = torch.tensor([entry["loss"] for entry in made.state.log_history if "loss" in entry])
        torch.save({"weights": dict(made.model.state_dict()), "losses": losses}, folder / f"{name}-rank{rank}.pt")

    for way in WAYS:
        train(way, way)
    train("saved", "resumed", str(folder / "saved" / "checkpoint-6"))
    torch.save(refusals(folder / "refused"), folder / f"refused-rank{rank}.pt")


if __name__ == "__main__":
    transformers.logging.set_verbosity_error()
    main(Path(sys.argv[1]), int(os.environ["RANK"]))

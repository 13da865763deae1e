"""Time per step of EfficientTrainer with everything off, against the stock Trainer.

Both trainers live in one process on the same random sentences and a small BERT, so that a step is short and overhead
shows. They take turns training; a pair's ratio cancels the machine's drift.
"""

import tempfile
import time
from typing import Any

import torch
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    PrinterCallback,
    Trainer,
    TrainingArguments,
    set_seed,
)

from benchmarks.harness import Bench, main
from hf_efficient import EfficientTrainer, EfficientTrainingArguments
from hf_efficient.machine import measurement_lock

STEPS, BATCH, LENGTH = 40, 8, 16


class Sentences(torch.utils.data.Dataset):
    """Random token sequences; what they say does not matter to the clock."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        self.tokens = torch.randint(5, 1000, (STEPS * BATCH, LENGTH), generator=generator)

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"input_ids": self.tokens[index], "labels": index % 2}


def trainer(cls: type[Trainer], args_class: type[TrainingArguments], folder: str) -> Trainer:
    """A trainer on a small BERT: a step is short, so that overhead shows."""
    set_seed(0)
    config = BertConfig(
        vocab_size=1000, hidden_size=64, num_hidden_layers=2, num_attention_heads=2, intermediate_size=128
    )
    args = args_class(
        folder,
        num_train_epochs=1,
        per_device_train_batch_size=BATCH,
        save_strategy="no",
        logging_strategy="no",
        report_to="none",
        disable_tqdm=True,
        dataloader_pin_memory=False,
    )
    made = cls(BertForSequenceClassification(config), args, train_dataset=Sentences())
    made.remove_callback(PrinterCallback)
    return made


def seconds(one: Trainer) -> float:
    start = time.perf_counter()
    one.train()
    return time.perf_counter() - start


def ratios(pairs: int) -> list[float]:
    """Ours over stock, pair by pair; who goes first alternates."""
    found = []
    with tempfile.TemporaryDirectory() as folder, measurement_lock():
        stock = trainer(Trainer, TrainingArguments, f"{folder}/stock")
        ours = trainer(EfficientTrainer, EfficientTrainingArguments, f"{folder}/ours")
        for warm in (stock, ours):
            seconds(warm)
        for index in range(pairs):
            order = (stock, ours) if index % 2 else (ours, stock)
            times = {id(one): seconds(one) for one in order}
            found.append(times[id(ours)] / times[id(stock)])
    return found


def body(bench: Bench) -> None:
    pairs = 10 if bench.quick else 60
    found = bench.cell({"pairs": pairs}, lambda: {"ratios": ratios(pairs)})["ratios"]
    bench.claim("ratio", found, "time per step of EfficientTrainer with everything off / stock Trainer", "<= 1.02")


if __name__ == "__main__":
    import hf_efficient.batches
    import hf_efficient.trainer

    main("overhead", body, [hf_efficient.batches, hf_efficient.trainer])

"""Time per step of EfficientTrainer with everything off, against the stock Trainer: `python -m benchmarks.overhead`.

Both trainers live in one process on the same data and take turns training `STEPS` steps; a pair's ratio cancels the
machine's drift. The claim `ratio` is the median over pairs; it should be at most 1.02.
"""

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    PrinterCallback,
    Trainer,
    TrainingArguments,
    set_seed,
)

from hf_efficient import EfficientTrainer, EfficientTrainingArguments, __version__
from hf_efficient.files import write_json
from hf_efficient.machine import machine, measurement_lock

TARGET = 1.02
RESULT = Path(__file__).parent / "results" / "overhead.json"
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
    with tempfile.TemporaryDirectory() as folder:
        stock = trainer(Trainer, TrainingArguments, f"{folder}/stock")
        ours = trainer(EfficientTrainer, EfficientTrainingArguments, f"{folder}/ours")
        for warm in (stock, ours):
            seconds(warm)
        for index in range(pairs):
            order = (stock, ours) if index % 2 else (ours, stock)
            times = {id(one): seconds(one) for one in order}
            found.append(times[id(ours)] / times[id(stock)])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--quick", action="store_true", help="fewer pairs, nothing written to results/")
    options = parser.parse_args()
    transformers.logging.set_verbosity_error()
    with measurement_lock():
        found = ratios(10 if options.quick else 60)
    quartiles = statistics.quantiles(found, n=4)
    claim = {
        "name": "ratio",
        "value": round(statistics.median(found), 4),
        "unit": "time per step of EfficientTrainer with everything off / stock Trainer",
        "target": f"<= {TARGET}",
        "repeats": len(found),
        "spread": [round(quartiles[0], 4), round(quartiles[2], 4)],
    }
    print(json.dumps(claim, indent=2))
    if not options.quick:
        write_json(RESULT, {"claims": [claim], "machine": machine(), "versions": {"hf_efficient": __version__}})


if __name__ == "__main__":
    main()

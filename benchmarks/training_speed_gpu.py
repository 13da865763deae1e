"""Steps of models of usual size on an accelerator: `python -m benchmarks.training_speed_gpu`.

Random weights in the shapes of BERT-base, ModernBERT-base and ViT-base. Texts are random tokens with the lengths of the
questions and answers of MedQuAD (up to 512 tokens), images random pixels (224 x 224). Stock with the flags that are
known to be fast, bf16, compile, fused AdamW and group_by_length, against autotune=True; each trains a few dozen steps
at batch 32, the first ones left out, in turns. What tuning takes is told beside: it is spent once. On a machine without
an accelerator, `--quick` tries the whole path on small shapes.
"""

import functools
import gc
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import patch

import torch
from torch.utils.data import Dataset
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    ModernBertConfig,
    ModernBertForSequenceClassification,
    PrinterCallback,
    Trainer,
    ViTConfig,
    ViTForImageClassification,
    set_seed,
)

from benchmarks.banking77 import folder_of_data
from benchmarks.harness import Bench, main, ratios
from benchmarks.steady import steady
from hf_efficient import EfficientTrainer, EfficientTrainingArguments, accounting, autotune, passes, trial, tuning
from hf_efficient.functional import batching, packing
from hf_efficient.optimizations import length_batching
from hf_efficient.optimizations import packing as packing_optimization

WARM_UP, STEPS, TURNS, BATCH = 20, 60, 3, 32
EPOCHS = 300
"""Of the training that autotune tunes for: some 20,000 steps."""
FIGURES = ("examples_per_second", "mfu", "memory_mb")
TOKENS, CLASSES = 512, 10
FIRST_TOKEN = 1000
SMALL: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
}


@dataclass(frozen=True)
class Shape:
    """A model: its class, its config's, and whether it reads texts."""

    model: Any
    config: Callable[..., Any]
    texts: bool = True


SHAPES = {
    "bert": Shape(BertForSequenceClassification, BertConfig),
    "modernbert": Shape(ModernBertForSequenceClassification, ModernBertConfig),
    "vit": Shape(ViTForImageClassification, ViTConfig, texts=False),
}


def body(bench: Bench) -> None:
    if not torch.accelerator.is_available() and not bench.quick:
        raise SystemExit("benchmarks.training_speed_gpu needs an accelerator; --quick tries it on the CPU")
    for name, shape in SHAPES.items():
        found = bench.cell(
            {"shape": name, "batch": BATCH, "steps": STEPS}, functools.partial(compared, bench.quick, shape)
        )
        theirs, ours = ({key: [turn[key] for turn in found[way]] for key in FIGURES} for way in ("stock", "ours"))
        speedups = ratios(ours["examples_per_second"], theirs["examples_per_second"])
        bench.claim(f"{name}_speedup", speedups, "examples/s, autotune / stock at its best flags", ">= 1.5")
        bench.claim(f"{name}_mfu", [100 * mfu for mfu in ours["mfu"]], "% of the measured bf16 peak, ours", ">= 45")
        bench.claim(f"{name}_mfu_stock", [100 * mfu for mfu in theirs["mfu"]], "% of the measured bf16 peak, stock")
        if all(theirs["memory_mb"]):
            memory = ratios(ours["memory_mb"], theirs["memory_mb"])
            bench.claim(f"{name}_memory", memory, "peak of device memory, ours / stock")
        bench.claim(f"{name}_tuning_seconds", found["tuning_s"], "s that autotune took")
        bench.notes.append(f"{name}: autotune chose {found['chosen']}")


class Made(Dataset):
    """Random texts of given lengths, or random images."""

    def __init__(self, lengths: list[int] | None, count: int, size: int):
        self.lengths, self.count, self.size = lengths, count, size

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> dict[str, Any]:
        generator = torch.Generator().manual_seed(index)
        label = int(torch.randint(CLASSES, (), generator=generator))
        if self.lengths is None:
            return {"pixel_values": torch.rand(3, self.size, self.size, generator=generator), "labels": label}
        length = self.lengths[index]
        tokens = torch.randint(FIRST_TOKEN, 2 * FIRST_TOKEN, (length,), generator=generator).tolist()
        return {"input_ids": tokens, "attention_mask": [1] * length, "length": length, "labels": label}


def collate(rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    batch = {"labels": torch.tensor([row["labels"] for row in rows])}
    if "pixel_values" in rows[0]:
        return {**batch, "pixel_values": torch.stack([row["pixel_values"] for row in rows])}
    for name in ("input_ids", "attention_mask"):
        tokens = [torch.tensor(row[name]) for row in rows]
        batch[name] = torch.nn.utils.rnn.pad_sequence(tokens, batch_first=True)
    return batch


@functools.cache
def lengths() -> list[int]:
    """Tokens of MedQuAD's answers with their questions, taken as four for three words."""
    rows = (folder_of_data("medquad_faq") / "train.jsonl").read_text(encoding="utf-8").splitlines()
    words = [len(f"{row['question']} {row['answer']}".split()) for row in map(json.loads, rows)]
    return [min(TOKENS, 2 + 4 * count // 3) for count in words]


@contextmanager
def made(quick: bool, shape: Shape, cls: type[Trainer], **options: Any) -> Iterator[Trainer]:
    set_seed(0)
    small = SMALL if quick else {}
    if shape.texts:
        more = {"pad_token_id": 0, "cls_token_id": 1, "sep_token_id": 2, "bos_token_id": 1, "eos_token_id": 2}
        config = shape.config(num_labels=CLASSES, **small, **(more if shape.config is ModernBertConfig else {}))
    else:
        config = shape.config(num_labels=CLASSES, **small, **({"image_size": 32} if quick else {}))
    found = [min(length, 32) for length in lengths()[:256]] if quick else lengths()
    count = len(found) // BATCH * BATCH  # another size of the last batch would be compiled for by itself
    data = Made(found if shape.texts else None, count, 32 if quick else 224)
    with TemporaryDirectory() as folder, patch.dict(os.environ, {tuning.CACHE_VARIABLE: folder}):
        settings = {
            "per_device_train_batch_size": BATCH,
            "num_train_epochs": EPOCHS,
            "save_strategy": "no",
            "logging_strategy": "no",
            "report_to": "none",
            "disable_tqdm": True,
            "dataloader_num_workers": 0 if quick else 4,
            "measure_seconds": 0,
            "bf16": torch.accelerator.is_available(),
            **options,
        }
        args = EfficientTrainingArguments(folder, **settings)
        trainer = cls(model=shape.model(config), args=args, train_dataset=data, data_collator=collate)
        trainer.remove_callback(PrinterCallback)
        yield trainer


def stock(quick: bool, shape: Shape) -> dict[str, Any]:
    """The best flags of the stock trainer."""
    grouped = {"train_sampling_strategy": "group_by_length"} if shape.texts else {}
    return {"torch_compile": not quick, "optim": "adamw_torch_fused", **grouped}


def compared(quick: bool, shape: Shape) -> dict[str, Any]:
    steps = {"max_steps": 4 if quick else WARM_UP + STEPS}
    theirs = stock(quick, shape)
    with made(quick, shape, EfficientTrainer, autotune=True) as tuned:
        found: Any = tuned.tuning  # type: ignore[attr-defined]
    chosen = {**found.args, "optimizations": found.optimizations}
    turns: dict[str, list[dict[str, float]]] = {"stock": [], "ours": []}
    for _ in range(1 if quick else TURNS):
        turns["stock"].append(_turn(quick, shape, Trainer, {**theirs, **steps}))
        turns["ours"].append(_turn(quick, shape, EfficientTrainer, {**chosen, **steps}))
    return {**turns, "chosen": chosen, "tuning_s": found.tuning_s}


def _turn(quick: bool, shape: Shape, cls: type[Trainer], options: dict[str, Any]) -> dict[str, float]:
    gc.collect()
    cuda = torch.cuda.is_available()
    if cuda:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    with made(quick, shape, cls, **options) as trainer:
        figures = steady(trainer, 1 if quick else WARM_UP)
    torch.compiler.reset()
    peak = torch.cuda.max_memory_allocated() / 1e6 if cuda else 0.0
    return dict(zip(FIGURES, (figures["examples_per_second"], figures["mfu"], peak), strict=True))


DEPENDS = (
    *(accounting, autotune, batching, length_batching, packing, packing_optimization),
    *(passes, trial, tuning),
)

if __name__ == "__main__":
    main("training_speed_gpu", body, DEPENDS)

"""Batches made beforehand, in processes of their own."""

import math
import multiprocessing
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hf_efficient.errors import ConfigError, NoEffectWarning
from hf_efficient.machine import available_cores
from hf_efficient.optimization import Context, Optimization, Order, changed
from hf_efficient.proposal import Observed, Proposal

if TYPE_CHECKING:
    from transformers import TrainingArguments

START_SECONDS, IMPORT_SECONDS = 0.5, 7.0
"""For workers to start, in each epoch: where they are forked, and where they import everything anew."""


@dataclass(eq=False, kw_only=True)
class DataLoading(Optimization):
    """Read, augment and collate in worker processes while the device computes.

    They are started anew each epoch: with workers that stay, stock (5.24) draws other random numbers after a resume.
    """

    workers: int = 1
    """Processes, for each process that trains."""
    prefetch: int = 2
    """Batches that each has ready."""
    pin_memory: bool = True
    """Whether batches lie where a GPU can fetch them by itself; no matter on a CPU."""

    name = "data_loading"
    order = Order.DATA

    def __post_init__(self) -> None:
        if self.workers < 0 or self.prefetch < 1:
            raise ConfigError(
                f"data_loading needs workers >= 0 and prefetch >= 1, got {self.workers} and {self.prefetch}"
            )

    @classmethod
    def proposals(cls, observed: Observed) -> Iterable[Proposal]:
        if not observed.args.dataloader_num_workers:
            # Only asked: the user may set it yet
            method = multiprocessing.get_start_method(allow_none=True) or multiprocessing.get_all_start_methods()[0]
            start = START_SECONDS if method == "fork" else IMPORT_SECONDS
            epochs = 1 if observed.args.max_steps > 0 else math.ceil(observed.args.num_train_epochs)
            for workers in sorted({1, max(1, min(4, available_cores() // 2))}):
                yield Proposal({"workers": workers}, observed.waiting, start * epochs)

    def configure(self, args: "TrainingArguments") -> "TrainingArguments":
        wanted = {
            "dataloader_num_workers": self.workers,
            "dataloader_prefetch_factor": self.prefetch if self.workers else None,
            "dataloader_persistent_workers": False,
            "dataloader_pin_memory": self.pin_memory,
        }
        if all(getattr(args, name) == value for name, value in wanted.items()):
            warnings.warn("data_loading is what the training arguments say already", NoEffectWarning, 2)
            return args
        return changed(args, **wanted)

    def check(self, context: Context) -> None:
        cores = available_cores()
        if self.workers > 4 * cores:
            raise ConfigError(f"data_loading.workers={self.workers} on {cores} cores; take at most {4 * cores}")

    def describe(self) -> dict[str, Any]:
        return {"workers": self.workers, "prefetch": self.prefetch}

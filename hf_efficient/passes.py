"""Batches of a training set, pass by pass: the same number of them in each epoch, shared out among processes."""

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from transformers.trainer_pt_utils import BatchRebalanceSampler

from hf_efficient.errors import ConfigError
from hf_efficient.optimization import Context, Optimization

if TYPE_CHECKING:
    from transformers import TrainingArguments


class Passes(BatchRebalanceSampler):
    """The batches of this process, epoch by epoch; an epoch is a pass over all examples, in random order.

    Trainer takes a `BatchRebalanceSampler` for a batch sampler that shares batches out among processes by itself. Of
    the base only that is used.

    Attributes:
        count: examples in the training set.
        steps: optimizer steps in a pass over all of them.
    """

    def __init__(self, count: int, args: "TrainingArguments", steps: int):
        self.count, self.steps = count, steps
        self.processes, self.rank = args.world_size, args.process_index
        self.accumulation = args.gradient_accumulation_steps
        self.seed = args.seed if args.data_seed is None else args.data_seed
        self.epoch = 0
        # accelerate hands the epoch on to a batch sampler's `sampler`
        self.sampler = self

    @property
    def batches_per_pass(self) -> int:
        """Over all processes, in a pass over all examples."""
        return self.steps * self.accumulation * self.processes

    def __len__(self) -> int:
        return self.steps * self.accumulation

    def __iter__(self) -> Iterator[list[int]]:
        return iter(self.batches(self.epoch)[self.rank :: self.processes])

    def batches(self, number: int) -> list[list[int]]:
        """All batches of a pass over all examples: one for each process, then the next one for each, and so on."""
        return self.form(torch.arange(self.count), self.steps, number)

    def form(self, examples: torch.Tensor, steps: int, number: int) -> list[list[int]]:
        """Batches for ``steps`` optimizer steps out of ``examples`` (indices), in pass ``number``.

        A step holds the same examples however many processes share it.
        """
        order = torch.randperm(len(examples), generator=self.generator(number))
        per_step = self.accumulation * self.processes
        return [part.tolist() for step in examples[order].tensor_split(steps) for part in step.tensor_split(per_step)]

    def describe(self) -> dict[str, Any]:
        """What an optimization tells of its batches."""
        return {}

    def generator(self, number: int) -> torch.Generator:
        return torch.Generator().manual_seed(self.seed + number)


class FormsBatches(Optimization):
    """Base of optimizations that have a `batch_sampler`, kept as ``_sampler``: tells it the epoch, and what it is."""

    _sampler: Passes | None = None
    _epoch = -1

    def reset(self) -> None:
        self._sampler, self._epoch = None, -1

    def check(self, context: Context) -> None:
        strategy = context.args.train_sampling_strategy
        if strategy != "random":
            raise ConfigError(f"{self.name} forms the batches itself; drop train_sampling_strategy={strategy}")

    def describe(self) -> dict[str, Any]:
        return {} if self._sampler is None else self._sampler.describe()

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        super().on_train_begin(args, state, control, **kwargs)
        self._epoch = math.floor(state.epoch or 0) - 1

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        # Stock tells the sampler its epoch too, but not on two processes when it resumes within one (5.24)
        self._epoch += 1
        if self._sampler is not None:
            self._sampler.set_epoch(self._epoch)

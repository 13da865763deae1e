"""Length batching: examples of similar length meet in a batch, and every batch costs the same."""

import math
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from transformers.trainer_pt_utils import BatchRebalanceSampler

from hf_efficient.errors import ConfigError, NoEffectWarning
from hf_efficient.functional.batching import length_batches, padded_tokens
from hf_efficient.optimization import Optimization, Order

if TYPE_CHECKING:
    from transformers import TrainingArguments


@dataclass(eq=False, kw_only=True)
class LengthBatching(Optimization):
    """Batch examples of similar length, as many as a token budget holds.

    Batches come from shuffled windows, anew each epoch. Their sizes vary, and each example weighs the same whatever
    batch it is in: the trainer multiplies a batch's mean loss by what it holds over what an average batch holds, so
    that the gradients of an epoch add up to that of the whole training set. Evaluation runs in order of length, and
    its results come back in the order of the data.
    """

    tokens_per_batch: int | None = None
    """Padded tokens in a batch, per device; null: what gives as many steps as `per_device_train_batch_size` does."""
    window_batches: int = 50
    """Batches that are formed from the same shuffled examples: more means less padding and less randomness."""

    name = "length_batching"
    order = Order.DATA

    def __post_init__(self) -> None:
        if self.tokens_per_batch is not None and self.tokens_per_batch < 1:
            raise ConfigError(f"tokens_per_batch must be at least 1, got {self.tokens_per_batch}")
        if self.window_batches < 1:
            raise ConfigError(f"window_batches must be at least 1, got {self.window_batches}")
        self.reset()

    def reset(self) -> None:
        self._sampler: LengthBatches | None = None
        self._epoch = -1

    def check(self, context: Any) -> None:
        strategy = context.args.train_sampling_strategy
        if strategy != "random":
            raise ConfigError(f"length_batching forms the batches itself; drop train_sampling_strategy={strategy}")

    def batch_sampler(self, lengths: torch.Tensor | None, args: "TrainingArguments") -> BatchRebalanceSampler | None:
        if lengths is None or lengths.unique().numel() <= 1:
            warnings.warn("length_batching: examples have no length, or all the same", NoEffectWarning, 2)
            return None
        self._sampler = LengthBatches(lengths, args, self._steps(lengths, args), self.window_batches)
        return self._sampler

    def evaluation_order(self, lengths: torch.Tensor) -> torch.Tensor:
        return torch.argsort(lengths, descending=True, stable=True)  # the largest first: memory runs out at once or not

    def _steps(self, lengths: torch.Tensor, args: "TrainingArguments") -> int:
        per_step = args.world_size * args.gradient_accumulation_steps
        if self.tokens_per_batch is None:
            batches = len(lengths) / args.train_batch_size
        else:
            longest = int(lengths.max())
            if longest > self.tokens_per_batch:
                raise ConfigError(
                    f"length_batching.tokens_per_batch={self.tokens_per_batch} is less than the longest example has "
                    f"({longest} tokens); raise it, or cut examples to fewer tokens"
                )
            # a window's last batches are padded a little more than the mean: 2 % keeps nearly all within the budget
            batches = 1.02 * int(lengths.sum()) / self.tokens_per_batch
        return max(1, min(math.ceil(batches / per_step), len(lengths) // per_step))

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        super().on_train_begin(args, state, control, **kwargs)
        self._epoch = math.floor(state.epoch or 0) - 1

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        # Stock tells the sampler its epoch too, but not on two processes when it resumes within one (5.24)
        self._epoch += 1
        if self._sampler is not None:
            self._sampler.set_epoch(self._epoch)

    def describe(self) -> dict[str, Any]:
        return {} if self._sampler is None else self._sampler.describe()


class LengthBatches(BatchRebalanceSampler):
    """The batches of this process, epoch by epoch; as many in each epoch, whatever their sizes.

    Trainer takes a `BatchRebalanceSampler` for a batch sampler that shares batches out among processes by itself. Of
    the base only that is used.
    """

    def __init__(self, lengths: torch.Tensor, args: "TrainingArguments", steps: int, window_batches: int):
        self.tokens = lengths
        self.steps, self.processes, self.accumulation = steps, args.world_size, args.gradient_accumulation_steps
        self.rank = args.process_index
        self.windows = round(len(self) * self.processes / window_batches)
        self.seed = args.seed if args.data_seed is None else args.data_seed
        self.epoch = 0
        # accelerate hands the epoch on to a batch sampler's `sampler`
        self.sampler = self

    def __len__(self) -> int:
        return self.steps * self.accumulation

    def __iter__(self) -> Iterator[list[int]]:
        return iter(self.batches(self.epoch)[self.rank :: self.processes])

    def batches(self, epoch: int) -> list[list[int]]:
        """All batches of an epoch: one for each process, then the next one for each, and so on."""
        generator = torch.Generator().manual_seed(self.seed + epoch)
        per_step = self.processes * self.accumulation
        return length_batches(self.tokens, self.steps, per_step, self.windows, generator)

    def describe(self) -> dict[str, Any]:
        batches = self.batches(0)
        padded, real = padded_tokens(self.tokens, batches), int(self.tokens.sum())
        sizes = [len(batch) for batch in batches]
        return {
            "batches_per_epoch": len(batches),
            "batch_size_min": min(sizes),
            "batch_size_mean": sum(sizes) / len(sizes),
            "batch_size_max": max(sizes),
            "padding_share": 1 - real / padded,
        }

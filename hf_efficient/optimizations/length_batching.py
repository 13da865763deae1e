"""Length batching: examples of similar length meet in a batch, and every batch costs the same."""

import math
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from hf_efficient.errors import ConfigError, NoEffectWarning
from hf_efficient.functional.batching import length_batches, padded_tokens, random_padding
from hf_efficient.optimization import Order
from hf_efficient.passes import FormsBatches, Passes
from hf_efficient.proposal import Observed, Proposal

if TYPE_CHECKING:
    from transformers import TrainingArguments


WINDOWS, WINDOW_STEPS = 4, 4
"""An epoch has so many windows, as stock's `group_by_length` has, if they hold so many steps each: in one window, more
than half of the examples that met would meet again in the next epoch."""


@dataclass(eq=False, kw_only=True)
class LengthBatching(FormsBatches):
    """Batch examples of similar length, as many as a token budget holds.

    Batches come from shuffled windows, anew each epoch. Their sizes vary, and each example weighs the same whatever
    batch it is in: the trainer multiplies a batch's mean loss by what it holds over what an average batch holds, so
    that the gradients of an epoch add up to that of the whole training set. Evaluation runs in order of length, and
    its results come back in the order of the data.
    """

    tokens_per_batch: int | None = None
    """Padded tokens in a batch, per device; null: what gives as many steps as `per_device_train_batch_size` does."""
    window_batches: int = 50
    """Batches that are formed from the same shuffled examples, at most: more means less padding and less randomness. An
    epoch has four windows or more all the same, unless they came to less than four batches each."""

    name = "length_batching"
    order = Order.DATA

    def __post_init__(self) -> None:
        if self.tokens_per_batch is not None and self.tokens_per_batch < 1:
            raise ConfigError(f"tokens_per_batch must be at least 1, got {self.tokens_per_batch}")
        if self.window_batches < 1:
            raise ConfigError(f"window_batches must be at least 1, got {self.window_batches}")

    @classmethod
    def proposals(cls, observed: Observed) -> Iterable[Proposal]:
        lengths, args = observed.lengths, observed.args
        if lengths is None or args.train_sampling_strategy != "random" or int(lengths.max()) == int(lengths.min()):
            return
        yield Proposal(gain=random_padding(lengths, args.train_batch_size, args.seed) * observed.computing)

    def batch_sampler(
        self, count: int, lengths: torch.Tensor | None, args: "TrainingArguments", formed: Passes | None
    ) -> Passes | None:
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


class LengthBatches(Passes):
    """Examples of similar length together, as many padded tokens in each batch as in the others."""

    def __init__(self, lengths: torch.Tensor, args: "TrainingArguments", steps: int, window_batches: int):
        super().__init__(len(lengths), args, steps)
        self.tokens, self.window_batches = lengths, window_batches

    def form(self, examples: torch.Tensor, steps: int, number: int) -> list[list[int]]:
        per_step = self.processes * self.accumulation
        windows = max(round(steps * per_step / self.window_batches), min(WINDOWS, steps // WINDOW_STEPS))
        formed = length_batches(self.tokens[examples], steps, per_step, windows, self.generator(number))
        return [examples[batch].tolist() for batch in formed]

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

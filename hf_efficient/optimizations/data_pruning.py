"""Data pruning: examples that are learnt already take part in some passes only, and count for more where they do."""

import bisect
import itertools
import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from hf_efficient.errors import ConfigError, NoEffectWarning
from hf_efficient.functional.example_loss import example_losses, shifts_labels
from hf_efficient.functional.selection import left_out, soft_prune, steps_of_passes
from hf_efficient.optimization import Context, Order
from hf_efficient.passes import FormsBatches, Passes

if TYPE_CHECKING:
    from torch import nn
    from transformers import TrainingArguments

TOLERANCE = 0.02
"""How far, relatively, the mean of the examples' losses may be from the loss of the trainer."""


@dataclass(eq=False, kw_only=True)
class DataPruning(FormsBatches):
    """Leave out, in each pass over the training set, a random part of the examples with a low loss; the others of these
    count for more (InfoBatch: Qin et al. 2023, arXiv 2303.04947). First and last passes are whole.

    The training gets shorter by what is left out: an epoch of the trainer is an equal share of all steps.
    """

    low: float = 0.75
    """Share of the examples, those with the lowest loss, of which some may be left out."""
    ratio: float = 0.5
    """Share of these that is, in each pass."""
    ending: float = 0.125
    """Share of the passes, at the end, that are whole."""

    name = "data_pruning"
    order = Order.SELECTION
    conflicts = frozenset({"distillation"})

    def __post_init__(self) -> None:
        if not 0 <= self.low <= 1:
            raise ConfigError(f"low must be from 0 to 1, got {self.low:g}")
        for setting, value in (("ratio", self.ratio), ("ending", self.ending)):
            if not 0 <= value < 1:
                raise ConfigError(f"{setting} must be from 0 to below 1, got {value:g}")
        self.reset()

    def reset(self) -> None:
        super().reset()
        self._saved: dict[str, Any] = {}
        self._position, self._compared = 0, False

    def check(self, context: Context) -> None:
        super().check(context)
        if context.args.ignore_data_skip:
            raise ConfigError("data_pruning must know where in the data a training is; drop ignore_data_skip")

    def batch_sampler(
        self, count: int, lengths: torch.Tensor | None, args: "TrainingArguments", formed: Passes | None
    ) -> Passes | None:
        per_step = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
        formed = formed or Passes(count, args, math.ceil(count / per_step))
        kept = count - left_out(count, self.low, self.ratio)
        most = kept // (args.gradient_accumulation_steps * args.world_size)
        pruned = max(1, min(math.ceil(formed.steps * kept / count), most))
        passes = self._passes(formed.steps, pruned, args)
        if pruned >= formed.steps or pruned not in passes:
            warnings.warn(
                f"data_pruning: with low={self.low:g}, ratio={self.ratio:g} and {len(passes)} passes over {count} "
                "examples, no pass is any shorter",
                NoEffectWarning,
                2,
            )
            return None
        self._sampler = PrunedBatches(formed, args, passes, Scores(count, args, self._saved), self.low, self.ratio)
        return self._sampler

    def _passes(self, whole: int, pruned: int, args: "TrainingArguments") -> list[int]:
        if args.max_steps <= 0:
            return steps_of_passes(whole, pruned, math.ceil(args.num_train_epochs), self.ending)
        number = 1
        while sum(passes := steps_of_passes(whole, pruned, number, self.ending)) < args.max_steps + number:
            number += 1
        return passes

    def prepare_model(self, model: "nn.Module", context: Context) -> "nn.Module":
        config: Any = getattr(model, "config", None)
        self._shifted = shifts_labels(type(model).__name__)
        self._multi_label = getattr(config, "problem_type", None) == "multi_label_classification"
        self._smoothing = context.args.label_smoothing_factor
        return model

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._position = state.global_step * args.gradient_accumulation_steps

    def loss(self, loss: torch.Tensor, inputs: Mapping[str, Any], outputs: Any, scale: Any) -> torch.Tensor:
        if not isinstance(self._sampler, PrunedBatches):
            return loss
        batch = self._sampler.take(self._position)
        self._position += 1
        losses, counts = self._losses(batch, inputs, outputs)
        mean = (losses * counts).sum() / counts.sum().clamp_min(1)
        self._compare(loss.detach().float(), (scale * mean).detach())
        self._sampler.scores.note(batch, losses.detach())
        weights = self._sampler.weights_at(self._position - 1)[batch]
        if (weights == 1).all():
            return loss
        more = (weights - 1).to(losses.device) * losses * counts
        return loss + scale * more.sum() / counts.sum().clamp_min(1)

    def _losses(self, batch: list[int], inputs: Mapping[str, Any], outputs: Any) -> tuple[torch.Tensor, torch.Tensor]:
        labels = inputs.get("labels")
        if not isinstance(labels, torch.Tensor) or not hasattr(outputs, "logits"):
            raise ConfigError(
                "data_pruning needs the loss of each example: a model with logits, and labels in one tensor"
            )
        if len(labels) != len(batch):
            raise ConfigError(
                f"data_pruning: the collator made {len(labels)} rows of {len(batch)} examples; each must stay one row"
            )
        try:
            return example_losses(outputs.logits, labels, self._multi_label, self._shifted, self._smoothing)
        except ValueError as error:
            raise ConfigError(f"data_pruning cannot tell the loss of each example: {error}") from error

    def _compare(self, loss: torch.Tensor, ours: torch.Tensor) -> None:
        """Refuse, in the first batch, a loss that is not the mean over examples: it would be weighted wrongly."""
        if not self._compared and not torch.isclose(loss, ours, rtol=TOLERANCE, atol=1e-3):
            raise ConfigError(
                f"data_pruning weighs examples by the loss between logits and labels, which is {float(ours):.4g} here, "
                f"but the training's loss is {float(loss):.4g}: another one; drop data_pruning, or the custom loss"
            )
        self._compared = True

    def state_dict(self) -> dict[str, Any]:
        return self._sampler.scores.state_dict() if isinstance(self._sampler, PrunedBatches) else {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._saved = state


class Scores:
    """Loss of each example when it was last seen, on whichever process that was.

    Attributes:
        starts: pass -> scores, shape (examples,), from which it was decided what it leaves out.
    """

    def __init__(self, count: int, args: "TrainingArguments", saved: Mapping[str, Any]):
        self._all = saved["scores"].clone() if saved else torch.full((count,), math.inf)
        self.starts: dict[int, torch.Tensor] = dict(saved["starts"]) if saved else {}
        self._sums, self._times = torch.zeros(2, count, device=args.device)
        self._shared = args.world_size > 1

    def note(self, examples: list[int], losses: torch.Tensor) -> None:
        where = torch.tensor(examples, device=losses.device)
        self._sums[where] += losses
        self._times[where] += 1

    def at_start_of(self, number: int) -> torch.Tensor:
        if number not in self.starts:
            self._gather()
            self.starts[number] = self._all.clone()
        return self.starts[number]

    def state_dict(self) -> dict[str, Any]:
        self._gather()
        return {"scores": self._all.clone(), "starts": dict(self.starts)}

    def _gather(self) -> None:
        found = torch.stack([self._sums, self._times])
        if self._shared:
            torch.distributed.all_reduce(found)
        sums, times = found.cpu()
        self._all[times > 0] = (sums / times)[times > 0]
        self._sums.zero_()
        self._times.zero_()


class PrunedBatches(Passes):
    """Batches of this process, in passes of unequal length that run on from one epoch into the next.

    Attributes:
        passes: optimizer steps of each.
    """

    def __init__(
        self, formed: Passes, args: "TrainingArguments", passes: Sequence[int], scores: Scores, low: float, ratio: float
    ):
        super().__init__(formed.count, args, formed.steps)
        self.formed, self.passes, self.scores, self.low, self.ratio = formed, passes, scores, low, ratio
        # The stock Trainer takes all epochs to be as long: what is left over of the last pass is not trained on
        steps = math.ceil(args.max_steps / len(passes)) if args.max_steps > 0 else sum(passes) // len(passes)
        self.epoch_steps = steps
        self._starts = [0, *itertools.accumulate(steps * self.accumulation for steps in passes)]
        self._open: dict[int, tuple[list[list[int]], torch.Tensor]] = {}
        self._given: dict[int, list[int]] = {}

    def __len__(self) -> int:
        return self.epoch_steps * self.accumulation

    def __iter__(self) -> Iterator[list[int]]:
        first = self.epoch * len(self)
        for held in (self._open, self.scores.starts):
            for number in [number for number in held if number < self._pass_at(first)]:
                del held[number]
        self._given.clear()
        for position in range(first, first + len(self)):
            number = self._pass_at(position)
            self._given[position] = self._pass(number)[0][position - self._starts[number]]
            yield self._given[position]

    def take(self, position: int) -> list[int]:
        """The examples in the micro-batch at ``position``, counted from the start of the training."""
        if position not in self._given:
            raise ConfigError(
                "data_pruning was not asked for this batch: the training data must come from the trainer's own loader"
            )
        return self._given.pop(position)

    def weights_at(self, position: int) -> torch.Tensor:
        """Of all examples, shape (examples,), in the pass of this position."""
        return self._pass(self._pass_at(position))[1]

    def describe(self) -> dict[str, Any]:
        kept = self.count - left_out(self.count, self.low, self.ratio)
        seen = [self.count if steps == self.steps else kept for steps in self.passes]
        return {
            "passes": len(self.passes),
            "pruned_passes": sum(examples < self.count for examples in seen),
            "examples_spared": 1 - sum(seen) / (self.count * len(seen)),
        }

    def _pass_at(self, position: int) -> int:
        return bisect.bisect_right(self._starts, position) - 1

    def _pass(self, number: int) -> tuple[list[list[int]], torch.Tensor]:
        """This process's batches of a pass, and the weights of all examples in it."""
        if number not in self._open:
            examples, weights = torch.arange(self.count), torch.ones(self.count)
            if self.passes[number] < self.steps:
                scores, chance = self.scores.at_start_of(number), self.generator(len(self.passes) + number)
                examples, weights = soft_prune(scores, self.low, self.ratio, chance)
            batches = self.formed.form(examples, self.passes[number], number)[self.rank :: self.processes]
            self._open[number] = batches, weights
        return self._open[number]

"""What training would make of a cut: a few steps of distillation tell more than the cut model does."""

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from hf_efficient.blocks import layer_stacks, layers_of
from hf_efficient.cutting.observation import Batches, counted, first, rows_that_count
from hf_efficient.timing import evaluating

if TYPE_CHECKING:
    from transformers import PreTrainedModel

SHARE = 0.1
"""Of the training's own steps, that all trials together may take."""
RATE = 1 / 3
"""Of the training's own learning rate: without warm-up, and on few examples, that overshoots."""
LEAST = 6
"""Steps below which a trial tells nothing that repair does not."""


class Taught:
    """What a model gives for each of ``batches``, to be learnt: logits, and the hidden states its stacks end in."""

    def __init__(self, model: "PreTrainedModel", batches: Batches):
        self.batches = batches
        with torch.no_grad(), evaluating(model):
            self.given = [_outputs(model, batch) for batch in batches]


class Trial:
    """A cut model that learns what the uncut one gives, with AdamW and without dropout.

    Args:
        rate: learning rate of the training to come.
    """

    def __init__(self, model: "PreTrainedModel", taught: Taught, rate: float, seed: int = 0):
        self.model = model
        self.optimizer = torch.optim.AdamW(model.parameters(), RATE * rate)
        order = torch.randperm(len(taught.batches), generator=torch.Generator().manual_seed(seed)).tolist()
        self._given = itertools.cycle([(taught.batches[index], taught.given[index]) for index in order])

    def train(self, steps: int) -> None:
        with evaluating(self.model), torch.enable_grad():
            for batch, (logits, hidden) in itertools.islice(self._given, steps):
                ours, states = _outputs(self.model, batch)
                loss = _distance(ours, logits)
                for one, other in zip(states, hidden, strict=True):
                    loss = loss + (one - other).square().mean() / other.var()
                self.optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
                self.optimizer.step()


def _outputs(model: "PreTrainedModel", batch: Mapping[str, torch.Tensor]) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Logits that count (rows, classes), and for each stack the states of real tokens (tokens, width)."""
    hidden: list[torch.Tensor] = []
    handles = [
        layers_of(model, stack)[-1].register_forward_hook(
            lambda _, args, out: hidden.append(counted(batch, first(out)))
        )
        for stack in layer_stacks(model)
    ]
    try:
        return rows_that_count(model(**batch).logits, batch), hidden
    finally:
        for handle in handles:
            handle.remove()


def _distance(logits: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    if wanted.shape[-1] == 1:
        return nn.functional.mse_loss(logits, wanted) / wanted.var().clamp_min(1e-12)
    log = nn.functional.log_softmax
    return nn.functional.kl_div(log(logits, -1), log(wanted, -1), reduction="batchmean", log_target=True)


def rungs(candidates: int, steps: int) -> list[tuple[int, int]]:
    """Successive halving (Jamieson & Talwalkar 2016, arXiv 1502.07943) to a third each time, of ``steps``.

    Returns:
        (how many go on, steps for each of them), rung after rung; empty where there is nothing to compare, or too few
        steps to tell.
    """
    if candidates < 2:
        return []
    sizes = [candidates]
    while sizes[-1] > 2:
        sizes.append(max(2, math.ceil(sizes[-1] / 3)))
    found = [(size, int(steps / len(sizes) / size)) for size in sizes]
    return found if found[0][1] >= LEAST else []


def halving(trials: Sequence[Trial], steps: int, judge: Callable[[Any], float]) -> Iterator[list[tuple[int, float]]]:
    """Train ``trials`` in rungs, the best third going on.

    Args:
        steps: of all together.
        judge: of a model, the less the better.

    Yields:
        after each rung (index of the trial, judgement), the best first.
    """
    going = list(range(len(trials)))
    for size, each in rungs(len(trials), steps):
        going = going[:size]
        for index in going:
            trials[index].train(each)
        judged = sorted(((index, judge(trials[index].model)) for index in going), key=lambda pair: pair[1])
        going = [index for index, _ in judged]
        yield judged

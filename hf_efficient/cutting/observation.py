"""What a model computes on calibration batches: its logits, and inputs and outputs of its sublayers."""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from hf_efficient.blocks import layers_of, output_of, sublayers_of
from hf_efficient.families import LayerStack, Sublayer
from hf_efficient.functional.structured import Moments, Projection, matrix
from hf_efficient.timing import evaluating

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Batches = Sequence[Mapping[str, torch.Tensor]]
Key = tuple[str, int, str]
"""A sublayer of a model: path of its stack, index of its layer, kind."""

STREAM_BYTES = 1_000_000_000
"""What `streams` keeps at most; batches beyond it are left out."""


@torch.no_grad()
def logits_on(model: "PreTrainedModel", batches: Batches) -> list[torch.Tensor]:
    """Rows of logits that count, in fp32: one tensor (rows, classes) for each batch.

    Raises:
        AttributeError: the model gives no logits.
    """
    found = []
    with evaluating(model):
        for batch in batches:
            found.append(rows_that_count(model(**batch).logits, batch))
    return found


def rows_that_count(logits: torch.Tensor, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """``logits`` (..., classes) in fp32 as (rows, classes), without tokens that have no label.

    Where each example may have several classes, each class is a row: a choice between yes and no. Where outputs are no
    class scores, each is a row: a number.
    """
    labels = batch.get("labels")
    if not isinstance(labels, torch.Tensor):
        labels = None  # there are none, or they are lists of objects: each output counts
    if labels is not None and labels.is_floating_point():
        if labels.shape != logits.shape or logits.shape[-1] == 1:
            return logits.float().reshape(-1, 1)
        logits = torch.stack((logits, torch.zeros_like(logits)), dim=-1)
    elif labels is not None and logits.dim() > 2 and labels.shape == logits.shape[:-1]:
        logits = logits[labels != -100]
    return logits.float().flatten(0, -2)


def divergence(model: "PreTrainedModel", batches: Batches, reference: Sequence[torch.Tensor]) -> float:
    """How far ``model`` is from the logits of another on the same batches.

    Mean Kullback-Leibler divergence in nats; of numbers, mean squared difference over the reference's variance.
    """
    total, rows = 0.0, 0
    spread = torch.cat(list(reference)).var().clamp_min(1e-12)
    for logits, other in zip(logits_on(model, batches), reference, strict=True):
        if other.shape[-1] == 1:
            total += ((logits - other).square() / spread).sum().item()
        else:
            log = nn.functional.log_softmax
            kl = nn.functional.kl_div(log(logits, -1), log(other, -1), reduction="sum", log_target=True)
            total += kl.item()
        rows += len(other)
    return total / rows


def key_of(stack: LayerStack, index: int, sublayer: Sublayer) -> Key:
    return stack.path, index, sublayer.kind


class _EnoughError(Exception):
    """Raised by a hook: what comes later in the forward pass is of no interest."""


class _Watch:
    """Hooks on one sublayer: the output projection's input and output, and the stream after the sublayer."""

    def __init__(self, layer: nn.Module, sublayer: Sublayer, seen: Callable[[Any, Any, Any], None]):
        self.x = self.y = torch.empty(0)
        self.handles = [output_of(layer, sublayer).register_forward_hook(self._projection)]
        if sublayer.stream:
            module = layer.get_submodule(sublayer.stream)
            self.handles.append(module.register_forward_pre_hook(lambda _, args: seen(self.x, self.y, args[0])))
        else:
            self.handles.append(layer.register_forward_hook(lambda _, args, out: seen(self.x, self.y, first(out))))

    def _projection(self, module: nn.Module, args: Any, output: torch.Tensor) -> None:
        self.x, self.y = args[0], output

    def remove(self) -> None:
        for handle in self.handles:
            handle.remove()


def first(output: Any) -> torch.Tensor:
    return output[0] if isinstance(output, tuple) else output


@contextlib.contextmanager
def _watching(watches: Sequence[_Watch]) -> Iterator[None]:
    try:
        yield
    finally:
        for watch in watches:
            watch.remove()


def counted(batch: Mapping[str, torch.Tensor], hidden: torch.Tensor) -> torch.Tensor:
    """``hidden`` (batch, length, width) as rows of real tokens; of padded ones only where the lengths agree."""
    mask = batch.get("attention_mask")
    if mask is not None and mask.shape == hidden.shape[:2]:
        return hidden[mask.bool()]
    return hidden.flatten(0, -2)


@torch.no_grad()
def moments(model: "PreTrainedModel", batches: Batches) -> dict[Key, Moments]:
    """Moments of each output projection's inputs with its own outputs."""
    found: dict[Key, Moments] = {}
    current: Mapping[str, torch.Tensor] = {}
    watches = []
    for stack, index, sublayer in sublayers_of(model):
        layer = layers_of(model, stack)[index]
        output = output_of(layer, sublayer)
        made = found[key_of(stack, index, sublayer)] = _moments_of(output)

        def seen(x: torch.Tensor, y: torch.Tensor, stream: torch.Tensor, made: Moments = made) -> None:
            made.add(counted(current, x), counted(current, y))

        watches.append(_Watch(layer, sublayer, seen))
    with _watching(watches), evaluating(model):
        for batch in batches:
            current = batch
            model(**batch)
    return found


@torch.no_grad()
def streams(model: "PreTrainedModel", batches: Batches) -> dict[Key, list[torch.Tensor]]:
    """The residual stream after each sublayer, rows of real tokens: one tensor (tokens, width) for each batch.

    Batches that would take more than `STREAM_BYTES` are left out.
    """
    found: dict[Key, list[torch.Tensor]] = {}
    watches = []
    current: Mapping[str, torch.Tensor] = {}
    for stack, index, sublayer in sublayers_of(model):
        kept = found[key_of(stack, index, sublayer)] = []

        def seen(x: Any, y: Any, stream: torch.Tensor, kept: list[torch.Tensor] = kept) -> None:
            kept.append(counted(current, stream).float().clone())

        watches.append(_Watch(layers_of(model, stack)[index], sublayer, seen))
    used = 0
    with _watching(watches), evaluating(model):
        for batch in batches:
            current = batch
            model(**batch)
            used += sum(kept[-1].nbytes for kept in found.values())
            if used > STREAM_BYTES:
                break
    return found


@torch.no_grad()
def moments_towards(
    model: "PreTrainedModel",
    stack: LayerStack,
    index: int,
    sublayer: Sublayer,
    batches: Batches,
    wanted: Sequence[torch.Tensor],
) -> Moments:
    """Moments of one output projection's inputs with what it should put out for the stream after it to be ``wanted``.

    Args:
        wanted: rows of real tokens, one tensor for each batch, as `streams` gives them; batches beyond are not used.
    """
    layer = layers_of(model, stack)[index]
    made = _moments_of(output_of(layer, sublayer))
    scale = layer.get_parameter(sublayer.scale).float() if sublayer.scale else torch.ones(())
    current = iter(zip(batches, wanted, strict=False))

    def seen(x: torch.Tensor, y: torch.Tensor, stream: torch.Tensor) -> None:
        batch, target = next(current)
        x, y, stream = (counted(batch, value).float() for value in (x, y, stream))
        made.add(x, y + (target - stream) / scale.to(y.device))
        raise _EnoughError

    with _watching([_Watch(layer, sublayer, seen)]), evaluating(model):
        for batch, _ in zip(batches, wanted, strict=False):
            with contextlib.suppress(_EnoughError):
                model(**batch)
    return made


def _moments_of(output: Projection) -> Moments:
    outputs, inputs = matrix(output).shape
    return Moments(inputs, outputs, output.bias is not None)


def unit_gradients(
    model: "PreTrainedModel", batches: Batches, sizes: Mapping[Key, int]
) -> dict[Key, list[torch.Tensor]]:
    """Gradient of each example's loss with respect to a factor on each unit, (examples, units) for each batch.

    Args:
        sizes: columns of a unit, for each sublayer.
    """
    factors: dict[Key, torch.Tensor] = {}
    found: dict[Key, list[torch.Tensor]] = {key: [] for key in sizes}
    handles = []

    def scaled(key: Key) -> Any:
        def hook(module: nn.Module, args: Any) -> Any:
            x = args[0]
            units = x.shape[-1] // sizes[key]
            factor = factors[key] = torch.ones(len(x), units, device=x.device, dtype=x.dtype, requires_grad=True)
            return (x * factor.repeat_interleave(sizes[key], -1).unsqueeze(1), *args[1:])

        return hook

    for stack, index, sublayer in sublayers_of(model):
        output = output_of(layers_of(model, stack)[index], sublayer)
        handles.append(output.register_forward_pre_hook(scaled(key_of(stack, index, sublayer))))
    try:
        with evaluating(model):
            for batch in batches:
                loss = model(**batch).loss * len(next(iter(batch.values())))
                gradients = torch.autograd.grad(loss, list(factors.values()))
                for key, gradient in zip(factors, gradients, strict=True):
                    found[key].append(gradient.detach())
    finally:
        for handle in handles:
            handle.remove()
    return found

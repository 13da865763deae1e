"""Which layers lose most when they are computed in int8: measured one at a time, in PyTorch."""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from hf_efficient.functional.fake_quant import fake_quantize_range, fake_quantize_weight
from hf_efficient.timing import evaluating

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Batches = Sequence[Mapping[str, torch.Tensor]]
Logits = Callable[[], torch.Tensor]


def sensitivities(model: "PreTrainedModel", batches: Batches) -> dict[str, float]:
    """Path of every `nn.Linear` -> how far the logits move when only that one is quantized, the greatest first.

    Quantized as static int8 is: weights per output channel, inputs in the range that all ``batches`` have. How far is
    the mean squared difference of the logits over their variance.

    Raises:
        AttributeError: the model gives no logits.
    """
    layers = {path: module for path, module in model.named_modules() if isinstance(module, nn.Linear)}
    with evaluating(model), torch.no_grad():
        with watching(layers) as ranges:
            reference = _logits(model, batches)
        spread = reference.var().clamp_min(1e-12)
        found = {}
        for path in (path for path in layers if path in ranges):
            with _quantizing(layers[path], *ranges[path]):
                found[path] = ((_logits(model, batches) - reference).square().mean() / spread).item()
    return dict(sorted(found.items(), key=lambda item: -item[1]))


def _logits(model: nn.Module, batches: Batches) -> torch.Tensor:
    """All logits that answer to real input, one after the other."""
    rows = []
    for batch in batches:
        logits = model(**batch).logits.float()
        mask = batch.get("attention_mask")
        rows.append((logits[mask.bool()] if mask is not None and mask.shape == logits.shape[:-1] else logits).flatten())
    return torch.cat(rows)


@contextlib.contextmanager
def watching(layers: Mapping[str, nn.Linear]) -> Iterator[dict[str, tuple[float, float]]]:
    """Path -> least and greatest input, zero between them, of each of ``layers`` (path -> layer) that is called."""
    ranges: dict[str, tuple[float, float]] = {}

    def note(path: str) -> Any:
        def hook(module: nn.Module, args: Any) -> None:
            low, high = ranges.get(path, (0.0, 0.0))
            ranges[path] = min(low, args[0].min().item()), max(high, args[0].max().item())

        return hook

    handles = [module.register_forward_pre_hook(note(path)) for path, module in layers.items()]
    try:
        yield ranges
    finally:
        for handle in handles:
            handle.remove()


@contextlib.contextmanager
def _quantizing(layer: nn.Linear, low: float, high: float) -> Iterator[None]:
    weight = layer.weight.data
    handle = layer.register_forward_pre_hook(lambda _, args: (fake_quantize_range(args[0], low, high), *args[1:]))
    layer.weight.data = fake_quantize_weight(weight)
    try:
        yield
    finally:
        layer.weight.data = weight
        handle.remove()

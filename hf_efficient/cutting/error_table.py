"""What each cut costs in error, measured: one sublayer at a time, repaired, and layer after layer."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from hf_efficient.blocks import layer_stacks, layers_of, output_of, replace_layers, sublayers_of, unit_size, units_of
from hf_efficient.cutting.observation import Batches, Key, divergence, key_of
from hf_efficient.cutting.shape import RIDGE
from hf_efficient.families import LayerStack, Sublayer
from hf_efficient.functional.structured import Moments, keep_layers, matrix, repaired, rows_of_units

if TYPE_CHECKING:
    from transformers import PreTrainedModel

FRACTIONS = (1, 3 / 4, 1 / 2, 3 / 8, 1 / 4, 3 / 16, 1 / 8, 1 / 16, 1 / 32)
"""Shares of a sublayer's units that may be kept."""
MEASURED = (1 / 2, 1 / 4, 1 / 8, 1 / 32)
"""Those whose error is measured; in between it is interpolated."""
WIDE, WIDTH_STEP = 256, 16
"""From this number of units on, widths are multiples of that step: kernels like them."""


def levels(units: int) -> list[int]:
    """Numbers of units that may be kept, the greatest first."""
    return sorted({_rounded(units, share) for share in FRACTIONS}, reverse=True)


def _rounded(units: int, share: float) -> int:
    step = WIDTH_STEP if units >= WIDE else 1
    return max(1, round(units * share / step) * step or step)


@torch.no_grad()
def error_table(
    model: "PreTrainedModel",
    batches: Batches,
    reference: Sequence[torch.Tensor],
    moments: Mapping[Key, Moments],
    orders: Mapping[Key, Sequence[int]],
) -> dict[Key, dict[int, float]]:
    """Divergence from the uncut model when one sublayer has only so many units left, repaired; for each of `levels`.

    Args:
        reference: logits of the uncut model on ``batches``.
        orders: of each sublayer's units, the first to go first.
    """
    table: dict[Key, dict[int, float]] = {}
    for stack, index, sublayer in sublayers_of(model):
        key = key_of(stack, index, sublayer)
        layer = layers_of(model, stack)[index]
        units = units_of(model, layer, sublayer)
        row = {units: 0.0}
        for count in sorted({_rounded(units, share) for share in MEASURED} - {units}, reverse=True):
            kept = sorted(orders[key][-count:])
            error = _error(model, stack, index, sublayer, kept, moments[key], batches, reference)
            row[count] = max(error, *row.values())  # fewer units are never better, but for noise
        table[key] = _between(row, levels(units))
    return table


def _between(measured: Mapping[int, float], counts: Sequence[int]) -> dict[int, float]:
    """Errors for ``counts``, along straight lines between those that were measured."""
    known = sorted(measured)
    errors = np.interp(counts, known, [measured[count] for count in known])
    return {count: float(error) for count, error in zip(counts, errors, strict=True)}


def _error(
    model: "PreTrainedModel",
    stack: LayerStack,
    index: int,
    sublayer: Sublayer,
    kept: Sequence[int],
    moments: Moments,
    batches: Batches,
    reference: Sequence[torch.Tensor],
) -> float:
    """Zeros in the columns of what goes compute what a narrower projection would."""
    output = output_of(layers_of(model, stack)[index], sublayer)
    columns = rows_of_units(kept, unit_size(model, sublayer), matrix(output).shape[1])
    weight, bias = matrix(output).clone(), None if output.bias is None else output.bias.data.clone()
    try:
        new_weight, new_bias = repaired(moments, columns, weight[:, columns], RIDGE)
        matrix(output).zero_()[:, columns] = new_weight.to(weight)
        if output.bias is not None:
            output.bias.data.copy_(new_bias)
        return divergence(model, batches, reference)
    finally:
        matrix(output).copy_(weight)
        if bias is not None:
            output.bias.data.copy_(bias)


def drop_order(
    model: "PreTrainedModel", batches: Batches, reference: Sequence[torch.Tensor]
) -> dict[str, list[tuple[int, float]]]:
    """For each stack its layers in the order in which they are missed least, each with the divergence without it.

    One after the other, the layer goes whose absence costs least; the last one stays and is not named. Where all stay,
    none is.
    """
    found: dict[str, list[tuple[int, float]]] = {}
    for stack in layer_stacks(model):
        layers = layers_of(model, stack)
        kept = list(range(len(layers)))
        dropped = found[stack.path] = []
        try:
            while len(kept) > 1 and not stack.layers_stay:
                errors = {}
                for candidate in kept[1:] if stack.first_is_special else kept:
                    replace_layers(model, stack, keep_layers(layers, [i for i in kept if i != candidate]))
                    errors[candidate] = divergence(model, batches, reference)
                least = min(errors, key=lambda index: errors[index])
                kept.remove(least)
                dropped.append((least, errors[least]))
        finally:
            replace_layers(model, stack, layers)
    return found

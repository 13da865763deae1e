"""In which order the units of a sublayer are missed least."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch

from hf_efficient.blocks import layers_of, output_of, sublayers_of, unit_size
from hf_efficient.cutting.observation import Batches, Key, key_of, unit_gradients
from hf_efficient.cutting.shape import RIDGE
from hf_efficient.functional.structured import Moments, matrix, removal_order

if TYPE_CHECKING:
    from transformers import PreTrainedModel

IMPORTANCES = ("obs", "taylor", "fisher", "activation")
"""obs: growth of the squared error of the sublayer's output once the rest is refitted (see `removal_order`).
taylor: mean size of the first-order change of an example's loss (Molchanov et al. 2017, arXiv 1611.06440).
fisher: mean square of the same (Kwon et al. 2022, arXiv 2204.09656).
activation: norm of what the unit adds to the output (Sun et al. 2024, Wanda, arXiv 2306.11695)."""


def removal_orders(
    model: "PreTrainedModel", kind: str, batches: Batches, moments: Mapping[Key, Moments]
) -> dict[Key, list[int]]:
    """For each sublayer its units, the least important first, by one of `IMPORTANCES`."""
    found = {}
    sizes = {key_of(*place): unit_size(model, place[2]) for place in sublayers_of(model)}
    gradients = unit_gradients(model, batches, sizes) if kind in ("taylor", "fisher") else {}
    for place in sublayers_of(model):
        stack, index, sublayer = place
        key = key_of(*place)
        weight = matrix(output_of(layers_of(model, stack)[index], sublayer))
        if kind == "obs":
            found[key] = removal_order(moments[key], weight, sizes[key], RIDGE)
        elif kind == "activation":
            found[key] = _norms(moments[key], weight, sizes[key]).argsort().tolist()
        else:
            each = torch.cat(gradients[key])
            scores = each.abs().mean(0) if kind == "taylor" else each.square().mean(0)
            found[key] = scores.argsort().tolist()
    return found


def _norms(moments: Moments, weight: torch.Tensor, size: int) -> torch.Tensor:
    columns = moments.xx.diagonal() * weight.double().cpu().square().sum(0)
    return columns.reshape(-1, size).sum(1)

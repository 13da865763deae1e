"""Structured cuts: whole layers in, whole layers out."""

from collections.abc import Sequence

import torch
from torch import nn


def keep_layers(stack: nn.ModuleList, indices: Sequence[int]) -> nn.ModuleList:
    """The layers of ``stack`` at ``indices``, in that order; the layers themselves are shared, not copied."""
    return nn.ModuleList(stack[index] for index in indices)


def renumber(stack: nn.ModuleList) -> None:
    """Set every `layer_idx` inside ``stack`` to its layer's position: key-value caches are addressed by it."""
    for index, layer in enumerate(stack):
        for module in layer.modules():
            if hasattr(module, "layer_idx"):
                module.layer_idx = index  # type: ignore[assignment]


def majority_share(labels: torch.Tensor) -> float:
    """Share of the most frequent value in ``labels`` (any shape, integers), in [0, 1]."""
    return (torch.bincount(labels.flatten()).max() / labels.numel()).item()

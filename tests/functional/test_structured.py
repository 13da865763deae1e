"""Cuts on plain modules."""

import pytest
import torch
from torch import nn

from hf_efficient.functional.structured import keep_layers, majority_share, renumber


def test_kept_layers_are_the_same_objects() -> None:
    stack = nn.ModuleList(nn.Linear(1, 1) for _ in range(4))
    kept = keep_layers(stack, [0, 3])
    assert [id(layer) for layer in kept] == [id(stack[0]), id(stack[3])]
    assert len(stack) == 4


def test_renumber() -> None:
    stack = nn.ModuleList(nn.Sequential(nn.Linear(1, 1)) for _ in range(3))
    for index, layer in enumerate(stack):
        layer[0].layer_idx = index + 5
    renumber(stack)
    assert [layer[0].layer_idx for layer in stack] == [0, 1, 2]
    assert not hasattr(stack[0], "layer_idx")


@pytest.mark.parametrize(("labels", "share"), [([0, 0, 0, 1], 0.75), ([[2, 2], [1, 0]], 0.5), ([4], 1.0)])
def test_majority_share(labels: list, share: float) -> None:
    assert majority_share(torch.tensor(labels)) == share

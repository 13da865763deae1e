"""Bytes of optimizer state, inside and outside embeddings."""

from typing import Any

import pytest
import torch
from torch import nn

from hf_efficient.functional.optimizer_state import adamw_state_bytes, embedding_parameters, optimizer_state_bytes


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(10, 4)
        self.body = nn.Linear(4, 4)
        self.head = nn.Linear(4, 10, bias=False)
        self.head.weight = self.table.weight
        self.frozen = nn.Linear(4, 4).requires_grad_(False)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(self.table(tokens)))


@pytest.fixture
def trained() -> tuple[nn.Module, torch.optim.Optimizer]:
    model = Tied()
    groups: list[dict[str, Any]] = [{"params": [model.body.weight]}, {"params": [model.table.weight, model.body.bias]}]
    optimizer = torch.optim.AdamW(groups, lr=0.1)
    model(torch.arange(3)).sum().backward()
    optimizer.step()
    return model, optimizer


def test_a_tied_head_is_an_embedding(trained: tuple[Any, torch.optim.Optimizer]) -> None:
    model, _ = trained
    assert embedding_parameters(model) == {id(model.head.weight)}


def test_live_saved_and_computed_agree(trained: tuple[Any, torch.optim.Optimizer]) -> None:
    model, optimizer = trained
    live = optimizer_state_bytes(optimizer, model)
    assert live == {"embeddings": 2 * 160 + 4, "other": 2 * 80 + 2 * 4}  # and one step count per tensor
    assert optimizer_state_bytes(optimizer, model, optimizer.state_dict()) == live
    assert adamw_state_bytes(model) == {"embeddings": 320, "other": 160}


def test_storages_count_once_and_wrappers_by_what_they_hold(trained: tuple[Any, torch.optim.Optimizer]) -> None:
    torchao = pytest.importorskip("torchao.optim.subclass_8bit")
    model, optimizer = trained
    shared = torch.zeros(256)
    packed = torchao.OptimState8bit.zeros((4, 4), True, 16)
    optimizer.state.clear()
    optimizer.state[model.body.weight] = {"a": packed, "b": {"c": [shared, shared[:10]]}}
    codes, scale, table = 16, 4, 4 * 256
    assert optimizer_state_bytes(optimizer, model) == {"embeddings": 0, "other": codes + scale + table + 1024}

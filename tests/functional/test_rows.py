"""Updates of rows against PyTorch's updates of whole tables."""

from typing import Any

import pytest
import torch
from torch import nn

from hf_efficient.functional.rows import DenseGradients, adamw_rows, has_sparse_gradients, rows_seen, sgd_rows

ADAMW = {"lr": 0.1, "betas": (0.9, 0.99), "eps": 1e-6, "weight_decay": 0.1}


def table() -> torch.Tensor:
    return torch.randn(10, 3, generator=torch.Generator().manual_seed(0))


def gradients(steps: list[list[int]]) -> list[torch.Tensor]:
    """Sparse and coalesced, of the given rows."""
    generator = torch.Generator().manual_seed(1)
    return [
        torch.sparse_coo_tensor(
            torch.tensor([rows]), torch.randn(len(rows), 3, generator=generator), (10, 3), check_invariants=False
        ).coalesce()
        for rows in steps
    ]


def by_torch(optimizer: Any, steps: list[torch.Tensor], **settings: Any) -> torch.Tensor:
    parameter = nn.Parameter(table())
    made = optimizer([parameter], **settings)
    for gradient in steps:
        parameter.grad = gradient.to_dense()
        made.step()
    return parameter.detach()


def test_sgd_is_exact() -> None:
    steps, ours = gradients([[1, 4], [4], [0, 9]]), table()
    for gradient in steps:
        sgd_rows(ours, gradient, lr=0.1)
    torch.testing.assert_close(ours, by_torch(torch.optim.SGD, steps, lr=0.1))


def test_sgd_decays_rows_with_a_gradient() -> None:
    (gradient,), ours = gradients([[1, 4]]), table()
    sgd_rows(ours, gradient, lr=0.1, weight_decay=0.5)
    expected = by_torch(torch.optim.SGD, [gradient], lr=0.1, weight_decay=0.5)
    torch.testing.assert_close(ours[[1, 4]], expected[[1, 4]])
    assert torch.equal(ours[[0, 2, 3]], table()[[0, 2, 3]])


def test_rows_seen_in_every_step_move_as_with_adamw() -> None:
    steps, ours, state = gradients([[1, 4, 7], [1, 4], [0, 1, 4]]), table(), {}
    for gradient in steps:
        adamw_rows(ours, gradient, state, **ADAMW)
    expected = by_torch(torch.optim.AdamW, steps, **ADAMW)
    torch.testing.assert_close(ours[[1, 4]], expected[[1, 4]])
    assert torch.equal(ours[[2, 3, 5, 6, 8, 9]], table()[[2, 3, 5, 6, 8, 9]])
    assert not torch.allclose(ours[7], expected[7])  # it rests, where AdamW goes on by momentum
    assert not torch.equal(ours[7], table()[7])


def test_moments_are_kept_of_rows_seen() -> None:
    state: dict[str, Any] = {}
    for number, gradient in enumerate(gradients([[3], [3, 5], [5, 6]]), start=1):
        adamw_rows(table(), gradient, state, **ADAMW)
        assert state["step"] == number
    assert rows_seen(state) == 3
    assert len(state["exp_avg"]) == len(state["exp_avg_sq"]) <= 4
    assert state["slots"].tolist() == [-1, -1, -1, 0, -1, 1, 2, -1, -1, -1]


@pytest.mark.parametrize("limit", [0.1, 1e6])
def test_norms_are_those_of_dense_gradients(limit: float) -> None:
    models = []
    for sparse in (False, True):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Embedding(10, 3, sparse=sparse), nn.Linear(3, 2))
        for ids in ([1, 4, 4], [4, 9, 1]):  # accumulated
            model(torch.tensor(ids)).sum().backward()
        models.append(model)
    dense, ours = models
    assert [has_sparse_gradients(model) for model in models] == [False, True]
    expected = nn.utils.clip_grad_norm_(dense.parameters(), limit)
    torch.testing.assert_close(nn.utils.clip_grad_norm_(DenseGradients(ours).parameters(), limit), expected)
    for one, other in zip(dense.parameters(), ours.parameters(), strict=True):
        torch.testing.assert_close(other.grad.to_dense() if other.grad.is_sparse else other.grad, one.grad)

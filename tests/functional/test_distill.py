"""Losses of distillation against their definitions."""

import math

import pytest
import torch
import torch.nn.functional as F

from hf_efficient.functional.distill import (
    hidden_loss,
    layer_map,
    relation_heads,
    relation_loss,
    soft_cross_entropy,
    soft_targets,
    squared_error,
)


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_soft_cross_entropy_is_hintons() -> None:
    student, teacher = noise(5, 3).requires_grad_(), noise(1, 5, 3, seed=1)
    counted = torch.tensor([True, True, False, True, True])
    loss = soft_cross_entropy(student, soft_targets(teacher, 2.0), 2.0, counted)
    (gradient,) = torch.autograd.grad(loss, student)
    soft = F.cross_entropy(student[counted] / 2, (teacher[0, counted] / 2).softmax(-1)) * 4
    torch.testing.assert_close(gradient, torch.autograd.grad(soft, student)[0])
    entropy = torch.distributions.Categorical(logits=teacher[0, counted] / 2).entropy().mean()
    torch.testing.assert_close(loss, soft - 4 * entropy)
    assert soft_cross_entropy(teacher[0], soft_targets(teacher, 2.0), 2.0, counted).abs() < 1e-6


def test_nothing_counted_is_zero() -> None:
    none = torch.zeros(5, dtype=torch.bool)
    assert soft_cross_entropy(noise(5, 3), soft_targets(noise(1, 5, 3), 1.0), 1.0, none) == 0
    assert squared_error(noise(5, 1), noise(1, 5, 1), none) == 0


def test_several_teachers_are_averaged() -> None:
    logits = noise(3, 4, 5)
    torch.testing.assert_close(soft_targets(logits, 1.5).exp(), (logits / 1.5).softmax(-1).mean(0))
    counted = torch.ones(4, dtype=torch.bool)
    expected = F.mse_loss(noise(4, 5, seed=1), logits.mean(0))
    torch.testing.assert_close(squared_error(noise(4, 5, seed=1), logits, counted), expected)


def test_hidden_loss_is_relative_and_ignores_padding() -> None:
    teacher, student = noise(2, 4, 3), noise(2, 4, 3, seed=1)
    mask = torch.tensor([[1, 1, 1, 0], [1, 1, 1, 1]]).bool()
    weights = torch.tensor([1, 3])
    loss = hidden_loss(student, teacher, mask, weights)
    torch.testing.assert_close(hidden_loss(student * 100, teacher * 100, mask, weights), loss)
    torch.testing.assert_close(hidden_loss(torch.zeros(2, 4, 3), teacher, mask, weights), torch.tensor(1.0))
    rows = [F.mse_loss(s[m], t[m]) / t[m].square().mean() for s, t, m in zip(student, teacher, mask, strict=True)]
    torch.testing.assert_close(loss, (rows[0] + 3 * rows[1]) / 4)
    student[0, 3] = teacher[0, 3] = 1e6
    torch.testing.assert_close(hidden_loss(student, teacher, mask, weights), loss)


def test_relations_are_minilms() -> None:
    """Against a plain loop over examples without their padding; widths differ."""
    mask = torch.tensor([[1, 1, 1, 0], [1, 1, 1, 1]]).bool()
    student, teacher = [noise(2, 4, 8, seed=s) for s in range(3)], [noise(2, 4, 12, seed=s) for s in range(3, 6)]
    losses = []
    for ours, theirs in zip(student, teacher, strict=True):
        for row in range(2):
            said, wanted = ((one[row, mask[row]]).chunk(2, dim=-1) for one in (ours, theirs))
            pairs = [
                ((s @ s.T / math.sqrt(4)).log_softmax(-1), (t @ t.T / math.sqrt(6)).softmax(-1))
                for s, t in zip(said, wanted, strict=True)
            ]
            losses.append(torch.stack([F.kl_div(s, t, reduction="batchmean") for s, t in pairs]).mean())
    loss = relation_loss(student, teacher, 2, mask, torch.ones(2))
    torch.testing.assert_close(loss, torch.stack(losses).mean())
    assert relation_loss(teacher, teacher, 2, mask, torch.ones(2)) == 0


def test_relation_loss_has_finite_gradients() -> None:
    student = [noise(2, 4, 8, seed=s).requires_grad_() for s in range(3)]
    mask = torch.tensor([[0, 0, 0, 0], [1, 0, 0, 0]]).bool()
    relation_loss(student, [noise(2, 4, 8)] * 3, 2, mask, torch.ones(2)).backward()
    assert all(torch.isfinite(one.grad).all() for one in student if one.grad is not None)


@pytest.mark.parametrize(("widths", "heads"), [((384, 768), 48), ((768, 1024), 32), ((16, 16), 2), ((15, 16), 1)])
def test_relation_heads(widths: tuple[int, ...], heads: int) -> None:
    assert relation_heads(*widths) == heads


def test_layer_map_ends_on_the_last() -> None:
    assert layer_map(3, 12) == [(0, 3), (1, 7), (2, 11)]
    assert layer_map(2, 3) == [(0, 1), (1, 2)]
    assert layer_map(4, 4) == [(0, 0), (1, 1), (2, 2), (3, 3)]
    assert layer_map(3, 2)[-1] == (2, 1)

"""Fake quantization against its formulas."""

import numpy as np
import pytest
import torch

from hf_efficient.functional.fake_quant import (
    fake_quantize_dynamic,
    fake_quantize_range,
    fake_quantize_weight,
    fixed_point,
)


def test_values_lie_on_the_grid() -> None:
    values = torch.linspace(-1, 3, 1001)
    found = fake_quantize_range(values, -1.0, 3.0)
    scale = 4 / 255
    assert torch.allclose(found / scale, (found / scale).round(), atol=1e-3)
    assert (found - values).abs().max() <= scale
    assert len(found.unique()) == 256
    assert torch.equal(found, fake_quantize_dynamic(values))


def test_zero_stays_zero_and_the_rest_is_clipped() -> None:
    found = fake_quantize_range(torch.tensor([0.0, 10.0, -10.0]), 0.5, 2.0)
    assert found.tolist() == [0.0, pytest.approx(2.0), 0.0], "a range without zero is widened to it"


def rounded(rows: torch.Tensor, most: int) -> torch.Tensor:
    scales = rows.abs().amax(1, keepdim=True) / most
    return (rows / scales).round() * scales


def test_weights_have_a_scale_per_row_tensor_or_group() -> None:
    weight = torch.randn(4, 16, generator=torch.Generator().manual_seed(0)) * torch.tensor(
        [[1.0], [100.0], [5.0], [2.0]]
    )
    assert torch.allclose(fake_quantize_weight(weight), rounded(weight, 127))
    assert torch.allclose(
        fake_quantize_weight(weight, per="tensor"), rounded(weight.reshape(1, -1), 127).reshape(4, 16)
    )
    groups = fake_quantize_weight(weight, bits=4, per="group", group=8)
    assert torch.allclose(groups, rounded(weight.reshape(-1, 8), 7).reshape(4, 16))
    assert torch.allclose(fake_quantize_weight(weight, bits=4, per="group", group=5), rounded(weight, 7)), (
        "5 does not fit"
    )
    assert fake_quantize_weight(torch.zeros(2, 3)).eq(0).all()


def test_rounding_twice_changes_nothing() -> None:
    weight = torch.randn(8, 32, generator=torch.Generator().manual_seed(1))
    for how in ({}, {"per": "tensor"}, {"bits": 4, "per": "group", "group": 8}):
        once = fake_quantize_weight(weight, **how)
        assert torch.allclose(fake_quantize_weight(once, **how), once, rtol=1e-6, atol=0)


def test_fixed_point_is_exact() -> None:
    values = torch.randn(10_000, generator=torch.Generator().manual_seed(0))
    for step in (2**-15, 2**-4, 0.25):
        expected = np.floor(values.numpy() / np.float32(step)) * np.float32(step)
        assert torch.equal(fixed_point(values, step), torch.from_numpy(expected))
        assert torch.equal(fixed_point(fixed_point(values, step), step), fixed_point(values, step))
    assert fixed_point(torch.tensor([-0.1, 0.3]), 0.25).tolist() == [-0.25, 0.25], "down, not towards zero"


def test_gradients_pass_through() -> None:
    values = torch.tensor([0.1, 0.2, 9.0], requires_grad=True)
    fake_quantize_range(values, 0.0, 1.0).sum().backward()
    assert values.grad is not None
    assert values.grad.tolist() == [1.0, 1.0, 0.0], "nothing flows where it is clipped"
    values.grad = None
    (fixed_point(values, 0.5) * torch.tensor([1.0, 2.0, 3.0])).sum().backward()
    assert values.grad.tolist() == [1.0, 2.0, 3.0]

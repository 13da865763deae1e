"""Bytes of tensors, counted exactly."""

import torch

from hf_efficient.functional.memory import TensorBytes


def test_counts_what_lives_at_the_same_time() -> None:
    before = torch.ones(1000)
    with TensorBytes() as counted:
        first = before + 1
        assert counted.live == 4000
        second = first.view(10, 100)  # no memory of its own
        first.mul_(2)
        assert counted.live == 4000
        del first
        assert counted.live == 4000
        del second
        assert counted.live == 0
        torch.zeros(10)
    assert (counted.live, counted.peak) == (0, 4000)


def test_sees_the_backward_pass() -> None:
    weight = torch.ones(100, requires_grad=True)
    with TensorBytes() as counted:
        (weight * 2).exp().sum().backward()
    assert counted.live == 400  # the gradient
    assert counted.peak >= 800

"""The map between widths learns, alike on every process, and goes on from its state."""

import torch

from hf_efficient.functional.projector import Projector


def steps(projector: Projector, count: int) -> float:
    inputs = torch.randn(64, 4, generator=torch.Generator().manual_seed(0))
    wanted = inputs @ torch.randn(4, 6, generator=torch.Generator().manual_seed(1))
    for _ in range(count):
        loss = (projector(inputs) - wanted).square().mean()
        loss.backward()
        projector.step(0.05, processes=1)
    return loss.item()


def test_learns_and_resumes() -> None:
    state = torch.get_rng_state()
    whole, first, second = (Projector(4, 6, stack=0, device=torch.device("cpu")) for _ in range(3))
    assert torch.equal(state, torch.get_rng_state())
    assert steps(whole, 200) < 0.05
    steps(first, 120)
    second.load_state_dict(first.state_dict())
    steps(second, 80)
    assert torch.equal(whole.weight, second.weight)


def test_overflow_is_skipped() -> None:
    projector = Projector(4, 6, stack=0, device=torch.device("cpu"))
    before = projector.weight.detach().clone()
    (projector(torch.ones(1, 4)).sum() * float("inf")).backward()
    projector.step(0.1, processes=1)
    assert torch.equal(projector.weight, before)
    assert projector.weight.grad is None

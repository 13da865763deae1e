"""What a pass leaves out, and that nothing is lost by it in the mean."""

import math

import torch

from hf_efficient.functional.selection import soft_prune, steps_of_passes

SCORES = torch.rand(40, generator=torch.Generator().manual_seed(1))


def draw(seed: int, scores: torch.Tensor = SCORES, low: float = 0.75, ratio: float = 0.5) -> tuple:
    return soft_prune(scores, low, ratio, torch.Generator().manual_seed(seed))


def test_the_mean_gradient_is_that_of_all_examples() -> None:
    gradients = torch.randn(40, 5, generator=torch.Generator().manual_seed(2)) + SCORES[:, None]  # tied to the scores
    draws = [draw(seed) for seed in range(4000)]
    means = torch.stack([(weights[:, None] * gradients).sum(0) / len(kept) for kept, weights in draws])
    error = means.std(0) / math.sqrt(len(draws))
    assert ((means.mean(0) - gradients.mean(0)).abs() < 4 * error).all()
    unweighted = torch.stack([gradients[kept].mean(0) for kept, _ in draws]).mean(0)
    assert ((unweighted - gradients.mean(0)).abs() > 20 * error).any()


def test_what_stays() -> None:
    kept, weights = draw(0)
    assert len(kept) == 25
    assert torch.equal(kept, weights.nonzero().flatten())
    lowest = torch.argsort(SCORES)[:30]
    assert set(range(40)) - set(kept.tolist()) <= set(lowest.tolist())
    assert set(weights[lowest].tolist()) == {0.0, 1.25}
    assert (weights[torch.argsort(SCORES)[30:]] == 0.625).all()
    torch.testing.assert_close(weights.sum(), torch.tensor(25.0))
    assert not torch.equal(kept, draw(1)[0])


def test_what_was_not_seen_stays() -> None:
    scores = SCORES.clone()
    scores[:10] = math.inf
    assert all(set(range(10)) <= set(draw(seed, scores)[0].tolist()) for seed in range(20))


def test_nothing_is_left_out() -> None:
    for low, ratio in ((0.0, 0.5), (0.75, 0.0)):
        kept, weights = draw(0, low=low, ratio=ratio)
        assert torch.equal(kept, torch.arange(40))
        assert (weights == 1).all()


def test_first_and_last_passes_are_whole() -> None:
    assert steps_of_passes(10, 6, 5, 0.125) == [10, 6, 6, 6, 10]
    assert steps_of_passes(10, 6, 10, 0.125) == [10, *[6] * 7, 10, 10]
    assert steps_of_passes(10, 6, 3, 0.0) == [10, 6, 6]
    assert steps_of_passes(10, 6, 1, 0.5) == [10]

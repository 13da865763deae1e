"""Trials: a few steps of distillation, the better candidates going on."""

import copy
import itertools
from typing import Any

import pytest
import torch

from hf_efficient.cutting.observation import divergence, logits_on
from hf_efficient.cutting.shape import Shape, cut_copy
from hf_efficient.cutting.trial import LEAST, Taught, Trial, halving, rungs

STACK = "encoder.layer"


@pytest.mark.parametrize(("candidates", "steps"), [(11, 250), (5, 100), (3, 60), (2, 12)])
def test_rungs_share_the_steps(candidates: int, steps: int) -> None:
    found = rungs(candidates, steps)
    assert found[0][0] == candidates
    assert found[-1][0] == 2
    assert 0.6 * steps < sum(size * each for size, each in found) <= steps
    assert all(later[0] < earlier[0] and later[1] >= earlier[1] for earlier, later in itertools.pairwise(found))


@pytest.mark.parametrize(("candidates", "steps"), [(1, 1000), (0, 1000), (4, 4 * LEAST)])
def test_nothing_to_tell(candidates: int, steps: int) -> None:
    assert rungs(candidates, steps) == []


def test_a_trial_brings_a_cut_model_nearer(trained: Any, batches: Any) -> None:
    reference = logits_on(trained, batches)
    made = cut_copy(trained, Shape({STACK: [0, 2]}, {STACK: {"ffn": [list(range(4))] * 2}}))
    made.train()
    before = divergence(made, batches, reference)
    random = torch.get_rng_state()
    Trial(made, Taught(trained, batches), 1e-3).train(20)
    assert divergence(made, batches, reference) < before / 2
    assert made.training
    assert torch.equal(torch.get_rng_state(), random)


def test_the_best_go_on(trained: Any, batches: Any) -> None:
    """A model that is nearly the reference beats ones that lack all but one feature, and trials go on from there."""
    reference, taught = logits_on(trained, batches), Taught(trained, batches)
    poor = Shape({STACK: [0]}, {STACK: {"ffn": [[0]], "attention": [[0]]}})
    models = [cut_copy(trained, poor), copy.deepcopy(trained), cut_copy(trained, poor), cut_copy(trained, poor)]
    trials = [Trial(model, taught, 1e-4) for model in models]
    judged = list(halving(trials, 80, lambda model: divergence(model, batches, reference)))
    assert [len(rung) for rung in judged] == [4, 2]
    assert {rung[0][0] for rung in judged} == {1}
    steps = [next(iter(trial.optimizer.state.values()))["step"].item() for trial in trials]
    assert sorted(steps) == [10, 10, 30, 30]

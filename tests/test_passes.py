"""Batches that are formed pass by pass."""

from itertools import chain

import torch

from hf_efficient.passes import Passes
from tests.optimizations.test_length_batching import Fake


def one_process() -> Fake:
    made = Fake(0)
    made.world_size, made.gradient_accumulation_steps = 1, 1
    return made


def test_a_step_holds_the_same_examples_on_any_number_of_processes() -> None:
    one, two = (Passes(50, args, steps=7) for args in (one_process(), Fake(0)))
    steps = [sorted(batch) for batch in one.batches(3)]
    parts = two.batches(3)
    assert len(parts) == two.batches_per_pass == 28
    assert [sorted(chain(*parts[4 * step : 4 * step + 4])) for step in range(7)] == steps
    assert sorted(chain(*steps)) == list(range(50))
    assert one.batches(4) != one.batches(3) == one.batches(3)


def test_ranks_share_the_batches_out() -> None:
    ranks = [Passes(50, Fake(rank), steps=5) for rank in (0, 1)]
    assert all(len(rank) == len(list(rank)) == 10 for rank in ranks)
    assert sorted(index for rank in ranks for batch in rank for index in batch) == list(range(50))


def test_some_of_the_examples() -> None:
    some = torch.arange(1, 50, 2)
    batches = Passes(50, one_process(), steps=7).form(some, 3, number=0)
    assert [len(batch) for batch in batches] == [9, 8, 8]
    assert sorted(chain(*batches)) == some.tolist()

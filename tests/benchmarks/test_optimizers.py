"""The benchmark times what it says; its figures are not judged here."""

from collections.abc import Iterator
from types import SimpleNamespace

import pytest

from benchmarks import optimizers
from benchmarks.optimizers import BASELINE, KINDS, WARM_UP, StepTimer
from hf_efficient.optimizations import optimizer
from tests.clock import Clock, clock_of


def test_kinds_exist() -> None:
    assert {BASELINE, *KINDS} <= set(optimizer.KINDS)


@pytest.fixture
def clock() -> Iterator[Clock]:
    yield from clock_of(optimizers)


def test_times_steps_after_the_warm_up(clock: Clock) -> None:
    timer = StepTimer()
    for step in range(1, WARM_UP + 3):
        timer.on_step_begin(None, None, None)
        clock.sleep(0.01)
        timer.on_step_end(None, SimpleNamespace(global_step=step), None)
    assert timer.seconds == pytest.approx(0.02)

"""The benchmark times what it says; its figures are not judged here."""

import time
from types import SimpleNamespace

import pytest

from benchmarks.optimizers import BASELINE, KINDS, WARM_UP, StepTimer
from hf_efficient.optimizations import optimizer


def test_kinds_exist() -> None:
    assert {BASELINE, *KINDS} <= set(optimizer.KINDS)


def test_times_steps_after_the_warm_up() -> None:
    timer = StepTimer()
    for step in range(1, WARM_UP + 3):
        timer.on_step_begin(None, None, None)
        time.sleep(0.01)
        timer.on_step_end(None, SimpleNamespace(global_step=step), None)
    assert timer.seconds == pytest.approx(0.02, abs=0.015)

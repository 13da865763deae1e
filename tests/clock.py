"""A clock that only moves when it is told to: what else the machine does plays no part."""

import types
from collections.abc import Iterator

import pytest


class Clock:
    """Stands in for the module `time`."""

    def __init__(self) -> None:
        self.now = 0.0

    def perf_counter(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


def clock_of(*modules: types.ModuleType) -> Iterator[Clock]:
    """The body of a fixture: a clock by which ``modules`` go."""
    with pytest.MonkeyPatch.context() as patch:
        clock = Clock()
        for module in modules:
            patch.setattr(module, "time", clock)
        yield clock

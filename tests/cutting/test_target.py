"""Times that were disturbed, and what they decide."""

import contextlib
from typing import Any

import pytest

from hf_efficient import ConfigError
from hf_efficient.cutting import target
from hf_efficient.cutting.costs import Costs
from hf_efficient.cutting.search import Search
from hf_efficient.cutting.target import Target, reach

STACK = "encoder.layer"
SMALLEST = {"attention": 1, "ffn": 1}
WISH = Target("target_speedup", 4, "torch", 8)
TABLE = Costs("ms", 1.0, {STACK: 1.0}, {STACK: {"attention": {1: 1.0, 4: 10.0}, "ffn": {1: 1.0, 32: 10.0}}})
"""Of 64 ms in all and 4 at least."""


class Context:
    """The part of an `optimization.Context` that times."""

    serving = staticmethod(lambda *args: None)


def reached(search: Search, monkeypatch: pytest.MonkeyPatch, *measured: float, uncut: float = 64.0) -> Any:
    """What `reach` finds where the smallest shape is ``measured`` to be so many times faster, one time after another.

    Args:
        uncut: milliseconds of the uncut model, when it is timed alone.
    """
    monkeypatch.setattr(target, "served", lambda model, serving: contextlib.nullcontext())  # times are given
    monkeypatch.setattr(target, "time_costs", lambda *args: TABLE)
    speedups = iter(measured)

    def timed(models: Any, batch_size: int) -> dict[str, float]:
        return {"uncut": uncut} if len(models) == 1 else {"uncut": 64.0, "cut": 64.0 / next(speedups)}

    monkeypatch.setattr(target, "timed", timed)
    made: Any = reach(WISH, search, Context(), None)  # type: ignore[arg-type]
    assert next(speedups, None) is None
    return made


def is_smallest(made: Any) -> bool:
    shape = made["shape"]
    return [len(kept) for kept in shape["layers"].values()] == [1] and {
        kind: len(rows[0]) for kind, rows in shape["units"][STACK].items()
    } == SMALLEST


@pytest.fixture
def search(trained: Any, batches: Any) -> Search:
    return Search(trained, batches)


def test_a_first_time_that_was_disturbed_is_no_verdict(search: Search, monkeypatch: pytest.MonkeyPatch) -> None:
    """The uncut model alone seems so fast that the table has nothing within a quarter of it."""
    made = reached(search, monkeypatch, 2, 12, 4, uncut=8.0)
    assert made["measured"]["speedup"] == pytest.approx(4)
    assert not is_smallest(made)


def test_the_smallest_shape_is_taken_where_it_alone_is_fast_enough(
    search: Search, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = reached(search, monkeypatch, 3.9, 4, 4, uncut=8.0)
    assert is_smallest(made)
    monkeypatch.setattr(Search, "within", lambda *args: None)  # the table finds nothing, even so
    made = reached(search, monkeypatch, 12)
    assert is_smallest(made)
    assert made["measured"]["speedup"] == pytest.approx(12)


def test_a_refusal_names_the_best_of_what_was_measured(search: Search, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=r"the smallest shape reaches 3\.5 times here"):
        reached(search, monkeypatch, 2, 3.5, 3, uncut=8.0)

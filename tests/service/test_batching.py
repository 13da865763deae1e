"""Requests joined into batches: order, size, what is full, what fails, and the end."""

import threading
from collections.abc import Sequence
from typing import Any

import pytest

from hf_efficient import ConfigError
from hf_efficient.errors import BusyError, RequestError
from hf_efficient.service.batching import Batcher


class Gate:
    """Answers numbers with their doubles, once it is opened."""

    def __init__(self) -> None:
        self.opened = threading.Event()
        self.started = threading.Event()
        self.batches: list[int] = []

    def __call__(self, requests: Sequence[int]) -> list[dict[str, Any]]:
        self.started.set()
        assert self.opened.wait(30)
        self.batches.append(len(requests))
        if -1 in requests:
            raise RequestError("no -1")
        return [{"double": 2 * request} for request in requests]


def test_what_gathers_is_answered_at_once() -> None:
    gate = Gate()
    batcher = Batcher(gate, max_batch=4)
    first = batcher.submit(0)
    assert gate.started.wait(30)  # it is under way alone; the others gather behind it
    others = [batcher.submit(number) for number in range(1, 8)]
    assert len(batcher) == 7
    gate.opened.set()
    assert [future.result(30)["double"] for future in (first, *others)] == [2 * number for number in range(8)]
    assert gate.batches == [1, 4, 3]
    batcher.close()


def test_no_more_wait_than_may() -> None:
    gate = Gate()
    batcher = Batcher(gate, capacity=2)
    futures = [batcher.submit(0)]
    assert gate.started.wait(30)
    futures += [batcher.submit(1), batcher.submit(2)]
    with pytest.raises(BusyError, match="2 requests wait already"):
        batcher.submit(3)
    gate.opened.set()
    assert [future.result(30)["double"] for future in futures] == [0, 2, 4]
    batcher.close()


def test_one_that_fails_spoils_no_other() -> None:
    gate = Gate()
    batcher = Batcher(gate)
    batcher.submit(0)
    assert gate.started.wait(30)
    futures = [batcher.submit(number) for number in (1, -1, 2)]
    gate.opened.set()
    assert futures[0].result(30)["double"] == 2
    assert futures[2].result(30)["double"] == 4
    with pytest.raises(RequestError, match="no -1"):
        futures[1].result(30)
    batcher.close()


def test_what_is_given_up_is_not_computed() -> None:
    gate = Gate()
    batcher = Batcher(gate)
    batcher.submit(0)
    assert gate.started.wait(30)
    given_up, kept = batcher.submit(1), batcher.submit(2)
    assert given_up.cancel()
    gate.opened.set()
    assert kept.result(30)["double"] == 4
    assert gate.batches == [1, 1]
    batcher.close()


def test_closing_answers_what_waits_and_takes_no_more() -> None:
    gate = Gate()
    batcher = Batcher(gate)
    futures = [batcher.submit(number) for number in range(3)]
    gate.opened.set()
    batcher.close()
    assert [future.result(0)["double"] for future in futures] == [0, 2, 4]
    with pytest.raises(BusyError, match="stopping"):
        batcher.submit(3)


def test_any_error_reaches_who_asked() -> None:
    def broken(requests: Sequence[int]) -> list[dict[str, Any]]:
        raise ConfigError("broken")

    batcher = Batcher(broken)
    with pytest.raises(ConfigError, match="broken"):
        batcher.submit(0).result(30)
    batcher.close()

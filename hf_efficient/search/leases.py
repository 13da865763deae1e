"""Whether the worker of a trial still lives, in any storage: Optuna's own heartbeat is for databases alone.

A worker renews the lease of its trial every few seconds. A trial is lost when its worker's process is gone, where that
was on this machine, or when its lease stays the same for `GRACE_SECONDS` by the clock of whoever looks; clocks of
different machines are never compared.
"""

import logging
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psutil

logger = logging.getLogger(__name__)

LEASE = "lease"
BEAT_SECONDS = 10.0
GRACE_SECONDS = 90.0
CLOCK_SECONDS = 60.0
"""Since when a process runs is computed from the clock, which is set now and then: it may seem so much off."""

Holder = list[Any]
"""Where a process is, its number, and since when it has it."""


class Leases:
    """Leases of the trials that one worker runs, and how it finds those that others lost.

    Args:
        grace: seconds after which a lease that stays the same has ended.
    """

    def __init__(self, grace: float = GRACE_SECONDS):
        self.grace = grace
        self._held: set[int] = set()
        self._seen: dict[int, tuple[Any, float]] = {}

    @contextmanager
    def hold(self, trial: Any) -> Iterator[None]:
        """Renew the lease of an `optuna.Trial` as long as the block runs."""
        mine, done = holder(), threading.Event()
        trial.set_user_attr(LEASE, [mine, 0])

        def beat() -> None:
            count = 0
            while not done.wait(BEAT_SECONDS):
                count += 1
                try:
                    trial.set_user_attr(LEASE, [mine, count])
                except Exception as error:  # each storage has errors of its own; it may be back by the next beat
                    logger.warning("the lease of trial %d was not renewed: %s", trial.number, error)

        thread = threading.Thread(target=beat, name="lease", daemon=True)
        self._held.add(trial.number)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()
            self._held.remove(trial.number)

    def lost(self, running: list[Any]) -> list[Any]:
        """Those of the ``running`` `optuna.trial.FrozenTrial` whose worker is lost."""
        now, found = time.monotonic(), []
        for trial in running:
            held = trial.user_attrs.get(LEASE)
            before, since = self._seen.setdefault(trial.number, (held, now))
            if before != held:
                self._seen[trial.number] = (held, now)
            elif (held and self._is_over(trial.number, held[0])) or now - since > self.grace:
                found.append(trial)
        return found

    def _is_over(self, number: int, other: Holder) -> bool:
        """Whether the worker has ended, or is this one, which could not tell the storage how its trial ended."""
        return is_gone(other) or (other[:2] == holder()[:2] and number not in self._held)


def holder() -> Holder:
    """This process."""
    return [_place(), os.getpid(), psutil.Process().create_time()]


def _place() -> str:
    """Where process numbers mean the same: a machine, or a container on it."""
    try:
        return f"{socket.gethostname()} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return socket.gethostname()


def is_gone(other: Holder) -> bool:
    """Whether ``other`` is a process of this machine that is not there any more."""
    place, number, since = other
    if place != _place():
        return False
    try:
        return abs(psutil.Process(number).create_time() - since) > CLOCK_SECONDS
    except psutil.NoSuchProcess:
        return True

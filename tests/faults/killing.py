"""Processes that do the work of a scenario and are killed at it."""

import itertools
import multiprocessing
import random
from dataclasses import dataclass, field
from pathlib import Path

from tests.faults import scenarios

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["tests.faults.scenarios"])
LIMIT_SECONDS = 120.0


@dataclass
class Work:
    """A scenario in a folder.

    Attributes:
        attempts: how often it was begun.
        kills: how often it was killed.
    """

    name: str
    folder: Path
    attempts: int = 0
    kills: int = 0
    log: Path = field(init=False)

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True)
        self.log = self.folder.with_suffix(".log")

    def attempt(self, after: float | None = None, last: int | None = None) -> bool:
        """Do the work; whether it came to its end.

        Args:
            after: killed after so many seconds.
            last: killed before the last of so many changes of files.
        """
        process = _CONTEXT.Process(target=scenarios.perform, args=(self.name, self.folder, last, self.log))
        process.start()
        process.join(LIMIT_SECONDS if after is None else after)
        self.attempts += 1
        if process.is_alive():
            assert after is not None, f"hangs: {self.said()}"
            process.kill()
            process.join()
        self.kills += process.exitcode == -9
        assert process.exitcode in (0, -9), self.said()
        return process.exitcode == 0

    def said(self) -> str:
        return self.log.read_text()[-3000:]

    def changes(self) -> int:
        """How many changes of files the whole work makes."""
        return int(self.log.with_suffix(".changes").read_text())


def killed(name: str, folder: Path, wanted: int, moments: random.Random, seconds: float, changes: int) -> list[Work]:
    """Do the work of scenario ``name`` again and again until ``wanted`` kills came in between; every other kill at a
    change of a file, the others at any time.

    Args:
        seconds: that the whole work takes.
        changes: that it makes.
    """
    done: list[Work] = []
    for number in itertools.count():
        if sum(work.kills for work in done) >= wanted:
            return done
        work = Work(name, folder / str(number))
        done.append(work)
        for turn in range(3):
            if turn % 2:
                ended = work.attempt(after=moments.uniform(0.1, seconds))
            else:
                ended = work.attempt(last=moments.randint(1, changes))
            if ended:
                break
        else:
            assert work.attempt(), work.said()
    raise AssertionError

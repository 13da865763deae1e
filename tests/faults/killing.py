"""Processes that do the work of a scenario and are killed at it."""

import itertools
import multiprocessing
import random
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.faults import scenarios
from tests.ports import free_port

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["tests.faults.scenarios"])
LIMIT_SECONDS = 120.0
KILLED = -9


@dataclass
class Work:
    """A scenario in a folder.

    Attributes:
        processes: that it is done by, in one training.
        attempts: how often it was begun.
        kills: how often it, or one of its processes, was killed.
    """

    name: str
    folder: Path
    processes: int = 1
    attempts: int = 0
    kills: int = 0
    log: Path = field(init=False)

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True)
        self.log = self.folder.with_suffix(".log")

    def attempt(self, after: float | None = None, last: int | None = None, victims: tuple[int, ...] = (0,)) -> bool:
        """Do the work; whether it came to its end.

        Args:
            after: killed after so many seconds.
            last: killed before the last of so many changes of files.
            victims: the processes that are killed, by rank; the others have to end by themselves.
        """
        started = self._start(dict.fromkeys(victims, last))
        if after is not None and not _ended(started, after):
            _kill([started[rank] for rank in victims])
        ended = _ended(started, LIMIT_SECONDS)
        _kill(started)
        assert ended, f"hangs: {self.said()}"
        codes = [process.exitcode for process in started]
        self.attempts += 1
        self.kills += KILLED in codes
        if KILLED not in codes:
            assert not any(codes), self.said()
        return not any(codes)

    def _start(self, last: dict[int, int | None]) -> list[Any]:
        variables = [None] if self.processes == 1 else _ranks(self.processes)
        started = []
        for rank, each in enumerate(variables):
            given = (self.name, self.folder, last.get(rank), self._log_of(rank), each)
            started.append(_CONTEXT.Process(target=scenarios.perform, args=given))
            started[-1].start()
        return started

    def _log_of(self, rank: int) -> Path:
        return self.log if rank == 0 else self.log.with_suffix(f".{rank}.log")

    def said(self) -> str:
        logs = [self._log_of(rank) for rank in range(self.processes)]
        return "\n".join(log.read_text()[-3000:] for log in logs if log.is_file())

    def changes(self, rank: int = 0) -> int:
        """How many changes of files the whole work makes, or the process of this rank."""
        return int(self._log_of(rank).with_suffix(".changes").read_text())


def _ranks(count: int) -> list[dict[str, str]]:
    """What torchrun tells each of ``count`` processes on this machine."""
    where = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    size = {"WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count)}
    return [{**where, **size, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(count)]


def _ended(processes: list[Any], seconds: float) -> bool:
    """Whether all of ``processes`` end within so many seconds."""
    limit = time.monotonic() + seconds
    for process in processes:
        process.join(max(0.0, limit - time.monotonic()))
    return not any(process.is_alive() for process in processes)


def _kill(processes: list[Any]) -> None:
    for process in processes:
        if process.is_alive():
            process.kill()
            process.join()


def killed(whole: Work, seconds: float, folder: Path, wanted: int, moments: random.Random) -> list[Work]:
    """Do the work of a scenario again and again until ``wanted`` kills came in between; every other kill at a
    change of a file, the others at any time; of several processes one or all are killed.

    Args:
        whole: the work undisturbed.
        seconds: that it took.
    """
    ranks = range(whole.processes)
    choices = [(rank,) for rank in ranks] + ([tuple(ranks)] if whole.processes > 1 else [])
    done: list[Work] = []
    for number in itertools.count():
        if sum(work.kills for work in done) >= wanted:
            return done
        work = Work(whole.name, folder / str(number), whole.processes)
        done.append(work)
        for turn in range(3):
            victims = moments.choice(choices)
            if turn % 2:
                ended = work.attempt(after=moments.uniform(0.1, seconds), victims=victims)
            else:
                last = moments.randint(1, max(1, whole.changes(victims[0])))
                ended = work.attempt(last=last, victims=victims)
            if ended:
                break
        else:
            assert work.attempt(), work.said()
    raise AssertionError

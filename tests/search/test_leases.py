import os
import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import optuna

from hf_efficient.search import leases
from hf_efficient.search.leases import LEASE, Leases


def running(number: int, held: Any) -> Any:
    return SimpleNamespace(number=number, user_attrs={LEASE: held})


def test_a_lease_is_renewed_while_its_trial_runs(monkeypatch: Any) -> None:
    monkeypatch.setattr(leases, "BEAT_SECONDS", 0.01)
    trial = optuna.create_study().ask()
    with Leases().hold(trial):
        before = trial.user_attrs[LEASE]
        while trial.user_attrs[LEASE] == before:
            pass
    after = trial.user_attrs[LEASE]
    assert after[0] == before[0]
    assert after[0][1] == os.getpid()
    assert after[1] > before[1]


def test_a_worker_that_is_gone() -> None:
    here = leases.holder()[0]
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    study, worker = optuna.create_study(), Leases(grace=1000)
    for held in ([here, dead.pid, 1.0], ["elsewhere", 1, 1.0]):
        study.ask().set_user_attr(LEASE, [held, 0])
    mine = study.ask()
    with worker.hold(mine):
        assert [trial.number for trial in worker.lost(study.trials)] == [0]
    # It has ended, but the storage was never told
    assert [trial.number for trial in worker.lost(study.trials)] == [0, mine.number]


def test_the_clock_may_be_set_while_a_worker_runs() -> None:
    place, number, since = leases.holder()
    for seconds, expected in ((-2.0, False), (2.0, False), (3600.0, True)):  # the last: a number given again
        assert leases.is_gone([place, number, since + seconds]) is expected


def test_a_lease_that_is_not_renewed(monkeypatch: Any) -> None:
    now = [0.0]
    monkeypatch.setattr(leases.time, "monotonic", lambda: now[0])
    worker, holder = Leases(grace=90), ["elsewhere", 1, 1.0]
    assert worker.lost([running(0, [holder, 5])]) == []
    now[0] = 80.0
    assert worker.lost([running(0, [holder, 6])]) == []
    now[0] = 160.0
    assert worker.lost([running(0, [holder, 6])]) == []
    now[0] = 171.0
    assert [trial.number for trial in worker.lost([running(0, [holder, 6])])] == [0]

import os
import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import optuna

from hf_efficient.search import leases
from hf_efficient.search.leases import LEASE, Lost, lease


def running(number: int, held: Any) -> Any:
    return SimpleNamespace(number=number, user_attrs={LEASE: held})


def test_a_lease_is_renewed_while_its_trial_runs(monkeypatch: Any) -> None:
    monkeypatch.setattr(leases, "BEAT_SECONDS", 0.01)
    trial = optuna.create_study().ask()
    with lease(trial):
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
    mine = leases.holder()
    lost = Lost(grace=1000)
    trials = [running(0, [[here, dead.pid, 1.0], 0]), running(1, [mine, 0]), running(2, [["elsewhere", 1, 1.0], 0])]
    lost.find(trials)
    assert [trial.number for trial in lost.find(trials)] == [0]


def test_a_lease_that_is_not_renewed(monkeypatch: Any) -> None:
    now = [0.0]
    monkeypatch.setattr(leases.time, "monotonic", lambda: now[0])
    lost, holder = Lost(grace=90), ["elsewhere", 1, 1.0]
    assert lost.find([running(0, [holder, 5])]) == []
    now[0] = 80.0
    assert lost.find([running(0, [holder, 6])]) == []
    now[0] = 160.0
    assert lost.find([running(0, [holder, 6])]) == []
    now[0] = 171.0
    assert [trial.number for trial in lost.find([running(0, [holder, 6])])] == [0]

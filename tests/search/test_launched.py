"""Trials whose stages are trained by a command of their own."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from hf_efficient import ConfigError, EfficientError, Recipe
from hf_efficient.search import launched
from hf_efficient.search.leases import holder
from hf_efficient.search.trials import Trials
from tests.search.test_space import RATE
from tests.search.test_trials import GOALS

TWO = "torchrun --standalone --nproc_per_node 2"


def trials(recipe: Path, folder: Path, launch: str) -> Trials:
    values = json.dumps({"space": {RATE: [1e-3]}, "launch": launch})
    return Trials(Recipe.load(recipe, [f"search={values}"]), folder, GOALS, 1)


def test_a_stage_trains_on_two_processes(recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("PATH", "/usr/bin:/bin")  # no environment is activated
    two = trials(recipe, tmp_path / "two", TWO)
    judged = two.run(0, {})
    assert {"accuracy", "bytes", "training_seconds"} <= set(judged.figures)
    one = trials(recipe, tmp_path / "one", "")
    assert not set(judged.stages) & set(one.store.keys(one.job(one.recipe)).values())
    told = json.loads((two.store.folder / judged.stages[0] / "stage.json").read_text())
    alone = json.loads((one.store.folder / one.run(0, {}).stages[0] / "stage.json").read_text())
    assert steps(alone) == pytest.approx(2 * steps(told), abs=3)  # each process saw half of the examples
    assert not list(tmp_path.rglob(launched.ORDER))


def steps(told: Any) -> int:
    return max(entry["step"] for entry in told["history"])


@pytest.mark.parametrize(
    ("launch", "error", "said"),
    [
        ("'", ConfigError, "is no command line"),
        ("accelrate launch", ConfigError, "'accelrate' cannot be started"),
        ("python -c 'import sys; sys.exit(3)'", EfficientError, "ended with 3"),
    ],
)
def test_a_command_that_fails(launch: str, error: type[Exception], said: str, recipe: Path, tmp_path: Path) -> None:
    with pytest.raises(error, match=said):
        trials(recipe, tmp_path / "search", launch).run(0, {})


def test_what_the_training_said_is_told(recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = trials(recipe, tmp_path / "search", "accelerate launch --cpu")
    job = one.job(one.recipe)
    (tmp_path / "train.csv").unlink()  # by now the launched process finds nothing
    with pytest.raises(EfficientError, match=r"train\.csv"):
        one.store.trained(job)


def test_it_ends_with_its_worker(tmp_path: Path) -> None:
    waits = "import sys, time; from hf_efficient.search import launched; launched._end_with(eval(sys.argv[1]));"
    worker = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    process = subprocess.Popen([sys.executable, "-c", f"{waits} time.sleep(60)", repr(holder_of(worker.pid))])
    time.sleep(0.1)
    assert process.poll() is None
    os.kill(worker.pid, signal.SIGKILL)
    worker.wait()
    assert process.wait(30) == 1


def holder_of(number: int) -> Any:
    import psutil

    return [holder()[0], number, psutil.Process(number).create_time()]

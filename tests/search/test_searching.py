"""Searches, end to end on a tiny model: their folders, going on, picking anew, several workers, kills."""

import functools
import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import optuna
import pytest
import yaml

from hf_efficient import ConfigError, Recipe
from hf_efficient.cli import main
from hf_efficient.job import Job
from hf_efficient.measure import measure_speed
from hf_efficient.run import run
from hf_efficient.search import search
from hf_efficient.search.leases import LEASE, holder
from hf_efficient.search.searching import RECIPE
from hf_efficient.search.space import Space
from hf_efficient.search.study import RETRY_OF, SURPLUS, is_void
from hf_efficient.search.worker import main as work
from tests.search.test_space import LAYERS, RATE

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hf_efficient.outcome.SECONDS", 0.05)
    monkeypatch.setattr("hf_efficient.outcome.TURNS", 1)
    monkeypatch.setattr("hf_efficient.outcome.measure_speed", functools.partial(measure_speed, seconds=0.05, repeats=1))
    monkeypatch.setattr("hf_efficient.outcome.peak_memory_mb", lambda *args: {"process": 2.0, "libraries": 1.0})


def test_a_search_leaves_a_table_and_a_finished_run(searched: Path, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    said: list[str] = []
    result = search(searched, trials=4, runs=runs, say=said.append)
    trials = result.found.trials
    assert [trial["number"] for trial in trials] == [0, 1, 2, 3]
    assert trials[0]["as_given"]
    assert trials[0]["values"] == {}
    assert [line for line in said if line.startswith("trial 0: ")]
    assert all(trial["figures"] or trial["why"] for trial in trials)
    stored = json.loads((result.folder / "study.json").read_text())
    assert stored["chosen"] == result.found.chosen
    assert (result.folder / "front.png").stat().st_size > 5000
    text = (result.folder / "study.md").read_text()
    assert "**chosen**" in text
    assert "as given" in text
    assert result.run is not None
    status = json.loads((result.run / "run.json").read_text())
    assert status["status"] == "finished"
    metrics = json.loads((result.run / "metrics.json").read_text())
    chosen = result.found.trial(result.found.chosen or 0)
    assert metrics["validation"]["after"]["accuracy"] == pytest.approx(chosen["figures"]["accuracy"])
    kept = {path.name for path in (result.folder / "stages").iterdir()}
    assert kept == {key for trial in trials if stays(trial, result.found) for key in trial["stages"]}


def stays(trial: Any, found: Any) -> bool:
    return trial["as_given"] or trial["number"] in {found.chosen, *found.front}


def test_the_chosen_recipe_gives_the_same_model(searched: Path, tmp_path: Path) -> None:
    result = search(searched, trials=3, runs=tmp_path / "runs", pick="bytes <= 1e12, max accuracy", finish=False)
    assert result.recipe is not None
    assert Recipe.load(result.recipe).search is None
    again = run(result.recipe, runs=tmp_path / "again")
    assert again is not None
    chosen = result.found.trial(result.found.chosen or 0)
    assert again.metrics["validation"]["after"]["accuracy"] == chosen["figures"]["accuracy"]


def test_it_goes_on_to_a_total_and_picks_anew(searched: Path, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    first = search(searched, trials=2, runs=runs, finish=False)
    before = [trial["seconds"] for trial in first.found.trials]
    second = search(searched, trials=3, runs=runs, finish=False)
    assert [trial["seconds"] for trial in second.found.trials][:2] == before
    assert len(second.found.trials) == 3
    picked = search(searched, runs=runs, pick="min bytes", finish=False)
    sizes = {trial["number"]: trial["figures"]["bytes"] for trial in picked.found.trials if trial["figures"]}
    assert sizes[picked.found.chosen or 0] == min(sizes.values())
    with pytest.raises(ConfigError, match="no trial keeps accuracy >= 2"):
        search(searched, runs=runs, pick="accuracy >= 2, min bytes", finish=False)
    with pytest.raises(ConfigError, match=r"with something else \(search\.objectives: .*another --name"):
        search(searched, ["search.objectives=[accuracy]"], trials=3, runs=runs)
    with pytest.raises(ConfigError, match="say how many --trials"):
        search(searched, runs=runs, name="new")


def test_a_search_starts_from_an_earlier_one_and_draws_nothing_twice(searched: Path, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    search(searched, ["search.sampler=random", "search.rungs=[]"], trials=2, runs=runs, finish=False)
    first = search(searched, ["search.sampler=random", "search.rungs=[]"], trials=4, runs=runs, finish=False)
    drawn = [trial["values"][RATE] for trial in first.found.trials[1:]]
    assert len(set(drawn)) == 3  # the second call does not begin with what the first one drew
    second = search(searched, ["search.rungs=[]"], trials=2, runs=runs, name="again", finish=False)
    front = [first.found.trial(number)["values"] for number in first.found.front if number]
    started = second.found.trial(1)
    assert started["values"] in front
    assert started["earlier"] == "tiny/search"
    assert "of tiny/search" in (second.folder / "study.md").read_text()


@pytest.mark.parametrize(("storage", "wanted", "kills"), [(None, 12, 3), ("journal.log", 6, 1)])
def test_killed_workers_lose_nothing(
    searched: Path, tmp_path: Path, storage: str | None, wanted: int, kills: int
) -> None:
    """Two workers, killed at random moments and started again, end with exactly as many trials as wanted."""
    runs, moments = tmp_path / "runs", random.Random(5)
    where = None if storage is None else str(tmp_path / storage)
    search(searched, trials=1, runs=runs, storage=where, finish=False)
    folder = runs / "tiny" / "search"
    for _ in range(kills):
        workers = [start(folder, wanted, where) for _ in range(2)]
        time.sleep(moments.uniform(6, 10))
        for worker in workers:
            worker.send_signal(signal.SIGKILL)
            worker.wait()
    result = search(searched, trials=wanted, runs=runs, storage=where, workers=2, finish=False)
    assert len(result.found.trials) == wanted
    assert all(trial["state"] in ("complete", "pruned") for trial in result.found.trials)
    study = optuna.load_study(study_name="tiny", storage=opened(folder, where))
    counted = [trial for trial in study.trials if not is_void(trial)]
    assert [trial.number for trial in counted] == [trial["number"] for trial in result.found.trials]
    lost = [trial.number for trial in study.trials if is_void(trial) and SURPLUS not in trial.user_attrs]
    again = [trial.user_attrs[RETRY_OF] for trial in study.trials if RETRY_OF in trial.user_attrs]
    assert sorted(again) == lost  # each is given back once
    names = {path.name for path in (folder / "stages").iterdir()}
    assert names == {key for trial in result.found.trials if stays(trial, result.found) for key in trial["stages"]}
    assert not [path for path in folder.rglob("*") if "checkpoint-" in path.name or path.name.endswith(".tmp")]


def test_another_worker_takes_what_this_one_proposed(
    searched: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Then a worker's own sampler is asked, in the study itself."""
    search(searched, trials=1, runs=tmp_path, finish=False)
    monkeypatch.setattr("optuna.Study.enqueue_trial", taken)
    folder = tmp_path / "tiny" / "search"
    assert work(str(folder), "7") == 0
    study = optuna.load_study(study_name="tiny", storage=opened(folder, None))
    assert [trial.state.is_finished() and not is_void(trial) for trial in study.trials] == [True] * 7


def taken(study: optuna.Study, parameters: Any, **options: Any) -> None:
    """Another worker was faster than this one comes to ask for it."""


def test_a_trial_that_could_not_be_drawn_is_given_back(
    searched: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    search(searched, trials=1, runs=tmp_path, finish=False)
    suggested = Space.suggested

    def fails(space: Space, trial: optuna.Trial, *more: Any) -> dict[str, Any]:
        if trial.study.study_name == "tiny":
            raise ZeroDivisionError
        return suggested(space, trial, *more)

    with monkeypatch.context() as patched:
        patched.setattr(Space, "suggested", fails)
        with pytest.raises(ZeroDivisionError):
            search(searched, trials=2, runs=tmp_path, finish=False)
    result = search(searched, trials=2, runs=tmp_path, finish=False)
    study = optuna.load_study(study_name="tiny", storage=opened(result.folder, None))
    lost = [trial.number for trial in study.trials if is_void(trial)]
    assert len(lost) == 1
    assert [trial.user_attrs[RETRY_OF] for trial in study.trials if RETRY_OF in trial.user_attrs] == lost


def test_what_killed_workers_left_half_written_goes(searched: Path, tmp_path: Path) -> None:
    """The trial goes on under another number, so that nobody comes to its folder again; nor to a picture."""
    runs = tmp_path / "runs"
    folder = search(searched, trials=1, runs=runs, finish=False).folder
    trial = optuna.load_study(study_name="tiny", storage=opened(folder, None)).ask()
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    trial.set_user_attr(LEASE, [[holder()[0], dead.pid, 1.0], 3])
    left = [folder / f"trials/{trial.number:04d}/.figures.json.0123abcd.tmp", folder / ".front.png.0123abcd.tmp"]
    elsewhere = folder / ".study.md.0123abcd.tmp"
    for path in (*left, elsewhere):
        path.parent.mkdir(exist_ok=True)
        path.touch()
    os.utime(left[1], (1e9, 1e9))
    os.utime(elsewhere, (2e10, 2e10))  # another machine writes it at this moment
    result = search(searched, trials=2, runs=runs, finish=False)
    assert len(result.found.trials) == 2
    assert list(folder.rglob(".*.tmp")) == [elsewhere]


def start(folder: Path, wanted: int, storage: str | None) -> Any:
    command = [sys.executable, "-m", "hf_efficient.search.worker", str(folder), str(wanted)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [*command, *([storage] if storage else [])], cwd=ROOT, env=environment, stdout=-3, stderr=-3
    )


def opened(folder: Path, storage: str | None) -> Any:
    if storage is None:
        return f"sqlite:///{folder / 'study.db'}"
    return optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(storage))


def test_a_storage_that_locks_up_and_an_interrupt(
    searched: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The trials that they cost are run again, the recipe as given included."""
    monkeypatch.setattr("hf_efficient.search.storage.LOCKED_SECONDS", 0.2)
    runs = tmp_path / "runs"
    locks = []

    def lock(line: str) -> None:
        if line.startswith("trial 0: "):
            locks.append(sqlite3.connect(runs / "tiny" / "search" / "study.db"))
            locks[0].execute("BEGIN EXCLUSIVE")

    with pytest.raises(ConfigError, match=r"storage of the study cannot be used .*locked"):
        search(searched, trials=2, runs=runs, finish=False, say=lock)
    locks[0].close()
    with monkeypatch.context() as patched:
        patched.setattr("hf_efficient.search.trials.Trials.run", interrupted)
        with pytest.raises(KeyboardInterrupt):
            search(searched, trials=2, runs=runs, finish=False)
    result = search(searched, trials=2, runs=runs, finish=False)
    assert [trial["as_given"] for trial in result.found.trials] == [True, False]
    assert all(trial["state"] in ("complete", "pruned") for trial in result.found.trials)


def interrupted(*args: Any) -> None:
    raise KeyboardInterrupt


def test_trials_that_fail_are_told(searched: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train = Job.train

    def fails(self: Any, name: str, *args: Any) -> None:
        if self.recipe.stages["compress"].training["learning_rate"] != 5e-3:
            raise MemoryError("too large")
        train(self, name, *args)

    monkeypatch.setattr("hf_efficient.job.Job.train", fails)
    result = search(searched, trials=3, runs=tmp_path / "runs", finish=False)
    # The first trial after the recipe as given learns as that one does
    assert [trial["why"] for trial in result.found.trials] == ["", "", "too large"]
    assert result.found.chosen is not None
    monkeypatch.setattr("hf_efficient.job.Job.train", without_memory)
    with pytest.raises(ConfigError, match="the recipe as given does not run: no memory"):
        search(searched, trials=3, runs=tmp_path / "others", finish=False)


def without_memory(*args: Any) -> None:
    raise MemoryError("no memory")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--trials", "0"], "at least one trial"),
        (["--trials", "2", "--objective", "acuracy"], "whether more or less of 'acuracy'"),
        (["--trials", "2", "--objective", "max acuracy"], "did you mean 'accuracy'"),
        (["--trials", "2", "--constraint", "accuracy"], "is no constraint"),
        (["--trials", "2", "--sampler", "tep"], "did you mean 'tpe'"),
        (["--trials", "2", "--storage", "sqlite:////proc/no/study.db"], "storage of the study cannot be used"),
        (["--trials", "2", "--space", "none.yaml"], "cannot be read"),
        (["--trials", "2", "search.space={}"], "search.space"),
        (["--trials", "2", "search.spaces=1"], "did you mean 'space'"),
    ],
)
def test_bad_input(
    arguments: list[str], said: str, searched: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["search", str(searched), "--runs", str(tmp_path / "runs"), *arguments]) == 2
    assert said in capsys.readouterr().err


def test_a_recipe_without_a_space(recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = ["--runs", str(tmp_path / "runs"), "--trials", "2", "--no-finish"]
    assert main(["search", str(recipe), *runs]) == 2
    assert "add a `search:` block" in capsys.readouterr().err
    space = tmp_path / "space.yaml"
    space.write_text(yaml.safe_dump({"space": {RATE: [1e-3, 2e-3], LAYERS: [[0]]}, "rungs": []}))
    assert main(["search", str(recipe), *runs, "--space", str(space), "--objective", "accuracy"]) == 0
    told = capsys.readouterr().out
    assert "sampler: grid (2 combinations" in told
    assert "chosen.yaml" in told
    runs[3] = "9"  # the recipe as given, which is no point of the grid, and all that are
    assert main(["search", str(recipe), "--space", str(space), "--objective", "accuracy", *runs, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["recipe"].endswith("chosen.yaml")
    assert sorted(trial["values"].get(RATE, 0) for trial in found["trials"]) == [0, 1e-3, 2e-3]
    assert Recipe.load(tmp_path / "runs" / "tiny" / "search" / RECIPE).search is not None

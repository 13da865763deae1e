"""Whatever the moment at which a process is killed (SIGKILL): begun again, it ends with what it would have ended with.

`make faults` kills 200 times or more; the suite a few times.
"""

import json
import os
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from hf_efficient.files import leftovers
from hf_efficient.run import unfinished
from tests.faults.killing import Work, killed
from tests.faults.scenarios import REPO, TRIALS
from tests.hub.process import TOKEN
from tests.hub.server import Hub
from tests.test_contract import ROWS
from tests.test_parity import assert_same_tensors

KILLS = int(os.environ.get("HF_EFFICIENT_KILLS", "0"))
"""Of each scenario; 0: a few."""


def tensors(file: Path) -> dict[str, Any]:
    return safetensors.torch.load_file(file)


def names(folder: Path) -> list[str]:
    """Of all files, but those that are written under random names."""
    found = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    return sorted(str(path) for path in found if "_example_cache" not in path.parts)


def check_training(work: Path, whole: Path) -> None:
    assert names(work) == names(whole)
    assert_same_tensors(tensors(work / "final/model.safetensors"), tensors(whole / "final/model.safetensors"))


def check_shared(work: Path, whole: Path) -> None:
    """Within the tolerance of the contract table: what is added up by several processes is added in another order."""
    one, expected = (tensors(folder / "final/model.safetensors") for folder in (work, whole))
    assert one.keys() == expected.keys()
    for name, weight in one.items():
        torch.testing.assert_close(weight, expected[name], **ROWS["structured_pruning"].tolerance, msg=name)


def check_recipe(work: Path, whole: Path) -> None:
    (one,), (expected,) = ((folder / "runs/tiny").glob("[!.]*") for folder in (work, whole))
    assert not unfinished(work / "runs", "tiny")
    assert names(one) == names(expected)
    for name in ("final/model.safetensors", "stages/finetune/final/model.safetensors"):
        assert_same_tensors(tensors(one / name), tensors(expected / name))
    assert (one / "metrics.json").read_text() == (expected / "metrics.json").read_text()
    assert (one / "exported/model.onnx").read_bytes() == (expected / "exported/model.onnx").read_bytes()


def check_searching(work: Path, whole: Path) -> None:
    told, expected = (json.loads((one / "runs/tiny/search/study.json").read_text()) for one in (work, whole))
    assert len(told["trials"]) == len(expected["trials"]) == TRIALS
    for one, other in zip(told["trials"], expected["trials"], strict=True):
        assert one["values"] == other["values"]
        assert one["figures"]["accuracy"] == other["figures"]["accuracy"]
    stages = {key for trial in told["trials"] for key in trial.get("stages", [])}
    assert {path.name for path in (work / "runs/tiny/search/stages").glob("[!._]*")} <= stages


CHECKS: dict[str, Callable[[Path, Path], None]] = {
    "training": check_training,
    "shared": check_shared,
    "recipe": check_recipe,
    "searching": check_searching,
}
FEW = {"training": 5, "shared": 3, "recipe": 2, "searching": 2}
PROCESSES = {"shared": 2}


@pytest.mark.slow
@pytest.mark.parametrize("name", CHECKS)
@pytest.mark.timeout(3000)
def test_kills_change_nothing(name: str, tmp_path: Path) -> None:
    whole = Work(name, tmp_path / "whole", PROCESSES.get(name, 1))
    began = time.monotonic()
    assert whole.attempt(), whole.said()
    seconds = time.monotonic() - began
    works = killed(whole, seconds, tmp_path / "killed", KILLS or FEW[name], random.Random(11))
    for work in works:
        left = [path for path in leftovers(work.folder) if path.parent.name != "tiny"]  # those, the next run clears
        assert not left, left
        CHECKS[name](work.folder, whole.folder)
    print(f"{name}: {sum(work.kills for work in works)} kills of {sum(work.attempts for work in works)} attempts")


@pytest.mark.slow
@pytest.mark.parametrize(("first", "then"), [(2, 1), (1, 2), (2, 4)])
def test_goes_on_with_another_number_of_processes(first: int, then: int, tmp_path: Path) -> None:
    whole, work = Work("shared", tmp_path / "whole"), Work("shared", tmp_path / "work", first)
    assert whole.attempt(), whole.said()
    assert not work.attempt(last=whole.changes() // 2)
    assert list(work.folder.glob("checkpoint-*"))
    work.processes = then
    assert work.attempt(), work.said()
    assert "passed over" not in work.said()
    check_shared(work.folder, whole.folder)


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_kills_of_a_push(tmp_path: Path) -> None:
    """The model is there as a whole, or not at all; and there in the end."""
    moments, kills = random.Random(5), 0
    _, expected, seconds = pushed(tmp_path / "whole", [])
    for number in range(100 * (KILLS or 3)):
        work, files, _ = pushed(tmp_path / str(number), [moments.uniform(0.02, seconds) for _ in range(2)])
        assert files == expected
        kills += work.kills
        if kills >= (KILLS or 3):
            print(f"pushing: {kills} kills in {number + 1} pushes")
            return
    raise AssertionError("killed too late each time")


def pushed(folder: Path, moments: list[float]) -> tuple[Work, dict[str, bytes], float]:
    """A model on a hub of its own, whose push was killed after each of ``moments``, in seconds; the files there; how
    long the last push took."""
    work = Work("pushing", folder)
    with Hub({TOKEN: "me"}) as hub:
        (work.folder / "url").write_text(hub.url)
        for moment in moments:
            if work.attempt(after=moment):
                break
            there = hub.store.repository("models", REPO)
            assert there is None or len(there.commits) <= 2  # the first, and the whole model
        began = time.monotonic()
        assert work.attempt(), work.said()
        return work, hub.files(REPO), time.monotonic() - began

"""The machine: what is told of it, having it alone, and the memory of a block of code."""

import contextlib
import fcntl
import json
import mmap
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
import torch

from hf_efficient.errors import ConfigError
from hf_efficient.machine import LOCK_NAME, PeakMemory, compiler_missing, machine, measurement_lock
from hf_efficient.measure import TorchRuntime, measure
from tests.tiny import pad, text_examples, text_model


@pytest.fixture(autouse=True)
def lock_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A lock of this test's own, so that others' measurements do not hold it up."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path / LOCK_NAME


def test_machine_names_no_host_user_or_path() -> None:
    told = machine()
    assert told["logical_cores"] == os.cpu_count()
    assert told["torch"] == torch.__version__
    assert told["memory_gb"] == round(psutil.virtual_memory().total / 1e9, 1)
    assert told["processor"]
    for private in filter(None, (platform.node(), str(Path.home()), os.environ.get("USER"), os.getcwd())):
        assert private not in told.values()
    assert json.loads(json.dumps(told)) == told


TAKE_LOCK = """
import fcntl, os, sys, time
handle = os.open(sys.argv[1], os.O_RDONLY | os.O_CREAT, 0o644)
try:
    fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
except BlockingIOError:
    sys.exit(3)
print("taken", flush=True)
sys.stdin.read()
"""
"""A second process: exits with 3 where the lock is held, else shares it until its input ends."""


@pytest.fixture
def second_process(lock_file: Path) -> Iterator[Callable[[], subprocess.Popen]]:
    """Starts second processes, which do not outlive the test."""
    command = [sys.executable, "-c", TAKE_LOCK, str(lock_file)]
    with contextlib.ExitStack() as stack:

        def start() -> subprocess.Popen:
            process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            stack.callback(process.kill)
            return process

        yield start


class TestLock:
    def test_excludes_a_second_process(self, second_process: Callable[[], subprocess.Popen]) -> None:
        with measurement_lock():
            assert second_process().wait(10) == 3
        other = second_process()
        assert other.stdout.readline() == "taken\n"
        with pytest.raises(ConfigError, match="wait for it to end"), measurement_lock(timeout_s=0.2):
            pytest.fail("two processes hold the lock")
        other.communicate("")
        with measurement_lock(timeout_s=0):
            pass

    def test_waits_for_a_second_process(self, second_process: Callable[[], subprocess.Popen]) -> None:
        other = second_process()
        assert other.stdout.readline() == "taken\n"
        other.stdin.close()  # it ends, and lets go
        with measurement_lock(timeout_s=10):
            assert other.wait(10) == 0

    def test_may_be_taken_again_and_is_let_go_once_at_the_end(
        self, lock_file: Path, second_process: Callable[[], subprocess.Popen]
    ) -> None:
        with measurement_lock():
            with measurement_lock(timeout_s=0):
                pass
            assert second_process().wait(10) == 3
        assert not held(lock_file)
        with pytest.raises(ZeroDivisionError), measurement_lock():
            raise ZeroDivisionError
        assert not held(lock_file)

    def test_measuring_holds_it(self, lock_file: Path) -> None:
        model, seen = text_model(), set()
        model.register_forward_pre_hook(lambda module, inputs: seen.add(held(lock_file)))
        measure(TorchRuntime(model), text_examples(2), pad, seconds=0, repeats=1)
        assert seen == {True}
        assert not held(lock_file)


def held(lock: Path) -> bool:
    handle = os.open(lock, os.O_RDONLY)
    with contextlib.closing(os.fdopen(handle)):
        try:
            fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        return False


def test_peak_of_this_process() -> None:
    start_mb = psutil.Process().memory_info().rss / 1e6
    with PeakMemory() as peak, mmap.mmap(-1, 200_000_000) as block:  # which goes back to the system for certain
        for start in range(0, len(block), mmap.PAGESIZE):
            block[start] = 1
        time.sleep(0.1)
    assert start_mb + 180 < peak.peak_mb < start_mb + 400
    with PeakMemory() as later:
        pass
    assert later.peak_mb < peak.peak_mb - 150
    assert later.device_peak_mb is None or torch.cuda.is_initialized()


def test_compiler(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CXX", sys.executable)  # anything that can be run
    assert compiler_missing("cpu") == ""
    monkeypatch.delenv("CXX")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "apt install g++" in compiler_missing("cpu")
    monkeypatch.setitem(sys.modules, "triton", None)
    assert "pip install triton" in compiler_missing("cuda")
    assert compiler_missing("mps") == ""

"""Signals have handlers in Python that are called whatever OpenVINO did before."""

import subprocess
import sys
from collections.abc import Callable
from typing import Any

HANDLED = """
import os, signal, sys
from hf_efficient.runtimes import load_runtime

opened = [load_runtime(sys.argv[1]) for _ in range(2)]
while opened:
    del opened[0]
signal.signal(signal.SIGUSR1, lambda *_: print("handled"))
os.kill(os.getpid(), signal.SIGUSR1)
"""


def test_handlers_are_called_when_two_runtimes_are_gone(exports: Callable[..., Any]) -> None:
    folder = str(exports("text", "openvino").folder)
    done = subprocess.run([sys.executable, "-c", HANDLED, folder], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "handled\n"), done.stderr

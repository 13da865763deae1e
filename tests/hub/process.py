"""Clients of a hub as processes of their own, each with a cache of its own."""

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tests.hub.server import Hub

ROOT = Path(__file__).parents[2]
TOKEN = "token-of-me"


def _environment(url: str, home: Path, token: str) -> dict[str, str]:
    return {
        **{name: value for name, value in os.environ.items() if not name.startswith("HF_")},
        **{"HF_ENDPOINT": url, "HF_TOKEN": token, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1"},
        **{"HF_HUB_DISABLE_TELEMETRY": "1", "PYTHONPATH": str(ROOT), "HF_HUB_DISABLE_PROGRESS_BARS": "1"},
    }


def client(
    url: str, home: Path, *command: str, token: str = TOKEN, timeout: float = 300
) -> "subprocess.CompletedProcess[str]":
    """``python -m command`` with the hub at ``url``; the cache is ``home``."""
    return subprocess.run(
        [sys.executable, "-m", *command],
        env=_environment(url, home, token),
        cwd=home.parent,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


@contextlib.contextmanager
def talking(hub: Hub, home: Path, *command: str) -> Iterator[Callable[[Any], Any]]:
    """A program of `tests.hub.client` that answers each JSON line with one; what it is asked through."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.hub.client", *command],
        env=_environment(hub.url, home, TOKEN),
        cwd=home.parent,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )

    def ask(question: Any) -> Any:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(json.dumps(question) + "\n")
        process.stdin.flush()
        return json.loads(process.stdout.readline())

    with process:
        try:
            yield ask
        finally:
            process.kill()


def told(hub: Hub, home: Path, *command: str, token: str = TOKEN) -> dict[str, Any]:
    """What a program of `tests.hub.client` printed last."""
    done = client(hub.url, home, "tests.hub.client", *command, token=token)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


def assert_nothing_local(files: dict[str, bytes], *names: str) -> None:
    for path, content in files.items():
        for name in (*names, str(Path.home()) + "/", str(ROOT)):
            assert name.encode() not in content, f"{path} names {name}"

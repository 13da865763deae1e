"""What is done to good inputs to make bad ones of them, and how a command is held to what it may do with those."""

import contextlib
import io
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from hf_efficient.cli import main

LIMIT_SECONDS = 10

_TEXTS = st.text(max_size=12) | st.sampled_from(
    ["../up", "/", "~", "\x00", "null", "1e400", "a" * 300, "{}", "ﬀ\u202e"]
)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**6), 10**6) | st.floats() | _TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_TEXTS, inner, max_size=3),
    max_leaves=6,
)
"""Any plain value."""


def paths_of(value: Any, before: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Of all values in ``value``."""
    if isinstance(value, dict):
        inner = [found for key, each in value.items() for found in paths_of(each, (*before, key))]
    elif isinstance(value, list):
        inner = [found for index, each in enumerate(value) for found in paths_of(each, (*before, index))]
    else:
        inner = []
    return [before, *inner] if before else inner


@st.composite
def changed(draw: Any, value: Any) -> Any:
    """``value`` with one of the values in it replaced, dropped or renamed."""
    *parents, last = draw(st.sampled_from(paths_of(value)))
    made = _copy(value)
    block = made
    for key in parents:
        block = block[key]
    kind = draw(st.sampled_from(["replace", "replace", "drop", "rename"]))
    if kind == "replace" or isinstance(block, list):
        block[last] = draw(VALUES)
    elif kind == "drop":
        del block[last]
    else:
        block[draw(_TEXTS)] = block.pop(last)
    return made


def _copy(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _copy(each) for key, each in value.items()}
    return [_copy(each) for each in value] if isinstance(value, list) else value


@st.composite
def damaged(draw: Any, content: bytes) -> bytes:
    """``content`` with bytes flipped, missing, doubled or added."""
    made = bytearray(content)
    kind = draw(st.sampled_from(["flip", "flip", "cut", "drop", "add", "double", "empty"]))
    start = draw(st.integers(0, max(0, len(made) - 1)))
    if kind == "flip":
        for _ in range(draw(st.integers(1, 4))):
            made[draw(st.integers(0, len(made) - 1))] ^= 1 << draw(st.integers(0, 7))
    elif kind == "cut":
        del made[start:]
    elif kind == "drop":
        del made[start : start + draw(st.integers(1, 64))]
    elif kind == "add":
        made[start:start] = draw(st.binary(min_size=1, max_size=16))
    elif kind == "double":
        made[start:start] = made[start : start + 40]
    else:
        made.clear()
    return bytes(made)


@contextlib.contextmanager
def limited() -> Iterator[None]:
    """
    Raises:
        TimeoutError: the block took more than `LIMIT_SECONDS`.
    """

    def stop(number: int, frame: Any) -> None:
        raise TimeoutError(f"more than {LIMIT_SECONDS} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(LIMIT_SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def commanded(*arguments: str | Path) -> tuple[int, str]:
    """Exit code of a command, and its message; anything raised passes."""
    said = io.StringIO()
    with limited(), contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
        try:
            code = main([str(each) for each in arguments])
        except SystemExit as error:  # argparse
            code = int(str(error.code))
    return code, said.getvalue()


def assert_refused_or_handled(folder: Path, *arguments: str | Path) -> int:
    """A command in ``folder`` does its work, or says in one message why not and leaves nothing; its exit code."""
    before = sorted(folder.rglob("*"))
    code, said = commanded(*arguments)
    assert code in (0, 2), (code, said)
    assert "Traceback" not in said
    if code == 2:
        assert "hf-efficient" in said
        assert sorted(folder.rglob("*")) == before
    return code

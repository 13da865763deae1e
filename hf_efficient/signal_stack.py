"""The stack on which signals are handled, kept as it was by a library that changes it.

OpenVINO's CPU plugin (2026.4) gives the thread that loads it a stack of its own for signal handlers (`sigaltstack(2)`),
and puts the earlier one back when it goes. Of two plugins that overlap and go in the order in which they came, the
second puts back the memory that the first has freed. From then on any signal with a handler in Python, Ctrl-C or the
end of a child process among them, ends the process with a segmentation fault.
"""

import contextlib
import ctypes
import sys
from collections.abc import Iterator


class _Stack(ctypes.Structure):
    """`stack_t` as on Linux."""

    _fields_ = [("sp", ctypes.c_void_p), ("flags", ctypes.c_int), ("size", ctypes.c_size_t)]


@contextlib.contextmanager
def signal_stack_kept() -> Iterator[None]:
    """After the block this thread handles signals on the stack on which it did before; on Linux, elsewhere nothing.

    A plugin that finds another stack than its own when it goes leaves that as it is.
    """
    if sys.platform != "linux":
        yield
        return
    before, set_stack = _Stack(), ctypes.CDLL(None).sigaltstack
    set_stack(None, ctypes.byref(before))
    try:
        yield
    finally:
        set_stack(ctypes.byref(before), None)

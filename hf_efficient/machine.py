"""The machine that figures are measured on: what it is, how to have it alone, and memory that a block of code takes."""

import contextlib
import importlib.metadata
import importlib.util
import os
import platform
import shutil
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import psutil
import torch

from hf_efficient.errors import ConfigError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

MB = 1_000_000
GB = 1_000_000_000

LOCK_NAME = "hf_efficient-measurement.lock"
LOCK_POLL_SECONDS = 0.05
SAMPLE_SECONDS = 0.02

_lock = threading.RLock()
_lock_depth = 0


def machine() -> dict[str, Any]:
    """What a reader must know to judge a figure, and nothing that names a person or a host.

    Keys: processor, logical_cores, memory_gb (1e9 bytes), os, accelerator (None where there is none), python, torch,
    transformers.
    """
    return {
        "processor": _processor(),
        "logical_cores": os.cpu_count() or 1,
        "memory_gb": round(psutil.virtual_memory().total / GB, 1),
        "os": f"{platform.system()} {platform.release()}",
        "accelerator": _accelerator(),
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "transformers": importlib.metadata.version("transformers"),
    }


def _processor() -> str:
    system = platform.system()
    if system == "Linux":
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):  # absent on most Arm machines
                return line.partition(":")[2].strip()
    if system == "Darwin":
        asked = subprocess.run(["sysctl", "-n", "machdep.cpu.brand_string"], capture_output=True, text=True)
        if asked.returncode == 0:
            return asked.stdout.strip()
    return platform.processor() or platform.machine()


def _accelerator() -> str | None:
    device = torch.accelerator.current_accelerator(check_available=True)
    if device is None:
        return None
    kind = device.type
    name_of = getattr(getattr(torch, kind), "get_device_name", None)
    return name_of() if name_of else f"{platform.machine()} {kind}"


def available_cores() -> int:
    """Physical cores that this process may use: its affinity and its container's quota counted in."""
    logical = os.cpu_count() or 1
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else logical
    return max(1, min(psutil.cpu_count(logical=False) or logical, allowed, _quota() or allowed))


def _quota() -> int | None:
    """Cores that a Linux control group (version 2) grants; None without a limit."""
    try:
        granted, period = Path("/sys/fs/cgroup/cpu.max").read_text(encoding="ascii").split()
        return int(granted) // int(period)
    except (OSError, ValueError):  # no such system, or "max"
        return None


def compiler_missing(device: str) -> str:
    """What torch.compile lacks to make code for a device type here, ending in the remedy; empty if nothing.

    Reads on after "..., which": its inductor backend builds C++ for CPUs and Triton kernels for GPUs.
    """
    if device == "cpu":
        compiler = os.environ.get("CXX") or {"Darwin": "clang++", "Windows": "cl"}.get(platform.system(), "g++")
        if shutil.which(compiler) is None:
            return (
                f"needs a C++ compiler on a CPU, but there is no {compiler} on the PATH; install it "
                "(e.g. apt install g++) or name another in the variable CXX"
            )
    elif device in ("cuda", "xpu") and importlib.util.find_spec("triton") is None:
        return "needs Triton on a GPU; install it with: pip install triton"
    return ""


@contextlib.contextmanager
def measurement_lock(timeout_s: float = 600) -> Iterator[None]:
    """Hold the machine's one measurement lock, so that parallel runs do not spoil each other's timings.

    The lock is a file in the temporary folder: processes that see the same folder exclude each other, and one that
    dies lets go. A thread that holds it may take it again.

    Raises:
        ConfigError: not free within ``timeout_s`` seconds.
    """
    global _lock_depth
    deadline = time.monotonic() + timeout_s
    if not _lock.acquire(timeout=timeout_s):
        raise _busy(timeout_s)
    try:
        _lock_depth += 1
        with _file_lock(deadline, timeout_s) if _lock_depth == 1 else contextlib.nullcontext():
            yield
    finally:
        _lock_depth -= 1
        _lock.release()


@contextlib.contextmanager
def _file_lock(deadline: float, timeout_s: float) -> Iterator[None]:
    if fcntl is None:  # no advisory whole-file locks there: parallel measurements are the user's to avoid
        yield
        return
    handle = _open_lock(Path(tempfile.gettempdir()) / LOCK_NAME)
    try:
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    raise _busy(timeout_s) from None
                time.sleep(LOCK_POLL_SECONDS)
        yield
    finally:
        fcntl.flock(handle, fcntl.LOCK_UN)  # closing alone would not do where a forked child has the file open too
        os.close(handle)


def _open_lock(path: Path) -> int:
    """Another user's file can be read, but not opened with O_CREAT in a shared sticky folder."""
    try:
        return os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        handle = os.open(path, os.O_RDONLY | os.O_CREAT)
        os.fchmod(handle, 0o644)  # whatever the umask
        return handle


def _busy(timeout_s: float) -> ConfigError:
    return ConfigError(
        f"another measurement has kept this machine busy for {timeout_s:g} s (lock: {LOCK_NAME} in the temporary "
        "folder); wait for it to end, or stop it, and measure again"
    )


class PeakMemory:
    """Peak memory of this process while a block runs, sampled every 20 ms; processes it starts are not counted.

    Attributes:
        peak_mb: resident memory, in MB of 1e6 bytes.
        device_peak_mb: what PyTorch allocated on the current CUDA device; None where CUDA was not used.
    """

    peak_mb: float
    device_peak_mb: float | None = None

    def __enter__(self) -> Self:
        self._process = psutil.Process()
        self.peak_mb = 0.0
        self.device_peak_mb = None
        self._done = threading.Event()
        self._sampler = threading.Thread(target=self._run, daemon=True)
        if torch.cuda.is_initialized():
            torch.cuda.reset_peak_memory_stats()
        self._sample()
        self._sampler.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._done.set()
        self._sampler.join()
        self._sample()
        if torch.cuda.is_initialized():
            self.device_peak_mb = torch.cuda.max_memory_allocated() / MB

    def _run(self) -> None:
        while not self._done.wait(SAMPLE_SECONDS):
            self._sample()

    def _sample(self) -> None:
        self.peak_mb = max(self.peak_mb, self._process.memory_info().rss / MB)

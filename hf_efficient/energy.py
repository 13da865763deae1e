"""Energy that the machine has used, where it counts it."""

import importlib.util
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

POWERCAP = Path("/sys/class/powercap")


class EnergyMeter:
    """Joules since it was made: of processor packages (Linux, RAPL) and NVIDIA GPUs (NVML), of the whole machine.

    RAPL counters are readable by root alone on most systems, and missing in most virtual machines.
    """

    def __init__(self) -> None:
        self._before = dict(_counters())

    def joules(self) -> float | None:
        """None where nothing counts."""
        now = dict(_counters())
        spent = [_difference(self._before[name], now[name]) for name in self._before if name in now]
        return sum(spent) if spent else None


def _difference(before: tuple[float, float], now: tuple[float, float]) -> float:
    """Joules between two readings of (joules, greatest reading); a counter that passed its greatest began anew."""
    return now[0] - before[0] if now[0] >= before[0] else now[0] - before[0] + now[1]


def _counters() -> Iterator[tuple[str, tuple[float, float]]]:
    for domain in POWERCAP.glob("intel-rapl:*"):
        if domain.name.count(":") > 1:  # a part of a package, counted in it
            continue
        with suppress(OSError, ValueError):
            read = [float((domain / name).read_text()) / 1e6 for name in ("energy_uj", "max_energy_range_uj")]
            yield domain.name, (read[0], read[1])
    if importlib.util.find_spec("pynvml") is None:
        return
    import pynvml

    with suppress(pynvml.NVMLError):
        pynvml.nvmlInit()
        for index in range(pynvml.nvmlDeviceGetCount()):
            handle = pynvml.nvmlDeviceGetHandleByIndex(index)
            yield f"gpu:{index}", (pynvml.nvmlDeviceGetTotalEnergyConsumption(handle) / 1e3, 0.0)

"""Chance for what a model draws while it is judged: the same each time, and apart from that of the training."""

import contextlib
from collections.abc import Iterator

import torch


@contextlib.contextmanager
def seeded(device: torch.device, seed: int) -> Iterator[None]:
    """Random numbers on the CPU and ``device`` begin at ``seed``; afterwards they go on from where they were."""
    devices = [device] if device.type != "cpu" else []
    with torch.random.fork_rng(devices, device_type=device.type if devices else "cuda"):
        torch.manual_seed(seed)
        yield

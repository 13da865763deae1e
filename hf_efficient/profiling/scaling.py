"""How many devices are worth it: the time of a training step on 1 to 1,024 of them, predicted from measured parts.

A step on n devices takes what it takes on one, and so much of the exchange as does not go on beside it. Collectives go
round a ring (Patarasuk & Yuan 2009): each takes n - 1 rounds, an all-reduce twice as many, in which 1/n of the bytes go
to the next device. With DDP gradients are all-reduced in buckets. With FSDP weights are gathered in the forward pass
and again in the backward pass, layer by layer, gradients are scattered, and each device updates its part.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from hf_efficient.blocks import layer_stacks, layers_of
from hf_efficient.errors import ConfigError
from hf_efficient.machine import available_cores
from hf_efficient.profiling.steps import DDP, FSDP, Steps, measure_steps
from hf_efficient.wording import number

if TYPE_CHECKING:
    from transformers import PreTrainedModel

MOST_DEVICES = 1024
BUCKET = 25e6
"""Bytes of gradients that DDP sends at once."""
CHECKED = (2, 4)
"""Numbers of processes: what is hidden is read off the first, the prediction is checked on the others."""


@dataclass(frozen=True)
class Link:
    """Between two devices: bytes in a second, and seconds that pass until the first arrives."""

    speed: float
    latency: float

    @classmethod
    def measured(cls, exchanges: Mapping[int, float], processes: int) -> "Link":
        """From all-reduces of few and of many bytes."""
        (few, soon), (many, late) = sorted(exchanges.items())
        rounds = 2 * (processes - 1)
        speed = rounds / processes * (many - few) / max(late - soon, 1e-9)
        return cls(speed, max(0.0, soon / rounds - few / processes / speed))

    def ring(self, size: float, devices: int, pieces: int = 1) -> float:
        """Seconds of an all-gather or a reduce-scatter of ``size`` bytes, in so many pieces."""
        return (devices - 1) * (pieces * self.latency + size / devices / self.speed)


@dataclass(frozen=True)
class Costs:
    """What a step is made of.

    Attributes:
        forward, backward, optimizer: seconds on one device.
        size: bytes of the weights, and of their gradients.
        pieces: layers that FSDP gathers one by one, and one for the rest.
        hidden: ``ddp`` and ``fsdp`` -> share of the exchange that goes on beside the computing; below 0 where computing
            slows the exchange down.
    """

    forward: float
    backward: float
    optimizer: float
    size: int
    pieces: int
    hidden: Mapping[str, float] = field(default_factory=dict)

    def computing(self, way: str, devices: int) -> float:
        return self.forward + self.backward + self.optimizer / (devices if way == FSDP else 1)

    def exchange(self, way: str, devices: int, link: Link) -> float:
        if way == DDP:
            return 2 * link.ring(self.size, devices, math.ceil(self.size / BUCKET))
        return 3 * link.ring(self.size, devices, self.pieces)

    def seconds(self, way: str, devices: int, link: Link) -> float:
        """Of a step: at most what goes on beside it is hidden, the backward pass, with FSDP the forward pass too."""
        exchange = self.exchange(way, devices, link)
        beside = self.backward + (self.forward if way == FSDP else 0.0)
        shown = max(exchange * (1 - self.hidden.get(way, 0.0)), exchange - beside)
        return self.computing(way, devices) + shown


@dataclass
class Scaling:
    """The prediction and what it rests on.

    Attributes:
        costs: of a step of the whole machine, or of one GPU.
        link: that is predicted for.
        measured_link: between processes here.
        steps: devices -> ``ddp`` and ``fsdp`` -> predicted seconds.
        checks: processes here -> way -> seconds, measured and predicted; the first also showed what is hidden.
        batch_size: examples of a step on each device.
    """

    costs: Costs
    link: Link
    measured_link: Link
    steps: dict[int, dict[str, float]]
    checks: dict[int, dict[str, dict[str, float]]]
    batch_size: int

    @property
    def error(self) -> dict[str, float]:
        """Way -> by which share of the measured time the prediction was off at most, where nothing was fitted."""
        later = [check for count, check in self.checks.items() if count > CHECKED[0]]
        return {
            way: max((abs(each[way]["predicted"] / each[way]["measured"] - 1) for each in later), default=math.nan)
            for way in (DDP, FSDP)
        }

    def to_dict(self) -> dict[str, Any]:
        error = {way: None if math.isnan(value) else value for way, value in self.error.items()}
        return {**asdict(self), "error": error}

    def efficiency(self, way: str, devices: int) -> float:
        """Examples a second over ``devices`` times those of one."""
        return self.costs.computing(DDP, 1) / self.steps[devices][way]

    def table(self) -> tuple[list[str], list[list[str]]]:
        heading = ["Devices"]
        for way in (DDP, FSDP):
            heading += [f"{way.upper()}, ms a step", "examples/s", "of ideal"]
        rows = []
        for devices, seconds in self.steps.items():
            row = [f"{devices:,}"]
            for way in (DDP, FSDP):
                rate = devices * self.batch_size / seconds[way]
                row += [number(1000 * seconds[way]), number(rate), f"{100 * self.efficiency(way, devices):.0f} %"]
            rows.append(row)
        return heading, rows

    def explained(self) -> list[str]:
        told = [
            f"{self.batch_size} examples on each device, {number(self.costs.size / 1e6)} MB of gradients, over links "
            f"of {number(8e-9 * self.link.speed)} Gbit/s and {number(1e6 * self.link.latency)} us."
        ]
        slower = {way: 1 - share for way, share in self.costs.hidden.items()}
        shown = ", ".join(f"{100 * share:.0f} % with {way.upper()}" for way, share in slower.items())
        told.append(
            f"On {CHECKED[0]} processes here a step was longer than its computing, by so much of what its exchange "
            f"takes alone: {shown}."
        )
        for count, check in self.checks.items():
            if count > CHECKED[0]:
                pairs = "; ".join(
                    f"{way.upper()} {number(1000 * each['predicted'])} ms predicted, {number(1000 * each['measured'])} "
                    f"measured ({100 * (each['predicted'] / each['measured'] - 1):+.0f} %)"
                    for way, each in check.items()
                )
                told.append(f"Checked on {count} processes here: {pairs}.")
        if all(math.isnan(value) for value in self.error.values()):
            told.append("Not checked: there are too few devices here.")
        return told


def scaling(
    model: "PreTrainedModel",
    examples: Sequence[Mapping[str, Any]],
    collate: Callable[[list[Any]], Mapping[str, Any]],
    devices: int,
    batch_size: int = 32,
    link: Link | None = None,
    tell: Callable[[str], None] = lambda step: None,
) -> Scaling:
    """Predict steps on up to ``devices`` devices like this one, from steps and exchanges of a few processes here.

    Args:
        devices: 1 to 1,024.
        link: between them; None: as between processes here.
        tell: called with what is being done.

    Raises:
        ConfigError: another number of devices, no examples, or no second device here to measure with.
    """
    check_devices(devices, model.device.type)
    if not len(examples):
        raise ConfigError("steps are timed on real examples, and there are none; pass some")
    count = _devices(model.device.type)
    size = min(batch_size, len(examples))
    starts = range(0, len(examples) - size + 1, size)
    batches = [collate(list(examples[start : start + size])) for start in starts]
    pieces = 1 + sum(len(layers_of(model, stack)) for stack in layer_stacks(model))
    weights = sum(parameter.nbytes for parameter in model.parameters())
    cores = available_cores()

    def steps(processes: int, threads: int) -> Steps:
        tell(f"training steps on {processes} process{'es' if processes > 1 else ''}")
        return measure_steps(model, batches, processes, threads)

    whole = steps(1, cores)
    several = [steps(processes, max(1, cores // processes)) for processes in CHECKED if processes <= count]
    here = Link.measured(several[0].exchanges, several[0].processes)
    hidden = {way: _hidden(several[0], way, _costs(several[0], weights, pieces), here) for way in (DDP, FSDP)}
    costs = _costs(whole, weights, pieces, hidden)
    chosen = link or here
    counts = sorted({2**power for power in range(devices.bit_length())} | {devices})
    return Scaling(
        costs,
        chosen,
        here,
        {each: {way: costs.seconds(way, each, chosen) for way in (DDP, FSDP)} for each in counts},
        {each.processes: _check(each, _costs(each, weights, pieces, hidden), here) for each in several},
        size,
    )


def check_devices(devices: int, kind: str) -> None:
    """
    Args:
        kind: of the device that the model is on.

    Raises:
        ConfigError: fewer than 1, more than 1,024, or too few here to measure with.
    """
    if not 1 <= devices <= MOST_DEVICES:
        raise ConfigError(f"devices must be from 1 to {MOST_DEVICES:,}, got {devices}")
    if (count := _devices(kind)) < CHECKED[0]:
        raise ConfigError(
            f"how devices share a training is measured on {CHECKED[0]} of them, and here is {count}; profile the model "
            "on the CPU, or on a machine with more"
        )


def _devices(kind: str) -> int:
    """How many processes there can be here, each with a device; as many as are checked where they share a CPU."""
    return torch.accelerator.device_count() if kind != "cpu" else CHECKED[-1]


def _costs(steps: Steps, size: int, pieces: int, hidden: Mapping[str, float] | None = None) -> Costs:
    return Costs(steps.forward, steps.backward, steps.optimizer, size, pieces, hidden or {})


def _hidden(steps: Steps, way: str, costs: Costs, link: Link) -> float:
    shown = steps.shared[way] - costs.computing(way, steps.processes)
    return min(1.0, 1 - shown / costs.exchange(way, steps.processes, link))


def _check(steps: Steps, costs: Costs, link: Link) -> dict[str, dict[str, float]]:
    return {
        way: {"measured": steps.shared[way], "predicted": costs.seconds(way, steps.processes, link)}
        for way in (DDP, FSDP)
    }

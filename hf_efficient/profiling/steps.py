"""Training steps and exchanges as several processes of this machine take them, each with the same model and batches."""

import copy
import datetime
import json
import pickle
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate.utils import send_to_device
from torch import distributed, nn
from torch.multiprocessing import ProcessExitedException, ProcessRaisedException

from hf_efficient.blocks import share_out
from hf_efficient.errors import ConfigError
from hf_efficient.files import write_json
from hf_efficient.machine import measurement_lock

if TYPE_CHECKING:
    from transformers import PreTrainedModel

ALONE, DDP, FSDP = "alone", "ddp", "fsdp"
WARMUP, STEPS, EXCHANGES = 2, 5, 5
_NOT_SENT = (RuntimeError, AttributeError, TypeError, pickle.PicklingError)
"""What a model raises that no other process can get, such as one with parametrized modules."""
SMALL = 4096
"""Bytes of an exchange whose time is nearly all latency."""
TIMEOUT = datetime.timedelta(seconds=300)


@dataclass(frozen=True)
class Steps:
    """Medians over steps, in seconds, of the process that is slowest.

    Attributes:
        processes: at the same time, so many.
        forward, backward, optimizer: parts of a step of each by itself (AdamW).
        shared: ``ddp`` and ``fsdp`` -> a step that shares gradients, or weights too; empty for one process.
        exchanges: bytes -> an all-reduce of so many and nothing else; empty for one process.
    """

    processes: int
    forward: float
    backward: float
    optimizer: float
    shared: Mapping[str, float]
    exchanges: Mapping[int, float]


def measure_steps(
    model: "PreTrainedModel", batches: Sequence[Mapping[str, Any]], processes: int, threads: int
) -> Steps:
    """Train copies of ``model`` for a few steps on so many processes, gloo on CPUs and NCCL on GPUs.

    They are spawned, so a script calls this under ``if __name__ == "__main__"``.

    Args:
        batches: on the CPU, with labels where the model makes a loss of them.
        threads: of each process, on a CPU.

    Raises:
        ConfigError: a process ended: memory, or a model that cannot be trained so.
    """
    whole = copy.deepcopy(model).cpu()
    with tempfile.TemporaryDirectory() as folder, measurement_lock():
        given = (processes, threads, folder, whole, list(batches), model.device.type)
        try:
            torch.multiprocessing.spawn(_process, args=given, nprocs=processes)
        except (ProcessRaisedException, ProcessExitedException, *_NOT_SENT) as error:
            why = str(error).strip().rpartition("\n")[2]
            raise ConfigError(
                f"the model cannot be trained on {processes} processes here ({why}); take a smaller batch size, or "
                "leave out devices"
            ) from error
        told = [json.loads((Path(folder) / f"{rank}.json").read_text(encoding="utf-8")) for rank in range(processes)]

    def slowest(*path: str) -> float:
        return max(_at(one, path) for one in told)

    return Steps(
        processes,
        forward=slowest(ALONE, "forward"),
        backward=slowest(ALONE, "backward"),
        optimizer=slowest(ALONE, "optimizer"),
        shared={way: max(sum(one[way].values()) for one in told) for way in (DDP, FSDP) if way in told[0]},
        exchanges={int(size): slowest("exchanges", size) for size in told[0]["exchanges"]},
    )


def _at(values: Any, path: Sequence[str]) -> float:
    for name in path:
        values = values[name]
    return float(values)


def _process(
    rank: int, processes: int, threads: int, folder: str, model: Any, batches: Sequence[Any], device: str
) -> None:
    torch.set_num_threads(threads)
    place = torch.device(device, rank) if device == "cuda" else torch.device(device)
    if device == "cuda":
        torch.cuda.set_device(place)
    distributed.init_process_group(
        "nccl" if device == "cuda" else "gloo",
        init_method=f"file://{folder}/meeting",
        rank=rank,
        world_size=processes,
        timeout=TIMEOUT,
        device_id=place if device == "cuda" else None,
    )
    torch.manual_seed(0)
    try:
        moved = send_to_device(list(batches), place)
        found: dict[str, Any] = {"exchanges": {}}
        for way in (ALONE, DDP, FSDP) if processes > 1 else (ALONE,):
            mine = copy.deepcopy(model).to(place).train()  # what is spawned shares its memory with the parent
            found[way] = _steps(_shared(mine, way, place), moved, place)
            del mine
        if processes > 1:
            for size in (SMALL, sum(parameter.nbytes for parameter in model.parameters())):
                found["exchanges"][str(size)] = _exchange(size, place)
        write_json(Path(folder) / f"{rank}.json", found)
    finally:
        distributed.destroy_process_group()


def _shared(model: Any, way: str, place: torch.device) -> nn.Module:
    if way == DDP:
        return nn.parallel.DistributedDataParallel(model, find_unused_parameters=True)
    if way == FSDP:
        share_out(model, place.type)
    return model  # type: ignore[no-any-return]


def _steps(model: nn.Module, batches: Sequence[Mapping[str, Any]], place: torch.device) -> dict[str, float]:
    """Seconds of the parts of a step."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6)
    spent: dict[str, list[float]] = {"forward": [], "backward": [], "optimizer": []}
    for step in range(WARMUP + STEPS):
        batch = batches[step % len(batches)]
        distributed.barrier()
        marks = [_now(place)]
        loss = _loss(model(**batch))
        marks.append(_now(place))
        loss.backward()
        marks.append(_now(place))
        optimizer.step()
        optimizer.zero_grad()
        marks.append(_now(place))
        if step >= WARMUP:
            for part, start, end in zip(spent, marks, marks[1:], strict=False):
                spent[part].append(end - start)
    return {part: statistics.median(seconds) for part, seconds in spent.items()}


def _loss(outputs: Any) -> torch.Tensor:
    """The model's own; where it makes none, any number that depends on all it computes."""
    loss = outputs.get("loss")
    return outputs[0].float().square().mean() if loss is None else loss


def _exchange(size: int, place: torch.device) -> float:
    values = torch.zeros(size // 4, device=place)
    return _median(lambda: distributed.all_reduce(values), place)


def _median(run: Callable[[], Any], place: torch.device) -> float:
    seconds = []
    for repeat in range(1 + EXCHANGES):
        distributed.barrier()
        start = _now(place)
        run()
        if repeat:
            seconds.append(_now(place) - start)
    return statistics.median(seconds)


def _now(place: torch.device) -> float:
    if place.type != "cpu":
        torch.accelerator.synchronize(place)
    return time.perf_counter()

"""Size, latency, throughput and memory of a model, as measured on this machine.

MB are 1e6 bytes throughout. `python -m hf_efficient.measure FOLDER BATCH [DEVICE]` prints the peak memory of a fresh
process as JSON; `peak_memory_mb` runs it.
"""

import contextlib
import importlib.metadata
import json
import math
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Protocol, Self

import psutil
import torch
from torch import nn
from transformers.utils import find_labels

from hf_efficient.errors import ConfigError, unknown

MB = 1_000_000

LATENCY_RUNS = 30
"""Single examples that one repeat of the latency measurement times, at least."""

PILOT_SECONDS = 0.2
"""Time in which each thread count shows how fast it is."""

_WEIGHTS = (".safetensors", ".bin", ".onnx", ".onnx_data", ".onnx.data", ".xml")
_NOT_WEIGHTS = ("training_args.bin", "optimizer.bin", "scheduler.bin")


class Runtime(Protocol):
    """What runs a model and can be timed: PyTorch here, other runtimes beside their exporters.

    Attributes:
        name: e.g. "PyTorch".
        version: of the runtime.
        device: e.g. "cpu" or "cuda:0"; thread counts are only compared on "cpu".
    """

    name: str
    version: str

    @property
    def device(self) -> str: ...

    def predict(self, batch: Mapping[str, Any]) -> Any:
        """Outputs for a collated batch, computed to the end when this returns; labels in it are not used."""

    def set_threads(self, threads: int) -> None:
        """Compute with this many CPU threads from now on."""


class TorchRuntime:
    """A PyTorch model, wherever it is.

    A model that wants decoder inputs gets them from the labels: one teacher-forced pass, not generation.
    """

    name = "PyTorch"
    version = str(torch.__version__)

    def __init__(self, model: nn.Module):
        self.model = model
        self._labels = {"labels", *find_labels(type(model))}

    @property
    def device(self) -> str:
        return str(next((tensor.device for tensor in self.model.parameters()), "cpu"))

    def set_threads(self, threads: int) -> None:
        torch.set_num_threads(threads)

    def predict(self, batch: Mapping[str, Any]) -> Any:
        if self.model.training:
            with evaluating(self.model):
                return self.predict(batch)
        device = torch.device(self.device)
        with torch.inference_mode():
            moved = {key: value.to(device) if hasattr(value, "to") else value for key, value in batch.items()}
            outputs = self.model(**self._inputs(moved))
        accelerator = torch.accelerator.current_accelerator()
        if accelerator is not None and accelerator.type == device.type:
            torch.accelerator.synchronize(device)
        return outputs

    def _inputs(self, batch: dict[str, Any]) -> dict[str, Any]:
        inputs = {key: value for key, value in batch.items() if key not in self._labels}
        shift = getattr(self.model, "prepare_decoder_input_ids_from_labels", None)
        if shift is not None and "labels" in batch and "decoder_input_ids" not in batch:
            inputs["decoder_input_ids"] = shift(batch["labels"])
        return inputs


@dataclass(frozen=True, kw_only=True)
class Timing:
    """How fast a runtime computes a model on this machine. All values are plain.

    Attributes:
        latency_ms: {"p50", "p95"} of single examples, batching done beforehand.
        throughput: examples per second at ``batch_size``; median over the repeats.
        latency_with_preprocessing_ms, throughput_with_preprocessing: the same from raw examples on.
        threads: {"latency", "throughput"}: the count that was fastest for each.
        repeats: {"latency", "throughput"}: how often each was made; a latency repeat is `LATENCY_RUNS` examples, a
            throughput repeat is ``examples`` examples, or fewer whole batches where the time was short.
        examples: real examples, of which every repeat takes the next ones.
        input_lengths: {"mean", "p50", "max"} tokens of the examples; None where the inputs are not tokens.
        machine: see `machine`.
    """

    latency_ms: dict[str, float]
    throughput: float
    batch_size: int
    threads: dict[str, int]
    repeats: dict[str, int]
    examples: int
    input_lengths: dict[str, float] | None
    runtime: str
    runtime_version: str
    device: str
    machine: dict[str, Any]
    latency_with_preprocessing_ms: dict[str, float] | None = None
    throughput_with_preprocessing: float | None = None

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Rebuild what `to_dict` gave.

        Raises:
            ConfigError: a field too many or too few.
        """
        allowed = {field.name: field.default is MISSING for field in fields(cls)}
        for name in values:
            if name not in allowed:
                raise ConfigError(unknown(f"{cls.__name__} field", name, allowed))
        missing = [name for name, required in allowed.items() if required and name not in values]
        if missing:
            raise ConfigError(f"{cls.__name__} lacks the fields {', '.join(missing)}; measure again")
        return cls(**values)


@dataclass(frozen=True, kw_only=True)
class Measurement(Timing):
    """A model's size and speed.

    Attributes:
        parameters: shared ones counted once.
        nonzero_parameters: those that are not exactly zero.
        bytes_on_disk: weight files of the saved model, or `state_bytes` of a model that was not saved.
        peak_memory_mb: see the function of that name; None when not measured.
    """

    parameters: int
    nonzero_parameters: int
    bytes_on_disk: int
    peak_memory_mb: dict[str, float] | None = None

    @classmethod
    def of(
        cls,
        timing: Timing,
        model: nn.Module,
        folder: str | Path | None = None,
        peak_memory_mb: dict[str, float] | None = None,
    ) -> Self:
        """``timing`` with the size of ``model``, which is saved in ``folder`` if that is given."""
        parameters, nonzero = count_parameters(model)
        return cls(
            **timing.to_dict(),
            parameters=parameters,
            nonzero_parameters=nonzero,
            bytes_on_disk=state_bytes(model) if folder is None else bytes_on_disk(folder),
            peak_memory_mb=peak_memory_mb,
        )


def measure(
    runtime: Runtime,
    examples: Sequence[Mapping[str, Any]],
    collate: Callable[[list[Any]], Mapping[str, Any]],
    *,
    batch_size: int = 32,
    preprocess: Callable[[list[Any]], Mapping[str, Any]] | None = None,
    raw: Sequence[Any] = (),
    repeats: int = 3,
    seconds: float = 3.0,
    warmup: int = 3,
) -> Timing:
    """Time ``runtime`` on real examples, each thread count's best foot forward; alone on this machine if all ask.

    Args:
        examples: model-ready features, in the length distribution that is to be served; their order does not matter.
        collate: from a list of features to a batch; not timed.
        batch_size: of the throughput measurement; at most as many as there are examples.
        preprocess: from a list of ``raw`` examples to a batch; timed, for the figures with preprocessing.
        raw: what ``examples`` were made from, one for one.
        repeats: at least so many; more while there is time.
        seconds: for latency, and again for throughput; each figure with preprocessing takes the same again. A slow
            model takes longer: `LATENCY_RUNS` examples and one batch per repeat are made in any case.
        warmup: untimed runs before each series.

    The caller's thread count and the model's training flags are as before afterwards; a runtime that is not PyTorch
    keeps the last thread count.

    Raises:
        ConfigError: no examples, settings out of range, or another measurement keeps the machine busy.
    """
    _check(examples, batch_size, preprocess, raw, repeats, seconds, warmup)
    lengths = [len(example["input_ids"]) for example in examples if "input_ids" in example]
    order = _mixed(lengths) if len(lengths) == len(examples) else range(len(examples))
    size = min(batch_size, len(examples))
    works = [_Work(runtime, [examples[index] for index in order], collate, False)]
    if preprocess is not None:
        works.append(_Work(runtime, [raw[index] for index in order], preprocess, True))
    threads, results = {}, {}
    with measurement_lock(), _undisturbed(runtime):
        for kind, count, series in (("latency", 1, _latency_ms), ("throughput", size, _throughput)):
            threads[kind] = _best_threads(works[0].sized(count), warmup)
            results[kind] = [series(work.sized(count), repeats, seconds, warmup) for work in works]
    latency, throughput = results["latency"], results["throughput"]
    return Timing(
        latency_ms=latency[0][0],
        throughput=throughput[0][0],
        batch_size=size,
        threads=threads,
        repeats={kind: result[0][1] for kind, result in results.items()},
        examples=len(examples),
        input_lengths=_summary(lengths),
        runtime=runtime.name,
        runtime_version=runtime.version,
        device=runtime.device,
        machine=machine(),
        latency_with_preprocessing_ms=latency[1][0] if preprocess else None,
        throughput_with_preprocessing=throughput[1][0] if preprocess else None,
    )


def _check(examples: Any, batch_size: int, preprocess: Any, raw: Any, repeats: int, seconds: float, warm: int) -> None:
    if not len(examples):
        raise ConfigError("measure got no examples; pass some real ones, best a few hundred")
    for name, value, least in (("batch_size", batch_size, 1), ("repeats", repeats, 1), ("warmup", warm, 0)):
        if value < least:
            raise ConfigError(f"measure: {name} must be at least {least}, got {value}")
    if not seconds >= 0:
        raise ConfigError(f"measure: seconds must not be negative, got {seconds}")
    if len(raw) != (len(examples) if preprocess else 0):
        raise ConfigError(
            f"measure got {len(examples)} examples and {len(raw)} raw ones with preprocess={preprocess}; "
            "pass one raw example for each, or neither raw nor preprocess"
        )


def _mixed(lengths: Sequence[int]) -> list[int]:
    """Indices so ordered that any stretch of them has nearly the length distribution of all.

    Fast and slow models get different numbers of runs in the same time; this way they see the same mix. Steps of the
    golden ratio around a circle spread evenly, however many are taken.
    """
    count = len(lengths)
    by_length = sorted(range(count), key=lengths.__getitem__)
    points = [(step * (math.sqrt(5) - 1) / 2) % 1 for step in range(count)]
    order = [0] * count
    for rank, step in enumerate(sorted(range(count), key=points.__getitem__)):
        order[step] = by_length[rank]
    return order


def _summary(lengths: list[int]) -> dict[str, float] | None:
    if not lengths:
        return None
    return {"mean": statistics.fmean(lengths), "p50": statistics.median(lengths), "max": max(lengths)}


@dataclass
class _Work:
    """An endless supply of batches for one runtime, each taking up where the last ended."""

    runtime: Runtime
    items: list[Any]
    prepare: Callable[[list[Any]], Mapping[str, Any]]
    prepare_is_timed: bool
    size: int = 1
    position: int = 0

    def sized(self, size: int) -> "_Work":
        return replace(self, size=size, position=0)

    def run(self) -> tuple[float, int]:
        """Seconds and number of examples of the next batch; the last one before the start again may be smaller."""
        items = self.items[self.position : self.position + self.size]
        self.position = (self.position + self.size) if self.position + self.size < len(self.items) else 0
        start = time.perf_counter()
        batch = self.prepare(items)
        if not self.prepare_is_timed:
            start = time.perf_counter()
        self.runtime.predict(batch)
        return time.perf_counter() - start, len(items)

    def warm(self, runs: int) -> None:
        deadline = time.perf_counter() + PILOT_SECONDS
        for _ in range(runs):
            self.run()
            if time.perf_counter() > deadline:
                return


def _repeated(once: Callable[[], Any], least: int, seconds: float) -> list[Any]:
    start, results = time.perf_counter(), []
    while len(results) < least or time.perf_counter() - start < seconds:
        results.append(once())
    return results


def _latency_ms(work: _Work, repeats: int, seconds: float, warmup: int) -> tuple[dict[str, float], int]:
    work.warm(warmup)
    made = _repeated(lambda: [work.run()[0] * 1000 for _ in range(LATENCY_RUNS)], repeats, seconds)
    p5_to_p95 = statistics.quantiles([run for repeat in made for run in repeat], n=20, method="inclusive")
    return {"p50": p5_to_p95[9], "p95": p5_to_p95[18]}, len(made)


def _throughput(work: _Work, repeats: int, seconds: float, warmup: int) -> tuple[float, int]:
    work.warm(warmup)
    all_batches = math.ceil(len(work.items) / work.size)
    affordable = int(seconds / repeats / work.run()[0])
    batches = min(all_batches, max(1, affordable))

    def rate() -> float:
        times, counts = zip(*(work.run() for _ in range(batches)), strict=True)
        return sum(counts) / sum(times)

    rates = _repeated(rate, repeats, seconds)
    return statistics.median(rates), len(rates)


def _best_threads(work: _Work, warmup: int) -> int:
    """Set and return the fastest thread count; on an accelerator the caller's own."""
    if work.runtime.device != "cpu":
        return torch.get_num_threads()

    def pilot(threads: int) -> float:
        work.runtime.set_threads(threads)
        work.position = 0  # every candidate gets the same examples
        work.warm(warmup)
        return statistics.median(run / count for run, count in _repeated(work.run, 2, PILOT_SECONDS))

    best = min(_thread_candidates(), key=pilot)
    work.runtime.set_threads(best)
    return best


def _thread_candidates() -> list[int]:
    logical = os.cpu_count() or 1
    available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else logical
    cores = min(psutil.cpu_count(logical=False) or logical, available)
    return sorted({1, max(1, cores // 2), cores})


@contextlib.contextmanager
def _undisturbed(runtime: Runtime) -> Iterator[None]:
    threads = torch.get_num_threads()
    with evaluating(runtime.model) if isinstance(runtime, TorchRuntime) else contextlib.nullcontext():
        try:
            yield
        finally:
            torch.set_num_threads(threads)


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """``model`` in eval mode; each module's own training flag comes back afterwards."""
    flags = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, flag in flags:
            module.training = flag


def count_parameters(model: nn.Module) -> tuple[int, int]:
    """Number of parameters, and of those that are not zero; shared ones count once."""
    parameters = list(model.parameters())
    return sum(p.numel() for p in parameters), sum(int(torch.count_nonzero(p)) for p in parameters)


def bytes_on_disk(folder: str | Path) -> int:
    """Bytes of the weight files directly in ``folder``: safetensors, PyTorch, ONNX and OpenVINO.

    Raises:
        ConfigError: there are none.
    """
    files = [
        path
        for path in Path(folder).glob("*")
        if path.name.endswith(_WEIGHTS) and path.name not in _NOT_WEIGHTS and path.is_file()
    ]
    if not files:
        raise ConfigError(f"no weight files (*{', *'.join(_WEIGHTS)}) in {folder}; save the model there first")
    return sum(path.stat().st_size for path in files)


def state_bytes(model: nn.Module) -> int:
    """Bytes that the tensors of ``model`` take in a safetensors file, without its header; shared ones count once."""
    tensors = {(t.device, t.data_ptr(), t.dtype, t.shape, t.stride()): t for t in model.state_dict().values()}
    return sum(tensor.nbytes for tensor in tensors.values())

"""Size, latency, throughput and memory of a model, as measured on this machine.

MB are 1e6 bytes throughout. `python -m hf_efficient.measure FOLDER BATCH [DEVICE]` is the fresh process that
`peak_memory_mb` starts.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Self

import psutil
import torch
from torch import nn

from hf_efficient.errors import ConfigError, unknown
from hf_efficient.functional.batching import spread
from hf_efficient.machine import MB, PeakMemory, machine, measurement_lock
from hf_efficient.pretrained import class_of
from hf_efficient.timing import (
    Runtime,
    TorchRuntime,
    Work,
    best_threads,
    latency_ms,
    throughput,
    undisturbed,
)

__all__ = [
    "Measurement",
    "PeakMemory",
    "Runtime",
    "Timing",
    "TorchRuntime",
    "bytes_on_disk",
    "count_parameters",
    "machine",
    "measure",
    "measurement_lock",
    "peak_memory_mb",
    "state_bytes",
]

_WEIGHTS = (".safetensors", ".bin", ".onnx", ".onnx_data", ".onnx.data", ".xml")
_NOT_WEIGHTS = ("training_args.bin", "optimizer.bin", "scheduler.bin")
_TIMED = ("latency_ms", "throughput", "latency_with_preprocessing_ms", "throughput_with_preprocessing")


@dataclass(frozen=True, kw_only=True)
class Timing:
    """How fast a runtime computes a model on this machine. All values are plain.

    Attributes:
        latency_ms: {"p50", "p95"} of single examples, collated beforehand.
        throughput: examples per second at ``batch_size``, collated beforehand; median over the repeats.
        latency_with_preprocessing_ms, throughput_with_preprocessing: the same from raw examples on.
        threads: {"latency", "throughput"}: the CPU thread count that was fastest for each.
        repeats: {"latency", "throughput"}: how often each was repeated. A repeat times `timing.LATENCY_RUNS` single
            examples, or all ``examples`` in batches; fewer whole batches where time is short.
        examples: real examples that were there to be timed.
        input_lengths: {"mean", "p50", "max"} tokens of the examples; None where the inputs are not tokens.
        device: where the runtime computed, e.g. "cpu".
        machine: see `machine`.
        new_tokens: mean number of tokens of an answer, where the runtime generates them; else None.
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
    new_tokens: float | None = None

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def of_turns(cls, turns: "Sequence[Timing]") -> "Timing":
        """Medians of what was timed several times with other things in between; the rest as in the first turn."""

        def median(name: str) -> Any:
            values = [getattr(turn, name) for turn in turns]
            if isinstance(values[0], dict):
                return {key: statistics.median(value[key] for value in values) for key in values[0]}
            return None if values[0] is None else statistics.median(values)

        repeats = {key: sum(turn.repeats[key] for turn in turns) for key in turns[0].repeats}
        return replace(turns[0], repeats=repeats, **{name: median(name) for name in _TIMED})

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Rebuild what `to_dict` gave.

        Raises:
            ConfigError: a field too many or too few.
        """
        required = {field.name: field.default is MISSING for field in fields(cls)}
        for name in values:
            if name not in required:
                raise ConfigError(unknown(f"{cls.__name__} field", name, required))
        missing = [name for name in required if required[name] and name not in values]
        if missing:
            raise ConfigError(f"{cls.__name__} lacks {', '.join(missing)}; measure again to get them")
        return cls(**values)


@dataclass(frozen=True, kw_only=True)
class Measurement(Timing):
    """A model's size and speed.

    Attributes:
        parameters: shared ones counted once; None where the format does not tell, as for an exported model.
        nonzero_parameters: those that are not exactly zero; None as above.
        bytes_on_disk: weight files of the saved model; of a model that was not saved, `state_bytes`.
        peak_memory_mb: see the function of that name; None when not measured.
    """

    parameters: int | None
    nonzero_parameters: int | None
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
    """Time ``runtime`` on real examples, with its best thread count, while no other measurement runs here.

    Args:
        examples: model-ready features in the length distribution that is to be served; their order does not matter.
        collate: from a list of features to a batch; not timed.
        batch_size: of the throughput measurement; at most the number of examples is used.
        preprocess: from a list of ``raw`` examples to a batch; timed, for the figures with preprocessing.
        raw: what ``examples`` were made from, one for one.
        repeats: made at least; more while there is time.
        seconds: for latency, and again for throughput; figures with preprocessing take as long again. The stated
            repeats of at least one batch, or `timing.LATENCY_RUNS` single examples, are made however long they take.
        warmup: untimed runs before each series.

    PyTorch's thread count and the model's training flags are as before afterwards; another runtime keeps the thread
    count that was best for throughput.

    Raises:
        ConfigError: no examples, settings out of range, or another measurement keeps the machine busy.
    """
    _check(examples, batch_size, preprocess, raw, repeats, seconds, warmup)
    lengths = _lengths(examples)
    order = _order(examples, lengths)
    size = min(batch_size, len(examples))
    works = [Work(runtime, [examples[index] for index in order], collate, prepare_is_timed=False)]
    if preprocess is not None:
        works.append(Work(runtime, [raw[index] for index in order], preprocess, prepare_is_timed=True))

    with measurement_lock(), undisturbed(runtime):
        latency_threads, latency_repeats, latencies = _series(works, latency_ms, 1, repeats, seconds, warmup)
        throughput_threads, throughput_repeats, throughputs = _series(works, throughput, size, repeats, seconds, warmup)
    return Timing(
        latency_ms=latencies[0],
        latency_with_preprocessing_ms=latencies[1],
        throughput=throughputs[0],
        throughput_with_preprocessing=throughputs[1],
        batch_size=size,
        threads={"latency": latency_threads, "throughput": throughput_threads},
        repeats={"latency": latency_repeats, "throughput": throughput_repeats},
        examples=len(examples),
        input_lengths=_summary(lengths),
        runtime=runtime.name,
        runtime_version=runtime.version,
        device=runtime.device,
        machine=machine(),
        new_tokens=getattr(runtime, "new_tokens", None),
    )


def measure_speed(
    name: str,
    runtime: Runtime,
    examples: Sequence[Mapping[str, Any]],
    collate: Callable[[list[Any]], Mapping[str, Any]],
    *,
    batch_size: int = 32,
    repeats: int = 3,
    seconds: float = 3.0,
    warmup: int = 3,
) -> float:
    """One figure of `measure`, in the time that it takes: ``latency_ms`` (median of single examples) or ``throughput``.

    Raises:
        ConfigError: as for `measure`.
    """
    _check(examples, batch_size, None, (), repeats, seconds, warmup)
    order = _order(examples, _lengths(examples))
    works = [Work(runtime, [examples[index] for index in order], collate, prepare_is_timed=False)]
    with measurement_lock(), undisturbed(runtime):
        if name == "latency_ms":
            return _series(works, latency_ms, 1, repeats, seconds, warmup)[2][0]["p50"]
        return _series(works, throughput, min(batch_size, len(examples)), repeats, seconds, warmup)[2][0]


def _series(
    works: Sequence[Work], timed: Callable[..., Any], count: int, repeats: int, seconds: float, warmup: int
) -> tuple[int, int, list[Any]]:
    """Best thread count, repeats made, and the figure of each of ``works``, None behind them, by ``count`` examples."""
    threads = best_threads(works[0].sized(count), warmup)
    results: list[tuple[Any, int]] = []
    for work in works:
        work = work.sized(count)
        work.warm(warmup)
        results.append(timed(work, repeats, seconds))
    figures = [figure for figure, _ in results]
    return threads, results[0][1], [*figures, None]


def _lengths(examples: Sequence[Mapping[str, Any]]) -> list[int]:
    """In tokens, of those that have any."""
    return [len(example["input_ids"]) for example in examples if "input_ids" in example]


def _order(examples: Sequence[Any], lengths: Sequence[int]) -> list[int]:
    return _mixed(lengths) if len(lengths) == len(examples) else list(range(len(examples)))


def _check(
    examples: Any, batch_size: int, preprocess: Any, raw: Any, repeats: int, seconds: float, warmup: int
) -> None:
    if len(examples) == 0:
        raise ConfigError("measure got no examples; pass real ones, best a few hundred")
    for name, value, least in (("batch_size", batch_size, 1), ("repeats", repeats, 1), ("warmup", warmup, 0)):
        if value < least:
            raise ConfigError(f"measure: {name} must be at least {least}, got {value}")
    if not seconds >= 0:
        raise ConfigError(f"measure: seconds must be 0 or more, got {seconds}")
    if len(raw) != (0 if preprocess is None else len(examples)):
        raise ConfigError(
            f"measure got {len(examples)} examples, {len(raw)} raw ones and preprocess={preprocess}; "
            "pass one raw example for each together with preprocess, or neither"
        )


def _mixed(lengths: Sequence[int]) -> list[int]:
    """Indices so ordered that any stretch of them has nearly the length distribution of all.

    Fast and slow models get different numbers of runs in the same time, and this way the same mix of lengths.
    """
    by_length = sorted(range(len(lengths)), key=lengths.__getitem__)
    return [by_length[rank] for rank in spread(len(lengths))]


def _summary(lengths: list[int]) -> dict[str, float] | None:
    if not lengths:
        return None
    return {"mean": statistics.fmean(lengths), "p50": statistics.median(lengths), "max": max(lengths)}


def count_parameters(model: nn.Module) -> tuple[int, int]:
    """Number of parameters, and of those that are not exactly zero; shared ones count once."""
    parameters = list(model.parameters())
    return sum(p.numel() for p in parameters), sum(int(torch.count_nonzero(p)) for p in parameters)


def bytes_on_disk(folder: str | Path) -> int:
    """Bytes of the weight files that lie directly in ``folder``: safetensors, PyTorch, ONNX and OpenVINO.

    Raises:
        ConfigError: there are none.
    """
    found = [
        path
        for path in Path(folder).glob("*")
        if path.name.endswith(_WEIGHTS) and path.name not in _NOT_WEIGHTS and path.is_file()
    ]
    if not found:
        raise ConfigError(f"no weight files (*{', *'.join(_WEIGHTS)}) in {folder}; save the model there first")
    return sum(path.stat().st_size for path in found)


def state_bytes(model: nn.Module) -> int:
    """Bytes of ``model``'s tensors in a safetensors file, its header not counted; shared ones count once."""
    tensors = {(t.device, t.data_ptr(), t.dtype, t.shape, t.stride()): t for t in model.state_dict().values()}
    return sum(tensor.nbytes for tensor in tensors.values())


def peak_memory_mb(
    folder: str | Path, batch: Mapping[str, Any], *, device: str = "cpu", timeout_s: float = 600
) -> dict[str, float]:
    """Peak memory of a fresh process that loads the model saved in ``folder`` and predicts ``batch``, in MB.

    Weights on the CPU are mapped from the file, so that what no prediction touches, like most rows of a large embedding
    table, is not resident and not counted.

    Args:
        batch: collated model inputs.

    Returns:
        ``process``: peak resident memory; ``libraries``: its part that was there before the model was loaded (Python,
        PyTorch, transformers); ``device``, on CUDA only: what PyTorch allocated there at the peak.

    Raises:
        ConfigError: the process failed; with its last line.
    """
    with tempfile.TemporaryDirectory() as temporary:
        file = Path(temporary) / "batch.pt"
        torch.save({key: value.cpu() if hasattr(value, "cpu") else value for key, value in batch.items()}, file)
        # The child finds packages where this process does, and nothing in the folder it happens to be started from.
        search_path = os.pathsep.join(entry for entry in sys.path if entry)
        command = [sys.executable, "-P", "-m", "hf_efficient.measure", str(folder), str(file), device]
        try:
            done = subprocess.run(
                command,
                env={**os.environ, "PYTHONPATH": search_path},
                capture_output=True,
                text=True,
                timeout=timeout_s,
            )
        except subprocess.TimeoutExpired:
            raise ConfigError(
                f"measuring the peak memory of {folder} took over {timeout_s:g} s; raise timeout_s or pass a smaller "
                "batch"
            ) from None
    if done.returncode != 0:
        lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        killed = " (killed, as when memory runs out)" if done.returncode < 0 else ""
        raise ConfigError(
            f"cannot measure the peak memory of {folder} on {device}{killed}: {lines[-1]}; "
            "check that plain from_pretrained loads it and that the batch fits it"
        )
    return json.loads(done.stdout.splitlines()[-1])


def _fresh_process(folder: str, batch_file: str, device: str = "cpu") -> dict[str, float]:
    load = class_of(folder).from_pretrained  # the class is imported by this
    libraries = _peak_resident_mb()
    batch = torch.load(batch_file, weights_only=True)
    TorchRuntime(load(folder).eval().to(device)).predict(batch)
    peak = {"process": _peak_resident_mb(), "libraries": libraries}
    if torch.device(device).type == "cuda":
        peak["device"] = torch.cuda.max_memory_allocated(device) / MB
    return peak


def _peak_resident_mb() -> float:
    """Peak since this program was started.

    Not `ru_maxrss` on Linux: there it also holds the peak of the process that started this one.
    """
    if sys.platform == "linux":
        status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
        kibibytes = next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM"))
        return int(kibibytes) * 1024 / MB
    if sys.platform == "win32":
        return psutil.Process().memory_info().peak_wset / MB
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / MB  # bytes on macOS


if __name__ == "__main__":
    print(json.dumps(_fresh_process(*sys.argv[1:])))

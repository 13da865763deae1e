"""What runs a model, and series of timed runs of it. `hf_efficient.measure` puts them together."""

import contextlib
import math
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import nn
from transformers.utils import find_labels

from hf_efficient.machine import available_cores

LATENCY_RUNS = 30
"""Single examples that one repeat of the latency measurement times."""

_CPU = torch.device("cpu")
PILOT_SECONDS = 0.2
"""Time in which each thread count shows how fast it is; slow batches get more, for `PILOT_RUNS` of them."""
PILOT_RUNS, PILOT_LIMIT_SECONDS = 3, 2.0


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

    A model that takes decoder inputs gets them from the labels: one teacher-forced pass, not generation.
    """

    name = "PyTorch"
    version = str(torch.__version__)

    def __init__(self, model: nn.Module):
        self.model = model
        self._labels = {"labels", *find_labels(type(model))}

    @property
    def device(self) -> str:
        return str(next((parameter.device for parameter in self.model.parameters()), "cpu"))

    def set_threads(self, threads: int) -> None:
        torch.set_num_threads(threads)

    def predict(self, batch: Mapping[str, Any]) -> Any:
        if self.model.training:
            with evaluating(self.model):
                return self.predict(batch)
        device = torch.device(self.device)
        with torch.inference_mode():
            moved = {key: value.to(device) if hasattr(value, "to") else value for key, value in batch.items()}
            outputs = self._outputs(moved)
        accelerator = torch.accelerator.current_accelerator()
        if accelerator is not None and accelerator.type == device.type:
            torch.accelerator.synchronize(device)
        return outputs

    def _outputs(self, batch: dict[str, Any]) -> Any:
        inputs = {key: value for key, value in batch.items() if key not in self._labels}
        shift = getattr(self.model, "prepare_decoder_input_ids_from_labels", None)
        if shift is not None and "labels" in batch and "decoder_input_ids" not in batch:
            inputs["decoder_input_ids"] = shift(batch["labels"])
        return self.model(**inputs)


class GeneratingRuntime(TorchRuntime):
    """A PyTorch model that answers token by token, with `generate`.

    Attributes:
        settings: of `generate`.
        prompt_tokens: tokens before the answer in what `generate` returns; None: one of an encoder-decoder, else as
            many as the inputs.
    """

    name = "PyTorch, generating"

    def __init__(self, model: nn.Module, prompt_tokens: int | None = None, **settings: Any):
        super().__init__(model)
        self.settings, self.prompt_tokens = settings, prompt_tokens
        self._examples = self._tokens = 0

    @property
    def new_tokens(self) -> float:
        """Mean number of tokens of an answer so far."""
        return self._tokens / max(1, self._examples)

    def _outputs(self, batch: dict[str, Any]) -> Any:
        model: Any = self.model
        unused = (*self._labels, "decoder_input_ids", "decoder_attention_mask")
        outputs = model.generate(**{key: value for key, value in batch.items() if key not in unused}, **self.settings)
        start = self.prompt_tokens
        if start is None:
            start = 1 if model.config.is_encoder_decoder else batch["input_ids"].shape[1]
        padding = self.settings.get("pad_token_id", model.generation_config.pad_token_id)
        self._tokens += int((outputs[:, start:] != padding).sum())
        self._examples += len(outputs)
        return outputs


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


@contextlib.contextmanager
def undisturbed(runtime: Runtime) -> Iterator[None]:
    """Leave PyTorch's thread count and the model's training flags as they were."""
    threads = torch.get_num_threads()
    with evaluating(runtime.model) if isinstance(runtime, TorchRuntime) else contextlib.nullcontext():
        try:
            yield
        finally:
            torch.set_num_threads(threads)


@dataclass
class Work:
    """An endless supply of batches for one runtime, each taking up where the last ended."""

    runtime: Runtime
    items: list[Any]
    prepare: Callable[[list[Any]], Mapping[str, Any]]
    prepare_is_timed: bool
    size: int = 1
    position: int = 0

    def sized(self, size: int) -> "Work":
        return replace(self, size=size, position=0)

    def run(self) -> tuple[float, int]:
        """Seconds and number of examples of the next batch; the last one before the start again may be smaller."""
        items = self.items[self.position : self.position + self.size]
        self.position += self.size
        if self.position >= len(self.items):
            self.position = 0
        start = time.perf_counter()
        batch = self.prepare(items)
        if not self.prepare_is_timed:
            start = time.perf_counter()
        self.runtime.predict(batch)
        return max(time.perf_counter() - start, 1e-9), len(items)  # coarse clocks can show no time at all

    def warm(self, runs: int) -> None:
        """Up to ``runs`` untimed runs, then back to the first example."""
        deadline = time.perf_counter() + PILOT_SECONDS
        for _ in range(runs):
            self.run()
            if time.perf_counter() > deadline:
                break
        self.position = 0


def latency_ms(work: Work, repeats: int, seconds: float) -> tuple[dict[str, float], int]:
    """{"p50", "p95"} of single runs, and the number of repeats made."""
    made = _repeated(lambda: [work.run()[0] * 1000 for _ in range(LATENCY_RUNS)], repeats, seconds)
    every_5_percent = statistics.quantiles([run for repeat in made for run in repeat], n=20, method="inclusive")
    return {"p50": every_5_percent[9], "p95": every_5_percent[18]}, len(made)


def throughput(work: Work, repeats: int, seconds: float) -> tuple[float, int]:
    """Examples per second, and the number of repeats made: of all examples, or what ``seconds`` allow, in batches."""
    affordable = int(seconds / repeats / work.run()[0])
    work.position = 0
    batches = max(1, min(affordable, math.ceil(len(work.items) / work.size)))

    def rate() -> float:
        times, counts = zip(*(work.run() for _ in range(batches)), strict=True)
        return sum(counts) / sum(times)

    rates = _repeated(rate, repeats, seconds)
    return statistics.median(rates), len(rates)


def best_threads(work: Work, warmup: int) -> int:
    """Set and return the fastest thread count; on an accelerator the caller's own."""
    if work.runtime.device != "cpu":
        return torch.get_num_threads()

    def pilot(threads: int) -> float:
        work.runtime.set_threads(threads)
        work.warm(warmup)
        made = _repeated(work.run, PILOT_RUNS, PILOT_SECONDS, PILOT_LIMIT_SECONDS)
        return statistics.median(run / count for run, count in made)

    candidates = thread_candidates()
    best = min(candidates, key=pilot) if len(candidates) > 1 else candidates[0]
    work.runtime.set_threads(best)
    return best


def thread_candidates() -> list[int]:
    """One, half and all of the cores that this process may use."""
    cores = available_cores()
    return sorted({1, max(1, cores // 2), cores})


def _repeated(once: Callable[[], Any], least: int, seconds: float, limit_seconds: float = math.inf) -> list[Any]:
    """At least ``least`` results and all that fit into ``seconds``; no more than one after ``limit_seconds``."""
    start = time.perf_counter()
    results = [once()]
    while (spent := time.perf_counter() - start) < seconds or (len(results) < least and spent < limit_seconds):
        results.append(once())
    return results


def matmul_seconds(dtype: torch.dtype, rows: int, width: int, device: torch.device, repeats: int) -> float:
    """The shortest of ``repeats`` products (rows, width) x (width, width) in ``dtype``."""
    left, right = (torch.ones(count, width, dtype=dtype, device=device) for count in (rows, width))
    return shortest_seconds(lambda: torch.mm(left, right), repeats, device)


def shortest_seconds(compute: Callable[[], Any], repeats: int, device: torch.device = _CPU) -> float:
    """The shortest of ``repeats`` calls, all of whose work on ``device`` is waited for."""
    times = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        compute()
        if device.type != "cpu":
            torch.accelerator.synchronize(device)
        times.append(time.perf_counter() - start)
    return min(times[1:])  # the first call sets the kernel up

"""One way to train, tried for a few real steps."""

import contextlib
import gc
import math
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import Trainer, TrainingArguments

from hf_efficient.accounting import STEP_PARTS, Accounting, account
from hf_efficient.errors import EfficientError
from hf_efficient.machine import PeakMemory, measurement_lock
from hf_efficient.optimization import changed, from_main

WARM_UP, WARM_UP_CPU = 2, 1
"""Steps before those that count: kernels are chosen, memory is fetched, and what depends on shapes is compiled anew in
them. On a CPU the first one does for what is not compiled, and steps are long."""
OUT_OF_MEMORY = "out of memory"
CHANCE = 0.0027
"""Probability, beyond which lie three standard errors of a normal distribution."""

_QUIET = {
    "report_to": [],
    "save_strategy": "no",
    "eval_strategy": "no",
    "logging_strategy": "no",
    "load_best_model_at_end": False,
    "push_to_hub": False,
    "disable_tqdm": True,
    "autotune": False,
    "dense_epochs": 0,
    "measure_seconds": 0,
}


@dataclass(frozen=True)
class Trial:
    """What a trial found; plain values.

    Attributes:
        step_seconds: of each step that counts.
        losses: of each of these steps, summed over its micro-batches.
        steps: optimizer steps that the whole training takes.
        shares: part of a step -> share of its time.
        padding: share of the tokens in these steps' batches.
        setup_seconds: what the trial took beside the steps that count.
        memory_mb: at the peak: of the device, or of this process on a CPU.
        error: why it did not run; empty if it did.
    """

    step_seconds: list[float] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    steps: int = 0
    shares: dict[str, float] = field(default_factory=dict)
    padding: float = 0.0
    setup_seconds: float = 0.0
    memory_mb: float = 0.0
    error: str = ""

    @property
    def seconds(self) -> float:
        """What the whole training would take in steps like these."""
        return statistics.median(self.step_seconds) * self.steps

    @property
    def error_of_seconds(self) -> float:
        """Two standard errors of `seconds`."""
        if len(self.step_seconds) < 2:
            return self.seconds
        spread = statistics.stdev(self.step_seconds) / len(self.step_seconds) ** 0.5
        return 2 * 1.25 * spread * self.steps  # a median's is 1.25 times a mean's


def warm_up(args: TrainingArguments) -> int:
    """How many steps a trial makes before those that count."""
    return WARM_UP_CPU if args.device.type == "cpu" and not args.torch_compile else WARM_UP


def run_trial(build: Callable[[TrainingArguments], Trainer], args: TrainingArguments, steps: int) -> Trial:
    """Train ``steps`` steps with ``args``, after a `warm_up`, with a trainer that nothing else uses; nothing is kept.

    Args:
        build: a trainer of its own, with a model of its own.

    Returns:
        what was found, the same on all processes; where memory ran out or a combination was refused, an error.
    """
    began, threads = time.perf_counter(), torch.get_num_threads()
    try:
        with tempfile.TemporaryDirectory(prefix="hf_efficient-trial-") as folder, PeakMemory() as memory:
            quiet = {name: value for name, value in _QUIET.items() if hasattr(args, name)}
            found = _steps(build(changed(args, output_dir=str(Path(folder)), **quiet)), steps)
        took = time.perf_counter() - began - sum(found["step_seconds"])
        peak = memory.device_peak_mb if args.device.type == "cuda" else memory.peak_mb
        trial = Trial(**found, setup_seconds=took, memory_mb=peak or 0.0)
    except EfficientError as error:
        trial = Trial(error=str(error), setup_seconds=time.perf_counter() - began)
    except (torch.OutOfMemoryError, MemoryError):
        trial = Trial(error=OUT_OF_MEMORY, setup_seconds=time.perf_counter() - began)
    torch.set_num_threads(threads)  # a training that is cut short does not put them back
    gc.collect()
    if args.device.type != "cpu":
        torch.accelerator.empty_cache()
    return _agreed(trial, args)


class _EnoughError(Exception):
    """Ends a trial's training: its model is not finished, saved or evaluated."""


class _Clock(Accounting):
    """Times whole steps, and ends the training after so many.

    On an accelerator, parts of a step are waited for one after the other, which makes it slower: one step more, the
    last, is for them alone.
    """

    def __init__(self, trainer: Trainer, steps: int):
        super().__init__(trainer)
        self.seconds: list[float] = []
        self.losses: list[Any] = []
        self.warm_up = warm_up(trainer.args)
        self._left = steps + self.warm_up + self._waits
        self._step_began = time.perf_counter()
        self._total: Any = 0.0

    def loss(self, *args: Any, **kwargs: Any) -> Any:
        result = super().loss(*args, **kwargs)
        loss = result[0] if isinstance(result, tuple) else result
        self._total = self._total + loss.detach()  # not read out, which would wait for the device
        return result

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        super().on_train_begin(args, state, control, **kwargs)
        self._step_began = self._began

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        super().on_step_end(args, state, control, **kwargs)
        self._left -= 1
        if self._left or not self._waits:
            self._end_step()
        if self._left == 0:
            raise _EnoughError

    def _end_step(self) -> None:
        if self._waits:
            torch.accelerator.synchronize(self.device)
        now = time.perf_counter()
        self.seconds.append(now - self._step_began)
        self.losses.append(self._total)
        self._step_began, self._total = now, 0.0
        self._sampling = not self._waits or self._left == 1
        if self._waits or len(self.seconds) == self.warm_up:
            self.restart()


def _steps(trainer: Trainer, steps: int) -> dict[str, Any]:
    clock = _Clock(trainer, steps)
    # One for all processes of this machine: they wait for each other in every step
    lock = measurement_lock() if trainer.args.local_process_index == 0 else contextlib.nullcontext()
    with lock, account(trainer, clock), contextlib.suppress(_EnoughError):
        trainer.train()
    total = sum(clock.spent[part] for part in STEP_PARTS)
    # A training of no more steps than the warm-up has no others to show
    counted = slice(clock.warm_up, None) if len(clock.seconds) > clock.warm_up else slice(None)
    return {
        "step_seconds": clock.seconds[counted],
        "losses": [float(loss) for loss in clock.losses[counted]],
        "steps": trainer.state.max_steps,
        "shares": {part: clock.spent[part] / total for part in STEP_PARTS} if total else {},
        "padding": clock.padding,
    }


def _agreed(trial: Trial, args: TrainingArguments) -> Trial:
    """The main process's, so that all decide alike; an error that any process had."""
    if args.world_size == 1:
        return trial
    from accelerate.utils import gather_object

    errors = [error for error in gather_object([trial.error]) if error]
    main = from_main(trial, args)
    return Trial(error=errors[0], setup_seconds=main.setup_seconds) if errors else main


def mean_loss_within(trial: Trial, reference: Trial) -> bool:
    """Whether the loss of ``trial`` is finite, and is what ``reference`` has in the same steps but for chance.

    Later steps of one of them do not count: models learn, so losses fall. Their batches may differ, and dropout does:
    so 5 % are allowed, or what Welch's t-test for so few steps takes for chance (`CHANCE`).
    """
    from scipy.stats import ttest_ind_from_stats

    if not all(map(math.isfinite, trial.losses)):
        return False
    common = min(len(trial.losses), len(reference.losses))
    own, others = trial.losses[:common], reference.losses[:common]
    means = statistics.fmean(own), statistics.fmean(others)
    if abs(means[0] - means[1]) <= 0.05 * abs(means[1]):
        return True
    spreads = [statistics.stdev(losses) if common > 1 else 0.0 for losses in (own, others)]
    if not any(spreads):
        return False
    tested = ttest_ind_from_stats(means[0], spreads[0], common, means[1], spreads[1], common, equal_var=False)
    return bool(tested.pvalue >= CHANCE)


def plain(trial: Trial) -> Mapping[str, Any]:
    """For a table or JSON: what of it a reader asks for."""
    if trial.error:
        return {"error": trial.error}
    return {
        "step_ms": 1e3 * statistics.median(trial.step_seconds),
        "seconds": trial.seconds,
        "seconds_error": trial.error_of_seconds,
        "loss": statistics.fmean(trial.losses),
        "memory_mb": trial.memory_mb,
        "steps_timed": len(trial.step_seconds),
    }

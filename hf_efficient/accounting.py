"""What a training did with its time: examples and tokens a second, shares of its parts, share of the machine's peak."""

import contextlib
import functools
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, cast

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count
from transformers import Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_utils import TrainOutput

from hf_efficient.energy import EnergyMeter
from hf_efficient.machine import measurement_lock
from hf_efficient.timing import matmul_seconds

logger = logging.getLogger(__name__)

DATA, FORWARD, BACKWARD, OPTIMIZER = "waiting for data", "forward", "backward", "optimizer"
EVALUATION, SAVING, REST = "evaluation", "saving", "rest"
STEP_PARTS = (DATA, FORWARD, BACKWARD, OPTIMIZER, REST)
PARTS = (*STEP_PARTS, EVALUATION, SAVING)
"""waiting for data: until a batch lies on the device. forward: with the loss. backward: with clipping. rest: what
stands between steps, such as logging and the optimizations' own work."""

SAMPLED = 16
"""On an accelerator one step in so many is timed by parts: it has to be waited for."""
PEAK_SIZE = {"cpu": 1024}
"""Rows and columns of the matrices whose multiplication shows the peak; 8192 on accelerators."""
PEAK_REPEATS = 5
SIZES = 8
"""Sizes of images that are told apart, so that few batches are kept; others count with the first of them."""
_ATTENTION = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: lambda query, key, value, *_, **__: sdpa_flop_count(
        query, key, value
    ),
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: (
        lambda gradient, query, key, value, *_, **__: sdpa_backward_flop_count(gradient, query, key, value)
    ),
}
"""What torch's counter (2.13) leaves out: shapes of the arguments -> operations."""
STARVED = 0.1
"""Share of the time spent waiting for data from which on the report says so."""


def _marks(part: str) -> Any:
    """The method of a callback for an event before which time was spent on ``part``."""

    def event(self: "Accounting", args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._mark(part)

    return event


def is_asynchronous(device: torch.device) -> bool:
    """Whether what ``device`` computes has to be waited for before a clock is read."""
    return device.type != "cpu"


class Accounting(TrainerCallback):
    """Clocks the parts of one `train()` and counts what goes through its model; see `account`."""

    def __init__(self, trainer: Trainer):
        self.trainer, self.args, self.device = trainer, trainer.args, trainer.args.device
        self.batches: dict[tuple[int, ...], tuple[dict[str, Any], int]] = {}
        """Size of images, empty where inputs are tokens -> the last batch of such, and how many examples there were."""
        self.joules: float | None = None
        self._waits = is_asynchronous(self.device)
        self._sampling = True
        self._seconds = 0.0
        self.restart()

    def restart(self) -> None:
        """Count from now on."""
        self.spent = dict.fromkeys(PARTS, 0.0)
        self.batches = {}
        self.examples, self.padded, self.real = 0, 0, torch.zeros((), dtype=torch.long, device=self.device)
        self._since = self._began = time.perf_counter()

    @property
    def padding(self) -> float:
        """Share of the tokens so far; 0 where inputs are none."""
        return 1 - int(self.real) / self.padded if self.padded else 0.0

    def loss(self, compute_loss: Callable[..., Any], model: nn.Module, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        """``compute_loss(model, inputs, ...)``, clocked and counted where the model trains."""
        if not model.training:
            return compute_loss(model, inputs, *args, **kwargs)
        self._mark(DATA)
        self._count(inputs)
        result = compute_loss(model, inputs, *args, **kwargs)
        self._mark(FORWARD)
        return result

    def _count(self, inputs: Mapping[str, Any]) -> None:
        rows, tokens, mask = _rows(inputs), inputs.get("input_ids"), inputs.get("attention_mask")
        images = None if isinstance(tokens, torch.Tensor) else inputs.get("pixel_values")
        size = tuple(images.shape[2:]) if isinstance(images, torch.Tensor) else ()
        if size not in self.batches and len(self.batches) == SIZES:
            size = next(iter(self.batches))
        self.batches[size] = dict(inputs), rows + self.batches.get(size, ({}, 0))[1]
        self.examples += rows
        if isinstance(tokens, torch.Tensor):
            self.padded += tokens.numel()
            # Not read out, which would wait for the device
            self.real += mask.sum() if isinstance(mask, torch.Tensor) else tokens.numel()

    def _mark(self, part: str) -> None:
        """The time since the last mark was spent on ``part``."""
        if self._waits and (self._sampling or part not in STEP_PARTS):
            torch.accelerator.synchronize(self.device)
        now = time.perf_counter()
        if self._sampling or part not in STEP_PARTS:
            self.spent[part] += now - self._since
        self._since = now

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._meter = EnergyMeter()
        self.restart()

    on_step_begin = _marks(DATA)
    on_substep_end = on_pre_optimizer_step = _marks(BACKWARD)
    on_optimizer_step = _marks(OPTIMIZER)
    on_log = _marks(REST)
    on_evaluate = _marks(EVALUATION)
    on_save = _marks(SAVING)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._mark(REST)
        self._sampling = not self._waits or state.global_step % SAMPLED == 0

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._mark(REST)
        self._seconds = time.perf_counter() - self._began
        self.joules = self._meter.joules()

    def shares(self) -> dict[str, float]:
        """Part -> share of the training's time; they add up to 1. Empty where nothing was trained."""
        steps = sum(self.spent[part] for part in STEP_PARTS)
        outside = self.spent[EVALUATION] + self.spent[SAVING]
        if not steps or not self._seconds:
            return {}
        scale = (self._seconds - outside) / steps
        seconds = {part: spent * (scale if part in STEP_PARTS else 1) for part, spent in self.spent.items()}
        return {part: spent / self._seconds for part, spent in seconds.items()}

    def figures(self, measure: bool = True) -> dict[str, Any]:
        """Plain figures for logs and report; empty where nothing was trained.

        Args:
            measure: count the model's arithmetic on the last batch, and measure the peak of the machine, which takes
                about a second. Not where processes have parts of the weights.

        Returns:
            examples_per_second and, of texts, tokens_per_second (real ones) and padding_share, evaluations and saving
            not counted in; other processes are taken to be like this one. time: the `shares`. With ``measure``,
            tflops: 1e12 operations a second in forward and backward passes of this process, without those on padding,
            which are of no use; and mfu: their share of what a multiplication of large matrices reaches in the same
            number type (Chowdhery et al. 2022, arXiv 2204.02311). energy_kj where the machine counts energy.
        """
        shares = self.shares()
        if not shares:
            return {}
        trained = self._seconds * (1 - shares[EVALUATION] - shares[SAVING]) / self.args.world_size
        told: dict[str, Any] = {"examples_per_second": self.examples / trained}
        if self.padded:
            told.update(tokens_per_second=int(self.real) / trained, padding_share=self.padding)
        told["time"] = {part: round(share, 4) for part, share in shares.items()}
        if measure and not (self.trainer.is_fsdp_enabled or self.trainer.is_deepspeed_enabled):
            told.update(self._achieved(self._seconds * (shares[FORWARD] + shares[BACKWARD])))
        if self.joules is not None:
            told["energy_kj"] = self.joules / 1e3
        return told

    def _achieved(self, seconds: float) -> dict[str, float]:
        model = cast(nn.Module, self.trainer.model)
        try:
            operations = self._operations(model)
        except Exception as error:  # a finished training is worth more than its figures
            logger.warning("the model's operations could not be counted (%s: %s)", type(error).__name__, error)
            return {}
        rate = operations / seconds
        return {"tflops": rate / 1e12, "mfu": rate / peak(self.device, _dtype(self.args, model))}

    def _operations(self, model: nn.Module) -> float:
        """Floating-point operations on all but padding, forward and backward, going by those of `batches`."""
        devices = [] if self.device.type == "cpu" else [self.device]
        parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        operations = 0.0
        for batch, examples in self.batches.values():
            with torch.random.fork_rng(devices), FlopCounterMode(display=False, custom_mapping=_ATTENTION) as counter:
                torch.autograd.grad(model(**batch)["loss"], parameters, allow_unused=True)
            tokens = batch.get("input_ids")
            times = int(self.real) / tokens.numel() if isinstance(tokens, torch.Tensor) else examples / _rows(batch)
            operations += counter.get_total_flops() * times
        return operations


def _rows(batch: Mapping[str, Any]) -> int:
    return next((len(value) for value in batch.values() if isinstance(value, torch.Tensor) and value.dim()), 0)


def _dtype(args: TrainingArguments, model: nn.Module) -> torch.dtype:
    """In which matrices are multiplied: that of mixed precision, else of the weights."""
    return torch.bfloat16 if args.bf16 else torch.float16 if args.fp16 else next(model.parameters()).dtype


@functools.cache
def peak(device: torch.device, dtype: torch.dtype) -> float:
    """Floating-point operations a second in the multiplication of two large square matrices: the best of a few."""
    size = PEAK_SIZE.get(device.type, 8192)
    with measurement_lock():
        return 2 * size**3 / matmul_seconds(dtype, size, size, device, PEAK_REPEATS)


def training_figures(output: TrainOutput, accounted: Mapping[str, Any]) -> dict[str, Any]:
    """What a training cost and did, from what `train()` returned and `Accounting.figures`, for the report."""
    names = {"seconds": "train_runtime", "epochs": "epoch"}  # a subclass's own `log` may leave the latter out
    return {name: output.metrics[key] for name, key in names.items() if key in output.metrics} | dict(accounted)


def as_metrics(figures: Mapping[str, Any]) -> dict[str, float]:
    """`Accounting.figures` as stock `train()` names metrics."""
    shares = {f"train_share_{part.replace(' ', '_')}": share for part, share in figures.get("time", {}).items()}
    return {**{f"train_{name}": value for name, value in figures.items() if name != "time"}, **shares}


def starved(phases: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Notes on the trainings that waited for data long, given the `Accounting.figures` of each."""
    shares = {name: figures.get("time", {}).get(DATA, 0) for name, figures in phases.items()}
    return [
        f"The training '{name}' was waiting for data {share:.0%} of its time: more dataloader_num_workers, or examples "
        "that are encoded beforehand, would help."
        for name, share in shares.items()
        if share >= STARVED
    ]


@contextlib.contextmanager
def account(trainer: Any, accounting: Accounting | None = None) -> Iterator[Accounting]:
    """Account for the one `train()` of ``trainer`` that is called inside; it computes what it would without.

    The trainer keeps it as ``accounts``.

    Args:
        accounting: to do it with, in place of a plain one.
    """
    accounting, before = accounting or Accounting(trainer), vars(trainer).get("compute_loss")
    trainer.accounts = accounting
    trainer.compute_loss = functools.partial(accounting.loss, trainer.compute_loss)
    trainer.add_callback(accounting)
    try:
        yield accounting
    finally:
        trainer.remove_callback(accounting)
        vars(trainer).pop("compute_loss", None)
        if before is not None:
            trainer.compute_loss = before

"""What the processes of a training send each other: less than all gradients of every step, where the link is slow."""

import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, cast

import torch
from accelerate.utils import DDPCommunicationHookType, DistributedDataParallelKwargs, DistributedType
from pydantic import ConfigDict
from torch import nn
from transformers import Trainer, TrainingArguments

from hf_efficient.errors import ConfigError, NoEffectWarning
from hf_efficient.optimization import Optimization
from hf_efficient.settings import parse

if TYPE_CHECKING:
    _Base = Trainer
else:
    _Base = object

EXACT, POWER_SGD = "exact", "power_sgd"
AVERAGED_AT_ONCE = 25e6
"""Bytes."""


@dataclass(kw_only=True)
class Communication:
    """Settings of `args.communication`, for processes with a whole model each (DDP)."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    gradients: Literal["exact", "fp16", "bf16", "power_sgd"] = "exact"
    """As what they are sent: as they are, in 16 bits, or matrices as products of two thin ones, what that loses being
    added to the next step's (PowerSGD, Vogels et al. 2019, arXiv 1905.13727)."""
    rank: int = 4
    """Columns of the thin matrices."""
    start: float = 0.1
    """From which part of the training on power_sgd takes hold, from 0 to 1: early gradients change fast."""
    local_steps: int = 1
    """After so many steps, each of a process by itself, weights are averaged (local SGD, Stich 2018, arXiv 1805.09767);
    1: gradients are, in each step."""

    def __post_init__(self) -> None:
        for name in ("rank", "local_steps"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not 0 <= self.start <= 1:
            raise ConfigError(f"start must be from 0 to 1, got {self.start:g}")
        if self.local_steps > 1 and self.gradients != EXACT:
            raise ConfigError(f"with local_steps={self.local_steps} no gradients are sent; drop gradients, or that")

    def check(self, args: TrainingArguments, is_whole: bool, optimizations: Iterable[Optimization]) -> None:
        """
        Args:
            is_whole: whether each process has all of the model.

        Raises:
            ConfigError: parts of weights on each process, or something else that does not go with it.
        """
        if args.world_size == 1:
            warnings.warn("communication: one process has nobody to send anything to", NoEffectWarning, 2)
            return
        if not is_whole:
            raise ConfigError("communication is for whole models on each process; drop it, or what shares weights out")
        if self.local_steps == 1 and self.gradients == EXACT:
            warnings.warn("communication: exact gradients of each step are sent without it, too", NoEffectWarning, 2)
        guarded = getattr(args, "max_skipped_steps", None) is not None
        if self.gradients == POWER_SGD:
            self._check_power_sgd(args, guarded)
        if self.local_steps > 1:
            if guarded:
                raise ConfigError("max_skipped_steps needs processes that take the same steps; drop it, or local_steps")
            for one in optimizations:
                if needs := one.whole_weights():
                    raise ConfigError(
                        f"{one.name} {needs}, which differ between processes that take local_steps by themselves; drop "
                        "either"
                    )

    @staticmethod
    def _check_power_sgd(args: TrainingArguments, guarded: bool) -> None:
        """A gradient that is not finite would stay in what is kept for the next steps, for good."""
        for setting, given in (("fp16", args.fp16), ("max_skipped_steps", guarded)):
            if given:
                raise ConfigError(
                    f"{setting} leaves out steps whose gradients are not finite, but gradients: power_sgd keeps a part "
                    f"of each; drop {setting}, or take gradients: bf16"
                )
        if args.device.type == "cpu" and torch.cuda.is_available():
            raise ConfigError("gradients: power_sgd works on GPUs where there are any; drop use_cpu, or take bf16")

    def handler(self, stock: DistributedDataParallelKwargs | None, steps: int) -> DistributedDataParallelKwargs:
        """How Accelerate wraps a model, as ``stock`` has it but for what is sent.

        Args:
            steps: of the training, about.
        """
        kept = {} if stock is None else stock.to_dict()
        if self.local_steps > 1:
            return _Silent(**kept)
        if self.gradients == "bf16":
            return _InBf16(**kept)
        option = {}
        if self.gradients == POWER_SGD:
            option = {
                "matrix_approximation_rank": self.rank,
                "start_powerSGD_iter": max(2, round(self.start * steps)),  # DDP arranges its buckets anew after one
                "orthogonalization_epsilon": 1e-8,  # without, a gradient of zeros becomes NaN
            }
        hook = DDPCommunicationHookType("no" if self.gradients == EXACT else self.gradients)
        in_turn = self.gradients == POWER_SGD and not torch.cuda.is_available()
        made = _InTurn if in_turn else DistributedDataParallelKwargs
        return made(**kept, comm_hook=hook, comm_state_option=option)


class _Silent(DistributedDataParallelKwargs):
    """Gradients stay where they are, and so do buffers."""

    def register_comm_hook(self, model: Any) -> None:
        model.require_backward_grad_sync = False  # as `no_sync` does, which would have to be left again


class _InTurn(DistributedDataParallelKwargs):
    """PowerSGD, one bucket after the other: it sends from several threads, in no order that gloo's processes share."""

    def register_comm_hook(self, model: Any) -> None:
        from torch.distributed import GradBucket
        from torch.distributed.algorithms.ddp_comm_hooks.powerSGD_hook import PowerSGDState, powerSGD_hook

        def waiting(state: PowerSGDState, bucket: GradBucket) -> torch.futures.Future[torch.Tensor]:
            sent = powerSGD_hook(state, bucket)
            sent.wait()
            return sent

        model.register_comm_hook(PowerSGDState(cast(Any, None), **self.comm_state_option), waiting)


class _InBf16(DistributedDataParallelKwargs):
    """Gradients are sent in bf16, over gloo too, where PyTorch refuses a hook of this name."""

    def register_comm_hook(self, model: Any) -> None:
        from torch.distributed import GradBucket
        from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import bf16_compress_hook

        def rounded(state: Any, bucket: GradBucket) -> torch.futures.Future[torch.Tensor]:
            return bf16_compress_hook(cast(Any, None), bucket)

        model.register_comm_hook(None, rounded)


class CommunicationMixin(_Base):
    """The part of `EfficientMixin` that sends, as `args.communication` says."""

    _communication: Communication | None = None

    _met_at: int | None = None
    """Step after which weights were averaged last; None: none was taken since."""

    def set_up_communication(self, optimizations: Iterable[Optimization]) -> None:
        """
        Raises:
            ConfigError: what does not go with it.
        """
        if (given := getattr(self.args, "communication", None)) is not None:
            self._communication = parse(Communication, given, "communication")
            shares = self.accelerator.distributed_type in (DistributedType.FSDP, DistributedType.DEEPSPEED)
            shares |= getattr(self.model, "is_distributed_loading_by_transformers", False)
            self._communication.check(self.args, not shares, optimizations)

    def _wrap_model(self, model: nn.Module, training: bool = True, *args: Any, **kwargs: Any) -> nn.Module:
        if training and (settings := self._communication) is not None:
            sparse = any(isinstance(module, nn.Embedding) and module.sparse for module in model.modules())
            if settings.gradients != EXACT and sparse:
                raise ConfigError(
                    f"gradients: {settings.gradients} sends dense gradients, but embeddings of this model have sparse "
                    "ones; drop sparse_embeddings, or that"
                )
            self.accelerator.ddp_handler = settings.handler(self.accelerator.ddp_handler, self._steps())  # type: ignore[attr-defined]
            self._met_at = None
        return super()._wrap_model(model, training, *args, **kwargs)

    def _maybe_log_save_evaluate(self, *args: Any, **kwargs: Any) -> None:
        """Average first, whenever it is time or others want to see the weights."""
        settings, step = self._communication, self.state.global_step
        if settings is not None and settings.local_steps > 1 and self.args.world_size > 1:
            self._met_at = step - 1 if self._met_at is None else self._met_at
            wanted = self.control.should_save or self.control.should_evaluate or self.control.should_training_stop
            if step > self._met_at and (wanted or step - self._met_at >= settings.local_steps):
                self._average()
                self._met_at = step
        super()._maybe_log_save_evaluate(*args, **kwargs)

    @torch.no_grad()
    def _average(self) -> None:
        model = cast(nn.Module, self.model)
        learnt = [parameter for parameter in model.parameters() if parameter.requires_grad]
        counted = [buffer for buffer in model.buffers() if buffer.is_floating_point()]
        for part in _parts([*learnt, *counted]):
            flat = self.accelerator.reduce(torch.cat([tensor.flatten() for tensor in part]), "mean")
            for tensor, values in zip(part, flat.split([tensor.numel() for tensor in part]), strict=True):
                tensor.copy_(values.view_as(tensor))


def _parts(tensors: Iterable[torch.Tensor]) -> Iterator[list[torch.Tensor]]:
    """``tensors`` in runs of one type, each of about `AVERAGED_AT_ONCE`."""
    run: list[torch.Tensor] = []
    for tensor in tensors:
        full = sum(each.nbytes for each in run) >= AVERAGED_AT_ONCE
        if run and (full or run[0].dtype != tensor.dtype):
            yield run
            run = []
        run.append(tensor)
    if run:
        yield run

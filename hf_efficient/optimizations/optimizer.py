"""Optimizers that keep less state, or update faster, than 32-bit AdamW."""

import importlib.util
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from hf_efficient.errors import ConfigError, MissingDependencyError, NoEffectWarning, unknown
from hf_efficient.functional.optimizer_state import adamw_state_bytes, embedding_parameters, optimizer_state_bytes
from hf_efficient.functional.parameter_groups import combined, split_group
from hf_efficient.machine import compiler_missing
from hf_efficient.optimization import Context, Optimization, Order, changed
from hf_efficient.proposal import Observed, Proposal
from hf_efficient.settings import require_same

if TYPE_CHECKING:
    from torch import nn
    from transformers import TrainingArguments


@dataclass(frozen=True)
class Kind:
    """One optimizer.

    Attributes:
        optim: what `TrainingArguments.optim` calls it, or its nearest relative that stock can build.
        package: module, and extra of the same name, that it comes from.
        low_bit: whether its state has fewer than 32 bits.
        devices: `torch.device.type`s that it works on; None for all.
    """

    optim: str
    package: str | None = None
    low_bit: bool = False
    devices: tuple[str, ...] | None = None


_GPU = ("cuda", "xpu")


def _bitsandbytes(name: str, paged: bool = False) -> Kind:
    return Kind(name, "bitsandbytes", "8bit" in name, _GPU if paged else ("cpu", *_GPU))


KINDS = {
    "adamw": Kind("adamw_torch"),
    "adamw_fused": Kind("adamw_torch_fused"),
    "adafactor": Kind("adafactor"),
    "sgd": Kind("sgd"),
    "adamw_8bit": _bitsandbytes("adamw_8bit"),
    "ademamix": _bitsandbytes("ademamix"),
    "ademamix_8bit": _bitsandbytes("ademamix_8bit"),
    "lion": _bitsandbytes("lion_32bit"),
    "lion_8bit": _bitsandbytes("lion_8bit"),
    "paged_adamw": _bitsandbytes("paged_adamw_32bit", paged=True),
    "paged_adamw_8bit": _bitsandbytes("paged_adamw_8bit", paged=True),
    "paged_ademamix": _bitsandbytes("paged_ademamix_32bit", paged=True),
    "paged_ademamix_8bit": _bitsandbytes("paged_ademamix_8bit", paged=True),
    "paged_lion": _bitsandbytes("paged_lion_32bit", paged=True),
    "paged_lion_8bit": _bitsandbytes("paged_lion_8bit", paged=True),
    "torchao_adamw_8bit": Kind("adamw_torch_8bit", "torchao", True, ("cpu", *_GPU)),
    "torchao_adamw_4bit": Kind("adamw_torch_4bit", "torchao", True, ("cpu", *_GPU)),
    "torchao_adamw_fp8": Kind("adamw_torch_8bit", "torchao", True, ("cpu", "cuda")),
}
"""Setting -> optimizer."""

MIN_SIZE = 4096


@dataclass(eq=False, kw_only=True)
class Optimizer(Optimization):
    """Train with another optimizer (8-bit state: Dettmers et al. 2022, arXiv 2110.02861; 4-bit: Li et al. 2023, arXiv
    2309.01507).

    State of embeddings stays 32-bit, because their gradients are sparse and uneven (the stable embeddings of Dettmers
    et al.). Learning rate, betas and weight decay are those of the training arguments.
    """

    kind: str = "adamw_8bit"
    """Which: adamw, adamw_fused, adafactor or sgd; from bitsandbytes adamw_8bit, ademamix, lion, each also `_8bit`, and
    on GPUs also with `paged_` in front; from torchao torchao_adamw_8bit, torchao_adamw_4bit, torchao_adamw_fp8."""
    min_size: int = MIN_SIZE
    """Tensors with fewer elements keep 32-bit state, in kinds that have fewer bits."""

    name = "optimizer"
    order = Order.PRECISION

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ConfigError(unknown("optimizer.kind", self.kind, KINDS))
        if self.min_size < 1:
            raise ConfigError(f"min_size must be at least 1, got {self.min_size}")
        self.reset()

    def reset(self) -> None:
        self._bytes: dict[str, dict[str, int]] = {}

    def check(self, context: Context) -> None:
        kind, device = KINDS[self.kind], context.args.device.type
        if self.kind not in supported(device):
            raise ConfigError(
                f"optimizer.kind={self.kind} does not work on this machine's {device} device; "
                f"supported here: {', '.join(supported(device))}"
            )
        if kind.package and importlib.util.find_spec(kind.package) is None:
            raise MissingDependencyError(f"optimizer.kind={self.kind}", kind.package, kind.package)
        if kind.package == "torchao" and (missing := compiler_missing(device)):
            raise ConfigError(f"optimizer.kind={self.kind} compiles its update step, which {missing}")

    @classmethod
    def proposals(cls, observed: Observed) -> Iterable[Proposal]:
        args = observed.args
        if args.optim != type(args).optim:
            return
        for kind, device in (("adamw_8bit", "cuda"), ("adamw", None)):
            package = KINDS[kind].package
            fits = device in (None, args.device.type) and (not package or importlib.util.find_spec(package))
            if fits and KINDS[kind].optim != args.optim:
                yield Proposal({"kind": kind}, gain=observed.updating / 2)

    def configure(self, args: "TrainingArguments") -> "TrainingArguments":
        optim = KINDS[self.kind].optim
        if args.optim != optim:
            return changed(args, optim=optim)
        if not KINDS[self.kind].low_bit or (self.kind, self.min_size) == (optim, MIN_SIZE):
            warnings.warn(f"optimizer.kind={self.kind} is what the training arguments say already", NoEffectWarning, 2)
        return args

    def choose_optimizer(self, cls: Any, settings: dict[str, Any], model: "nn.Module") -> tuple[Any, dict[str, Any]]:
        kind = KINDS[self.kind]
        if not kind.low_bit:
            return cls, settings
        settings = {**settings, "embeddings": embedding_parameters(model), "min_size": self.min_size}
        if kind.package == "bitsandbytes":
            return combined(_BitsandbytesState, cls), settings
        return _torchao(self.kind, cls, settings)

    def state_dict(self) -> dict[str, Any]:
        return {"kind": self.kind, "min_size": self.min_size}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        require_same(self.name, state, self.state_dict())

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        model, optimizer = kwargs["model"], kwargs["optimizer"]
        optimizer = getattr(optimizer, "optimizer", optimizer)  # out of Accelerate's wrapper
        now = optimizer_state_bytes(optimizer, model)
        self._bytes = {"state_bytes": now, "adamw_32bit_state_bytes": adamw_state_bytes(model)}

    def describe(self) -> dict[str, Any]:
        return {"kind": self.kind, **self._bytes}


def supported(device: str) -> list[str]:
    """Kinds that work on a device type (`torch.device.type`) of this machine, their packages being installed."""
    kinds = [name for name, kind in KINDS.items() if kind.devices is None or device in kind.devices]
    if device == "cuda" and torch.cuda.get_device_capability() < (8, 9):  # no 8-bit floats before Ada
        kinds.remove("torchao_adamw_fp8")
    return kinds


def _torchao(kind: str, cls: Any, settings: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    given = settings.pop("block_size")
    if isinstance(given, str):  # from optim_args, which stock passes on unconverted
        settings["block_size"] = int(given)
    if kind == "torchao_adamw_fp8":  # stock has no name for it
        from torchao.optim import AdamWFp8

        cls = AdamWFp8
    return combined(_TorchaoState, cls), settings


class _WithEmbeddings:
    """In front of an optimizer class: embeddings get groups of their own, marked ``embeddings=True``.

    Groups, not parameters, carry the mark, because they stay when a wrapper exchanges parameters, and are saved.
    """

    param_groups: list[dict[str, Any]]

    def __init__(self, groups: Sequence[Mapping[str, Any]], *, embeddings: frozenset[int], **settings: Any):
        parts = [
            {**part, "embeddings": marked}
            for group in groups
            for marked, part in sorted(split_group(group, lambda parameter: id(parameter) in embeddings).items())
        ]
        super().__init__(parts, **settings)  # type: ignore[call-arg]


class _BitsandbytesState(_WithEmbeddings):
    def __init__(self, groups: Any, *, min_size: int, **settings: Any):
        super().__init__(groups, min_8bit_size=min_size, **settings)

    def get_config(self, gindex: int, pindex: int, group: Mapping[str, Any]) -> dict[str, Any]:
        config = super().get_config(gindex, pindex, group)  # type: ignore[misc]
        # Not left to bitsandbytes' own overrides: they are one table per process, keyed by position in the groups, so
        # that the embeddings of an earlier training decide about whatever stands there in this one
        config["optim_bits"] = 32 if group["embeddings"] else 8
        return config


class _TorchaoState(_WithEmbeddings):
    def __init__(self, groups: Any, *, min_size: int, **settings: Any):
        super().__init__(groups, **settings)
        self._min_size = min_size

    def step(self, closure: Any = None) -> Any:
        with warnings.catch_warnings():
            # The compiler's cache would like a method of torchao's tensors; compiling works without
            warnings.filterwarnings("ignore", ".*_stable_hash_for_caching.*")
            return super().step(closure)  # type: ignore[misc]

    def _new_buffer(self, p: torch.Tensor, signed: bool) -> torch.Tensor:
        embeddings = (q for group in self.param_groups if group["embeddings"] for q in group["params"])
        if p.numel() < self._min_size or any(p is q for q in embeddings):
            return torch.zeros_like(p)
        if type(p.data) is torch.Tensor and p.numel() < MIN_SIZE and p.numel() % self.block_size == 0:  # type: ignore[attr-defined]
            return self._subclass_zeros(p, signed, self.block_size).to(p.device)  # type: ignore[attr-defined]
        return super()._new_buffer(p, signed)  # type: ignore[misc]

"""Mixed-precision training, chosen and checked on the machine at hand."""

import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch

from hf_efficient.errors import ConfigError, NoEffectWarning
from hf_efficient.functional.attention import is_fused
from hf_efficient.optimization import Context, Optimization, Order, changed, from_main
from hf_efficient.proposal import Observed, Proposal
from hf_efficient.timing import matmul_seconds

if TYPE_CHECKING:
    from transformers import TrainingArguments

_TORCH = {"bf16": torch.bfloat16, "fp16": torch.float16}

WORTHWHILE = 1.2
"""A CPU's bf16 must beat fp32 by this factor in a bare matrix product: autocast's conversions cost time as well."""
PLAIN_ATTENTION = {"attention": {"implementation": "eager"}}
"""PyTorch's fused attention takes several times as long backward in bf16 on a CPU as plain products do, up to some 200
tokens, and with that all that bf16 saves elsewhere."""


@dataclass(eq=False, kw_only=True)
class Precision(Optimization):
    """Train in 32-bit floats or in automatic mixed precision (Micikevicius et al. 2018, arXiv 1710.03740).

    Weights and optimizer state stay 32-bit; fp16 runs with dynamic loss scaling.
    """

    dtype: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """auto: bf16 where the accelerator has it, fp16 on older ones, on a CPU whichever of bf16 and fp32 is measured
    faster."""

    name = "precision"
    order = Order.PRECISION

    def __post_init__(self) -> None:
        self._chosen: str | None = None
        self._reason = ""

    @classmethod
    def proposals(cls, observed: Observed) -> Iterable[Proposal]:
        args = observed.args
        if args.bf16 or args.fp16:
            return
        for dtype in supported(args.device.type)[1:]:
            speedup = matmul_speedup(_TORCH[dtype], device=args.device)
            gain = (1 - 1 / speedup) * observed.computing
            yield Proposal({"dtype": dtype}, gain)
            if args.device.type == "cpu" and is_fused(observed.model):
                yield Proposal({"dtype": dtype}, gain, beside=PLAIN_ATTENTION)

    def check(self, context: Context) -> None:
        device = context.args.device.type
        if self.dtype not in ("auto", *supported(device)):
            raise ConfigError(
                f"precision.dtype={self.dtype} does not work on this machine's {device} device; "
                f"supported here: auto, {', '.join(supported(device))}"
            )

    def configure(self, args: "TrainingArguments") -> "TrainingArguments":
        self._chosen, self._reason = (self.dtype, "as set") if self.dtype != "auto" else _choose(args)
        wanted: dict[str, Any] = {"fp16": self._chosen == "fp16", "bf16": self._chosen == "bf16"}
        if wanted == {"fp16": args.fp16, "bf16": args.bf16}:
            if self.dtype != "auto":
                warnings.warn(
                    f"precision.dtype={self.dtype} is what the training arguments say already", NoEffectWarning, 2
                )
            return args
        # Without use_cpu, TrainingArguments takes bf16 on a CPU for a mistake
        return changed(args, **wanted, use_cpu=args.use_cpu or args.device.type == "cpu")

    def describe(self) -> dict[str, Any]:
        return {"dtype": self._chosen, "reason": self._reason}


def supported(device: str) -> list[str]:
    """Training precisions that work on a device type (`torch.device.type`) of this machine."""
    if device == "cpu":
        return ["fp32", "bf16"]  # Accelerate refuses fp16 on CPUs
    if device == "mps":
        return ["fp32", "fp16", *(["bf16"] if torch.backends.mps.is_macos_or_newer(14, 0) else [])]
    if device == "cuda":
        return ["fp32", "fp16", *(["bf16"] if torch.cuda.is_bf16_supported(including_emulation=False) else [])]
    if device == "xpu":
        return ["fp32", "fp16", *(["bf16"] if torch.xpu.is_bf16_supported() else [])]
    return ["fp32", "bf16"]  # TPUs and other accelerators: bf16 is their native format


def _choose(args: "TrainingArguments") -> tuple[str, str]:
    device = args.device.type
    if device == "cpu":
        return from_main(_fastest_on_cpu(), args)  # precision must not differ
    if device == "mps":
        return "fp32", "mixed precision is slower on most Apple GPUs"
    best = "bf16" if "bf16" in supported(device) else "fp16"
    return best, f"the best that this {device} device supports"


def _fastest_on_cpu() -> tuple[str, str]:
    speedup = matmul_speedup(torch.bfloat16)
    chosen = "bf16" if speedup >= WORTHWHILE else "fp32"
    return chosen, f"a bf16 matrix product takes {1 / speedup:.2f} times as long as an fp32 one on this CPU"


def matmul_speedup(
    dtype: torch.dtype,
    rows: int = 512,
    width: int = 1024,
    repeats: int = 7,
    device: torch.device = torch.device("cpu"),  # noqa: B008  # immutable
) -> float:
    """How many times faster a (rows, width) x (width, width) product is in ``dtype`` than in fp32."""
    full, ours = (matmul_seconds(kind, rows, width, device, repeats) for kind in (torch.float32, dtype))
    return full / ours

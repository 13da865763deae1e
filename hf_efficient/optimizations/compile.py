"""torch.compile for training."""

import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch

from hf_efficient.errors import ConfigError, NoEffectWarning, unknown
from hf_efficient.machine import compiler_missing
from hf_efficient.optimization import Context, Optimization, Order, changed
from hf_efficient.proposal import Observed, Proposal

if TYPE_CHECKING:
    from torch import nn
    from transformers import TrainingArguments


BEST_GAIN, BEST_GAIN_CPU = 0.5, 0.3
"""Share of forward and backward passes that compiling saves at the very best; half of that on a CPU is rare."""
SETUP_SECONDS = 40.0
"""To compile a BERT-size model for forward and backward passes of any length, on two cores."""


@dataclass(eq=False, kw_only=True)
class Compile(Optimization):
    """Compile the model's forward and backward pass (Ansel et al. 2024, *PyTorch 2*).

    Accelerate wraps what is trained; the trainer's model, checkpoints and `final/` stay the plain one.
    """

    backend: str = "inductor"
    """inductor makes kernels; aot_eager and eager only trace, to find out what fails."""
    mode: Literal["default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs"] = "default"
    """How long inductor searches, and whether it replays CUDA graphs."""
    dynamic: bool | None = None
    """false: compile anew for each input shape; true: once for all; null: false first, true for what changed."""

    name = "compile"
    order = Order.PRECISION

    def __post_init__(self) -> None:
        if self.mode != "default" and self.backend != "inductor":
            raise ConfigError(f"mode={self.mode} is inductor's; drop it or backend={self.backend}")
        self.reset()

    def reset(self) -> None:
        self._counted: dict[str, int] = {}
        self._before: dict[str, int] = {}

    @classmethod
    def proposals(cls, observed: Observed) -> Iterable[Proposal]:
        args = observed.args
        if not args.torch_compile and not compiler_missing(args.device.type):
            on_cpu = args.device.type == "cpu"
            gain = (BEST_GAIN_CPU if on_cpu else BEST_GAIN) * observed.computing
            if observed.lengths is None and not on_cpu:
                yield Proposal({"mode": "reduce-overhead"}, gain, SETUP_SECONDS)  # one graph for each shape of inputs
            yield Proposal({"dynamic": True}, gain, SETUP_SECONDS)

    def check(self, context: Context) -> None:
        if self.backend not in _backends():
            raise ConfigError(f"compile: {unknown('backend', self.backend, _backends())}")
        if self.backend == "inductor" and (missing := compiler_missing(context.args.device.type)):
            raise ConfigError(f"compile.backend=inductor makes machine code, which {missing}")

    def configure(self, args: "TrainingArguments") -> "TrainingArguments":
        wanted = {"torch_compile": True, "torch_compile_backend": self.backend, "torch_compile_mode": self.mode}
        now = {name: getattr(args, name) for name in wanted}
        if {**now, "torch_compile_mode": args.torch_compile_mode or "default"} == wanted and self.dynamic is None:
            warnings.warn(f"compile.backend={self.backend} is what the arguments say already", NoEffectWarning, 2)
            return args
        return changed(args, **wanted)

    def prepare_model(self, model: "nn.Module", context: Context) -> "nn.Module":
        from accelerate.state import AcceleratorState
        from accelerate.utils import TorchDynamoPlugin

        # One state per process, of the trainer built last, and stock passes no `dynamic` on
        plugin = TorchDynamoPlugin(backend=self.backend, mode=self.mode, dynamic=self.dynamic)  # type: ignore[arg-type]
        AcceleratorState().dynamo_plugin = plugin
        # A process that trains several times (a search) would use the limit of recompilations up, then run uncompiled
        torch.compiler.reset()
        self._before = _counts()
        return model

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._counted = {name: count - self._before.get(name, 0) for name, count in _counts().items()}
        if not self._counted["graphs"]:
            warnings.warn(f"compile.backend={self.backend} found nothing to compile", NoEffectWarning, 2)

    def describe(self) -> dict[str, Any]:
        return {"backend": self.backend, "mode": self.mode, "dynamic": self.dynamic, **self._counted}


def _backends() -> list[str]:
    """Those that torch has here and Accelerate passes on."""
    from accelerate.utils import DynamoBackend

    known = {backend.value.lower() for backend in DynamoBackend}
    return [name for name in torch.compiler.list_backends(exclude_tags=()) if name in known]


def _counts() -> dict[str, int]:
    """Graphs that this process has compiled, and places where a graph had to end early."""
    from torch._dynamo.utils import counters

    return {"graphs": counters["stats"]["unique_graphs"], "graph_breaks": sum(counters["graph_break"].values())}

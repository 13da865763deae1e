"""Quantization-aware training: the model learns to live with the rounding of the export that will serve it."""

import math
import warnings
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from hf_efficient.errors import ConfigError, NoEffectWarning
from hf_efficient.optimization import Context, Optimization, Order
from hf_efficient.rounding import Rounding, Scheme, readers
from hf_efficient.trained_ranges import keep_ranges

if TYPE_CHECKING:
    from torch import nn

Target = Literal[
    "onnx-dynamic",
    "onnx-dynamic-per-channel",
    "onnx-static",
    "onnx-static-matmul",
    "openvino-static",
    "torchao-int4",
    "torchao-int8",
    "weights",
]
TARGETS: dict[str, Scheme] = {
    "onnx-dynamic": Scheme("tensor", "dynamic", embeddings="table"),
    "onnx-dynamic-per-channel": Scheme("channel", "dynamic", embeddings="table"),
    "onnx-static": Scheme("channel", "static", embeddings="table"),
    "onnx-static-matmul": Scheme("channel", "static", embeddings=""),
    "openvino-static": Scheme("channel", "static"),
    "torchao-int4": Scheme("group", bits=4, embeddings=""),
    "torchao-int8": Scheme("channel", embeddings=""),
    "weights": Scheme("channel"),
}
"""Way to export -> how it rounds."""


@dataclass(eq=False, kw_only=True)
class Quantization(Optimization):
    """Compute with rounded weights and activations in the last part of a training (QAT, Jacob et al. 2018, arXiv
    1712.05877); gradients pass straight through the rounding (Bengio et al. 2013, arXiv 1308.3432).

    When training ends, the weights stay rounded, in fp32: the export finds its integers in them. It finds the ranges
    of inputs, where the target stores such, in the model's config.
    """

    target: Target = "onnx-dynamic"
    """What will serve the model, and so decides scales and ranges: format and quantization of the export; the layers
    that `load_low_bit` makes of torchao; or int8 `weights` alone, tables included."""
    scheme: Literal["int8", "int4", "fixed_point"] = "int8"
    """int8: as the target has it. int4: weights in groups, activations in float. fixed_point: every parameter p becomes
    exactly floor(p / step) * step."""
    start: float = 0.5
    """From which part of the training on numbers are rounded, from 0 to 1; 1 leaves them alone."""
    embeddings: bool = True
    """Round embedding tables too: they are half of a small model's bytes."""
    group_size: int = 32
    """Weights that share a scale, with int4."""
    step: float = 2**-15
    """Distance between neighbouring numbers, with fixed_point."""
    computations: bool = False
    """With fixed_point: round the inputs of linear layers too."""

    name = "quantization"
    order = Order.QUANTIZATION
    gathers_weights = True

    def __post_init__(self) -> None:
        if self.target not in TARGETS:
            raise ConfigError(f"target must be one of {', '.join(TARGETS)}, got {self.target!r}")
        if not 0 <= self.start <= 1:
            raise ConfigError(f"start must be from 0 to 1, got {self.start:g}")
        if self.group_size < 2:
            raise ConfigError(f"group_size must be at least 2, got {self.group_size}")
        if not self.step > 0 or not math.isfinite(self.step):
            raise ConfigError(f"step must be greater than 0, got {self.step:g}")
        if self.computations and self.scheme != "fixed_point":
            raise ConfigError("computations goes with scheme: fixed_point; the target decides it for the others")
        self._rounding = Rounding(self._scheme)
        self.reset()

    def reset(self) -> None:
        self._rounding.remove()
        self._rounding = Rounding(self._scheme)
        self._first_step, self._modules = 0, 0

    @property
    def _scheme(self) -> Scheme:
        if self.scheme == "int4":
            made = Scheme("group", bits=4, group=self.group_size)
        elif self.scheme == "fixed_point":
            made = Scheme("step", "step" if self.computations else "", step=self.step)
        else:
            made = TARGETS[self.target]
        return made if self.embeddings else replace(made, embeddings="")

    def whole_weights(self) -> str:
        return "rounds whole weights" if self.start < 1 else ""

    def prepare_model(self, model: "nn.Module", context: Context) -> "nn.Module":
        if self.start == 1:
            warnings.warn("quantization with start=1 rounds nothing", NoEffectWarning, 2)
        elif self._scheme.weights == "tensor":
            batches = context.calibration(1)
            self._rounding.packed = readers(model, batches[0]) if batches else ()
        return model

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        super().on_train_begin(args, state, control, **kwargs)
        self._first_step = math.ceil(self.start * state.max_steps)
        self._begin(state, kwargs["model"])

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if args.world_size > 1:
            self._rounding.agree()
        self._begin(state, kwargs["model"])

    def _begin(self, state: Any, model: "nn.Module") -> None:
        if self.start < 1 and state.global_step >= self._first_step and not self._rounding.attached:
            self._modules = self._rounding.attach(model)

    def finalize(self, model: "nn.Module") -> "nn.Module":
        if self._rounding.attached:
            self._rounding.remove()
            self._rounding.fold(model)
            keep_ranges(model, self._rounding.ranges)
        return model

    def state_dict(self) -> dict[str, Any]:
        return {"ranges": dict(self._rounding.ranges)} if self._rounding.ranges else {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._rounding.ranges = dict(state.get("ranges", {}))

    def describe(self) -> dict[str, Any]:
        if not self._modules:
            return {}
        told = {"target": self.target} if self.scheme == "int8" else {"scheme": self.scheme}
        return {**told, "rounded_modules": self._modules, "from_step": self._first_step}

"""The ways to export: a table; each is an exporter of transformers with its settings and, for int8, its quantizer."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from hf_efficient.errors import ConfigError, MissingDependencyError, unknown
from hf_efficient.quantizers import onnx_quantizer, openvino_quantizer
from hf_efficient.runtimes import require, require_packages
from hf_efficient.signal_stack import signal_stack_kept
from hf_efficient.trained_ranges import Range, trained_ranges

if TYPE_CHECKING:
    from transformers import PreTrainedModel
    from transformers.exporters import ExportedModel

Inputs = Mapping[str, torch.Tensor]


@dataclass(frozen=True)
class Candidate:
    """One way to export; what runs the result follows from the format.

    Attributes:
        format: key in `RUNTIMES`.
        settings: of the exporter's config.
        quantizer: key in `_QUANTIZERS`; None exports in fp32.
        int8: arguments of the quantizer's config.
        packages: modules that it takes beside the runtime's.
        mixed: the layers that lose most stay in float, as many as it takes to keep the metric.
    """

    format: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    quantizer: str | None = None
    int8: Mapping[str, Any] = field(default_factory=dict)
    packages: tuple[str, ...] = ()
    mixed: bool = False

    @property
    def exact(self) -> bool:
        """Whether its logits must be the model's, but for rounding."""
        return self.quantizer is None

    @property
    def calibrated(self) -> bool:
        """Whether the ranges of activations are taken from real inputs beforehand."""
        return self.quantizer is not None and self.quantizer != "onnx-dynamic"

    def require(self) -> None:
        """Refuse what is not installed.

        Raises:
            MissingDependencyError: names the first package that is missing.
        """
        require(self.format)
        require_packages(self.packages, f"int8 export to '{self.format}'", self.format)

    def convert(
        self,
        model: "PreTrainedModel",
        inputs: Inputs,
        calibration: Sequence[Inputs] = (),
        in_float: Sequence[str] = (),
    ) -> "ExportedModel":
        """Trace ``model`` (fp32, on the CPU, evaluating) on ``inputs``; every axis that can vary stays free.

        Args:
            calibration: batches of real inputs, for the ranges of activations that the model was not trained with.
            in_float: paths of the linear layers that are not quantized, where the candidate is mixed.
        """
        from transformers import exporters

        exporter, config = {
            "onnx": (exporters.OnnxExporter, exporters.OnnxConfig),
            "openvino": (exporters.OpenVINOExporter, exporters.OpenVINOConfig),
        }[self.format]
        settings = dict(self.settings)
        if self.quantizer is not None:
            weights = [model.get_parameter(f"{path}.weight").detach().numpy() for path in in_float]
            ranges = list(trained_ranges(model)) if self.calibrated else []
            settings["quantizer"] = _QUANTIZERS[self.quantizer](self.int8, calibration, weights, ranges)
        with signal_stack_kept():
            made = exporter().export(model, dict(inputs), config(dynamic=True, **settings))
        if self.format == "onnx":
            _forget_origin(made)
        return made


Weights = Sequence[np.ndarray]
Ranges = Sequence[Range]


def _onnx_dynamic(int8: Mapping[str, Any], calibration: Sequence[Inputs], in_float: Weights, ranges: Ranges) -> Any:
    from transformers import exporters

    return exporters.OnnxRuntimeQuantizer(exporters.OnnxRuntimeDynamicConfig(**int8))


def _onnx_static(int8: Mapping[str, Any], calibration: Sequence[Inputs], in_float: Weights, ranges: Ranges) -> Any:
    from transformers import exporters

    weights_only = bool(ranges) or int8 is _MATMUL
    config = exporters.OnnxRuntimeStaticConfig(**(_AS_TRAINED if ranges and int8 is not _MATMUL else int8))
    return onnx_quantizer(config, [dict(batch) for batch in calibration], in_float, ranges, weights_only)


def _openvino_static(int8: Mapping[str, Any], calibration: Sequence[Inputs], in_float: Weights, ranges: Ranges) -> Any:
    from transformers import exporters

    settings = exporters.NNCFQuantizationConfig(subset_size=max(1, len(calibration)), **int8)
    return openvino_quantizer(settings, [dict(batch) for batch in calibration], in_float, ranges)


_QUANTIZERS = {"onnx-dynamic": _onnx_dynamic, "onnx-static": _onnx_static, "openvino-static": _openvino_static}


def _only(*operators: str) -> dict[str, Any]:
    """Settings of static int8 for ONNX Runtime that quantize these, by what they are given alone."""
    types = list(operators)
    outputs = {"OpTypesToExcludeOutputQuantization": types}
    return {"op_types_to_quantize": types, "per_channel": True, "extra_options": outputs}


_MATMUL = _only("MatMul", "Gemm")
"""Only products with weights, and their inputs: they take most of the time, and int8 sums, norms, softmaxes and masks
are where ONNX Runtime's static models go wrong."""
_AS_TRAINED = _only("MatMul", "Gemm", "Gather")
"""And embedding tables: what was rounded while the model was trained, and no more."""

CANDIDATES: dict[tuple[str, str], Candidate] = {
    ("onnx", "none"): Candidate("onnx", {"ort_fusions": "cpu"}),
    ("onnx", "dynamic"): Candidate("onnx", {"ort_fusions": "cpu"}, "onnx-dynamic"),
    ("onnx", "dynamic-per-channel"): Candidate("onnx", {"ort_fusions": "cpu"}, "onnx-dynamic", {"per_channel": True}),
    ("onnx", "static"): Candidate("onnx", {}, "onnx-static", {"per_channel": True}),
    ("onnx", "static-matmul"): Candidate("onnx", {}, "onnx-static", _MATMUL),
    ("onnx", "mixed"): Candidate("onnx", {}, "onnx-static", _MATMUL, mixed=True),
    ("openvino", "none"): Candidate("openvino"),
    ("openvino", "static"): Candidate("openvino", {}, "openvino-static", packages=("nncf",)),
    ("openvino", "mixed"): Candidate("openvino", {}, "openvino-static", packages=("nncf",), mixed=True),
}
"""(format, quantize) -> how it is made."""

AUTO = "auto"
"""As format or as quantize: the fastest of all that keeps the metric."""


def choices(format: str, quantize: str) -> list[tuple[str, str]]:
    """Keys of `CANDIDATES` that a format and a quantization, `AUTO` allowed for each, stand for."""
    return [key for key in CANDIDATES if format in (AUTO, key[0]) and quantize in (AUTO, key[1])]


def check_choice(format: str, quantize: str, max_drop: float = 0) -> None:
    """Refuse what no candidate stands for.

    Raises:
        ConfigError: no such pair, or ``max_drop`` out of range.
    """
    formats = [AUTO, *sorted({name for name, _ in CANDIDATES})]
    if format not in formats:
        raise ConfigError(unknown("export format", format, formats))
    if not choices(format, quantize):
        allowed = [AUTO, *dict.fromkeys(key[1] for key in choices(format, AUTO))]
        raise ConfigError(f"format '{format}': {unknown('quantize', quantize, allowed)}")
    if not max_drop >= 0:
        raise ConfigError(f"max_drop must be 0 or more, got {max_drop}")


def require_choice(format: str, quantize: str) -> None:
    """Refuse what is not installed; of several choices, one that is will do.

    Raises:
        MissingDependencyError: names the first package that is missing.
    """
    errors = []
    for key in choices(format, quantize):
        try:
            return CANDIDATES[key].require()
        except MissingDependencyError as error:
            errors.append(error)
    raise errors[0]


def _forget_origin(exported: "ExportedModel") -> None:
    """Take the stack traces out of the graph: several times the graph's own bytes, and paths of this machine."""
    from onnx_ir.passes.common import ClearMetadataAndDocStringPass

    for component in exported.components.values():
        ClearMetadataAndDocStringPass()(component.program)

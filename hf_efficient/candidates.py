"""The ways to export: a table; each is an exporter of transformers with its settings and, for int8, its quantizer."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from hf_efficient.errors import ConfigError, unknown
from hf_efficient.runtimes import require, require_packages

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
    """

    format: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    quantizer: str | None = None
    int8: Mapping[str, Any] = field(default_factory=dict)
    packages: tuple[str, ...] = ()

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

    def convert(self, model: "PreTrainedModel", inputs: Inputs, calibration: Sequence[Inputs] = ()) -> "ExportedModel":
        """Trace ``model`` (fp32, on the CPU, evaluating) on ``inputs``; every axis that can vary stays free.

        Args:
            calibration: batches of real inputs, for the ranges of activations.
        """
        from transformers import exporters

        exporter, config = {
            "onnx": (exporters.OnnxExporter, exporters.OnnxConfig),
            "openvino": (exporters.OpenVINOExporter, exporters.OpenVINOConfig),
        }[self.format]
        settings = dict(self.settings)
        if self.quantizer is not None:
            settings["quantizer"] = _QUANTIZERS[self.quantizer](self.int8, calibration)
        made = exporter().export(model, dict(inputs), config(dynamic=True, **settings))
        if self.format == "onnx":
            _forget_origin(made)
        return made


def _onnx_dynamic(int8: Mapping[str, Any], calibration: Sequence[Inputs]) -> Any:
    from transformers import exporters

    return exporters.OnnxRuntimeQuantizer(exporters.OnnxRuntimeDynamicConfig(**int8))


def _onnx_static(int8: Mapping[str, Any], calibration: Sequence[Inputs]) -> Any:
    from transformers import exporters

    return exporters.OnnxRuntimeQuantizer(exporters.OnnxRuntimeStaticConfig(**int8), [dict(b) for b in calibration])


def _openvino_static(int8: Mapping[str, Any], calibration: Sequence[Inputs]) -> Any:
    from transformers import exporters

    settings = exporters.NNCFQuantizationConfig(subset_size=max(1, len(calibration)), **int8)
    return exporters.NNCFOpenVINOQuantizer(settings, [dict(batch) for batch in calibration])


_QUANTIZERS = {"onnx-dynamic": _onnx_dynamic, "onnx-static": _onnx_static, "openvino-static": _openvino_static}

CANDIDATES: dict[tuple[str, str], Candidate] = {
    ("onnx", "none"): Candidate("onnx", {"ort_fusions": "cpu"}),
    ("onnx", "dynamic"): Candidate("onnx", {"ort_fusions": "cpu"}, "onnx-dynamic"),
    ("onnx", "static"): Candidate("onnx", {}, "onnx-static", {"per_channel": True}),
    ("openvino", "none"): Candidate("openvino"),
    ("openvino", "static"): Candidate("openvino", {}, "openvino-static", packages=("nncf",)),
}
"""(format, quantize) -> how it is made."""


def check_choice(format: str, quantize: str, max_drop: float = 0) -> Candidate:
    """The candidate for a format and a quantization.

    Raises:
        ConfigError: no such pair, or ``max_drop`` out of range.
    """
    formats = sorted({name for name, _ in CANDIDATES})
    if format not in formats:
        raise ConfigError(unknown("export format", format, formats))
    allowed = [quantizing for name, quantizing in CANDIDATES if name == format]
    if quantize not in allowed:
        raise ConfigError(f"format '{format}': {unknown('quantize', quantize, allowed)}")
    if not max_drop >= 0:
        raise ConfigError(f"max_drop must be 0 or more, got {max_drop}")
    return CANDIDATES[format, quantize]


def _forget_origin(exported: "ExportedModel") -> None:
    """Take the stack traces out of the graph: several times the graph's own bytes, and paths of this machine."""
    from onnx_ir.passes.common import ClearMetadataAndDocStringPass

    for component in exported.components.values():
        ClearMetadataAndDocStringPass()(component.program)

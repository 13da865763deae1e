"""Quantizers of the exporters that leave chosen layers in float; a layer is known by its weights."""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import onnx_ir
    import openvino


def onnx_quantizer(config: Any, calibration: Any, weights: Sequence[np.ndarray]) -> Any:
    """`OnnxRuntimeQuantizer` that leaves the multiplications by ``weights`` as they are."""
    from transformers.exporters import OnnxRuntimeQuantizer

    class Quantizer(OnnxRuntimeQuantizer):
        def quantize(self, model: "onnx_ir.Model", *args: Any, **kwargs: Any) -> Any:
            names = list(_onnx_nodes(model, weights))
            self.config = dataclasses.replace(self.config, nodes_to_exclude=names)
            return super().quantize(model, *args, **kwargs)

    return Quantizer(config, calibration)


def openvino_quantizer(config: Any, calibration: Any, weights: Sequence[np.ndarray]) -> Any:
    """`NNCFOpenVINOQuantizer` that leaves the multiplications by ``weights`` as they are."""
    import nncf
    from transformers.exporters import NNCFOpenVINOQuantizer

    class Quantizer(NNCFOpenVINOQuantizer):
        def quantize(self, model: "openvino.Model", *args: Any, **kwargs: Any) -> Any:
            names = list(_openvino_nodes(model, weights))
            self.config = dataclasses.replace(self.config, ignored_scope=nncf.IgnoredScope(names=names))
            return super().quantize(model, *args, **kwargs)

    return Quantizer(config, calibration)


def _onnx_nodes(model: "onnx_ir.Model", weights: Sequence[np.ndarray]) -> Iterator[str]:
    for node in model.graph:
        if node.op_type in ("MatMul", "Gemm"):
            constants = [given.const_value for given in node.inputs if given is not None]
            if any(_is_one_of(constant.numpy(), weights) for constant in constants if constant is not None):
                yield str(node.name)


def _openvino_nodes(model: "openvino.Model", weights: Sequence[np.ndarray]) -> Iterator[str]:
    for node in model.get_ops():
        if node.get_type_name() == "MatMul":
            given = [_constant(node.input_value(index).get_node()) for index in range(2)]
            if any(_is_one_of(constant, weights) for constant in given if constant is not None):
                yield node.get_friendly_name()


def _constant(node: Any) -> np.ndarray | None:
    """What ``node`` always gives, through conversions and transpositions; None for what depends on inputs."""
    while node.get_type_name() in ("Convert", "Transpose"):
        node = node.input_value(0).get_node()
    return node.get_data() if node.get_type_name() == "Constant" else None


def _is_one_of(found: np.ndarray, weights: Sequence[np.ndarray]) -> bool:
    return any(
        (found.shape == weight.shape and np.array_equal(found, weight))
        or (found.shape == weight.T.shape and np.array_equal(found, weight.T))
        for weight in weights
    )

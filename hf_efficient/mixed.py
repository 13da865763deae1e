"""Quantizers of the exporters that leave chosen layers in float; a layer is known by its weights."""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import onnx_ir
    import openvino


def onnx_quantizer(config: Any, calibration: Any, weights: Sequence[np.ndarray], weights_only: bool = False) -> Any:
    """`OnnxRuntimeQuantizer` that leaves the multiplications by ``weights`` as they are.

    Args:
        weights_only: leave products of two activations, as in attention, and residual connections as they are too.
    """
    from transformers.exporters import OnnxRuntimeQuantizer

    class Quantizer(OnnxRuntimeQuantizer):
        def quantize(self, model: "onnx_ir.Model", *args: Any, **kwargs: Any) -> Any:
            names = list(_onnx_nodes(model, weights, weights_only))
            if weights_only:
                _read_apart(model, names)
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


def _onnx_nodes(model: "onnx_ir.Model", weights: Sequence[np.ndarray], weights_only: bool) -> Iterator[str]:
    for node in model.graph:
        if node.op_type in ("MatMul", "Gemm"):
            values = [given.const_value for given in node.inputs if given is not None]
            constants = [value.numpy() for value in values if value is not None]
            if (weights_only and not constants) or any(_is_one_of(constant, weights) for constant in constants):
                yield str(node.name)


def _read_apart(model: "onnx_ir.Model", in_float: Sequence[str]) -> None:
    """Give multiplications an input of their own: what the quantizer rounds, it rounds for all that read it."""
    import onnx_ir

    own: dict[Any, Any] = {}
    for node in [node for node in model.graph if node.op_type in ("MatMul", "Gemm") and node.name not in in_float]:
        read: Any = node.inputs[0]
        if read not in own:
            copied = onnx_ir.Node("", "Identity", [read], name=f"{node.name}_input")
            own[read] = copied.outputs[0]
            own[read].name, own[read].type, own[read].shape = f"{node.name}_input", read.type, read.shape
            model.graph.insert_before(node, copied)
        node.replace_input_with(0, own[read])


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

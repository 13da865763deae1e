"""Quantizers of the exporters that leave chosen layers in float and take ranges that were trained.

A layer is known by its weights, the same in the model and in its graph.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from hf_efficient.functional.fake_quant import steps
from hf_efficient.trained_ranges import Range

if TYPE_CHECKING:
    import onnx_ir
    import openvino


def onnx_quantizer(
    config: Any,
    calibration: Any,
    in_float: Sequence[np.ndarray],
    ranges: Sequence[Range],
    weights_only: bool = False,
) -> Any:
    """`OnnxRuntimeQuantizer` that leaves the multiplications by the weights ``in_float`` as they are.

    Args:
        ranges: of inputs, where calibration is not to find them.
        weights_only: leave products of two activations, as in attention, and residual connections as they are too.
    """
    from transformers.exporters import OnnxRuntimeQuantizer

    class Quantizer(OnnxRuntimeQuantizer):
        def quantize(self, model: "onnx_ir.Model", *args: Any, **kwargs: Any) -> Any:
            names = [
                str(node.name)
                for node, constants in _onnx_products(model)
                if (weights_only and not constants) or any(_is_one_of(constant, in_float) for constant in constants)
            ]
            if weights_only:
                names += [str(node.name) for node in model.graph if node.op_type == "Gather" and not _is_table(node)]
                _read_apart(model, names)
            options = {**(self.config.extra_options or {}), "TensorQuantOverrides": dict(_overrides(model, ranges))}
            self.config = dataclasses.replace(self.config, nodes_to_exclude=names, extra_options=options)
            return super().quantize(model, *args, **kwargs)

    return Quantizer(config, calibration)


def openvino_quantizer(config: Any, calibration: Any, in_float: Sequence[np.ndarray], ranges: Sequence[Range]) -> Any:
    """`NNCFOpenVINOQuantizer` that leaves the multiplications by the weights ``in_float`` as they are.

    Args:
        ranges: of inputs; where there are some, NNCF keeps to them and to the weights: both were trained.
    """
    import nncf
    from transformers.exporters import NNCFOpenVINOQuantizer

    class Quantizer(NNCFOpenVINOQuantizer):
        def quantize(self, model: "openvino.Model", *args: Any, **kwargs: Any) -> Any:
            found = [(node.get_friendly_name(), constants) for node, constants in _openvino_products(model)]
            names = [name for name, constants in found if any(_is_one_of(constant, in_float) for constant in constants)]
            settings = _as_trained(names) if ranges else {"ignored_scope": nncf.IgnoredScope(names=names)}
            self.config = dataclasses.replace(self.config, **settings)
            made = super().quantize(model, *args, **kwargs)
            _set_ranges(made, {name: _range_of(constants, ranges) for name, constants in found})
            return made

    return Quantizer(config, calibration)


def _as_trained(in_float: list[str]) -> dict[str, Any]:
    """Settings of NNCF that leave weights as they are, and attention's products in float."""
    import nncf

    unsmoothed = nncf.AdvancedSmoothQuantParameters(matmul=-1, convolution=-1)
    return {
        "ignored_scope": nncf.IgnoredScope(names=in_float, types=["ScaledDotProductAttention"]),
        "advanced_parameters": nncf.AdvancedQuantizationParameters(
            smooth_quant_alphas=unsmoothed, disable_bias_correction=True
        ),
    }


def _onnx_products(model: "onnx_ir.Model") -> Iterator[tuple[Any, list[np.ndarray]]]:
    """Every multiplication of matrices, and what it is given that is constant."""
    for node in model.graph:
        if node.op_type in ("MatMul", "Gemm"):
            values = [given.const_value for given in node.inputs if given is not None]
            yield node, [value.numpy() for value in values if value is not None]


def _is_table(gather: Any) -> bool:
    """Whether rows of a constant matrix are read, as from an embedding table."""
    return gather.inputs[0].const_value is not None and len(gather.inputs[0].const_value.shape) == 2


def _overrides(model: "onnx_ir.Model", ranges: Sequence[Range]) -> Iterator[tuple[str, list[dict[str, np.ndarray]]]]:
    """Name of a tensor -> its range, as ONNX Runtime's quantizer takes it."""
    for node, constants in _onnx_products(model):
        found = _range_of(constants, ranges)
        if found is not None:
            low, high = (np.array(end, dtype=np.float32) for end in (found.low, found.high))
            yield str(node.inputs[0].name), [{"rmin": low, "rmax": high}]


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


def _openvino_products(model: "openvino.Model") -> Iterator[tuple[Any, list[np.ndarray]]]:
    for node in model.get_ops():
        if node.get_type_name() == "MatMul":
            given = [_constant(node.input_value(index).get_node()) for index in range(2)]
            yield node, [constant for constant in given if constant is not None]


def _set_ranges(model: "openvino.Model", ranges: "dict[str, Range | None]") -> None:
    """Give the quantized inputs of multiplications (by name) their ranges."""
    from openvino import opset13

    for node in [node for node in model.get_ops() if node.get_type_name() == "MatMul"]:
        wanted, rounding = ranges.get(node.get_friendly_name()), _rounding_of(node.input_value(0).get_node())
        if wanted is None or rounding is None:
            continue
        scale, zero = (value.item() for value in steps(torch.tensor(wanted.low), torch.tensor(wanted.high)))
        for index, end in ((1, 0), (2, 255), (3, 0), (4, 255)):  # input low and high, output low and high
            shape = list(rounding.input_value(index).get_shape())
            constant = opset13.constant(np.full(shape, (end - zero) * scale, dtype=np.float32))
            rounding.input(index).replace_source_output(constant.output(0))


def _rounding_of(node: Any) -> Any:
    """The quantizer in front of a multiplication, seen through what only moves numbers; None where there is none."""
    while node.get_type_name() in ("Reshape", "Transpose", "Gather", "Convert"):
        node = node.input_value(0).get_node()
    return node if node.get_type_name() == "FakeQuantize" else None


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


def _range_of(constants: Sequence[np.ndarray], ranges: Sequence[Range]) -> Range | None:
    return next((one for one in ranges if any(_is_one_of(constant, [one.weight]) for constant in constants)), None)

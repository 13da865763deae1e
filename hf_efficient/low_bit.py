"""Finished models in the low-bit layers of bitsandbytes and torchao: quantized as they are loaded, nothing exported.

transformers does this for plain checkpoints by ``from_pretrained(..., quantization_config=...)``. A cut model's
config.json holds its shapes in that place, and transformers would ignore one of the two; here the shapes come first,
then the low-bit layers.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

from hf_efficient.errors import ConfigError, unknown
from hf_efficient.functional.fake_quant import weight_scales
from hf_efficient.pretrained import class_of, load_pretrained
from hf_efficient.runtimes import require_packages

if TYPE_CHECKING:
    from transformers import PreTrainedModel

logger = logging.getLogger(__name__)

GROUP = 32
"""Weights that share a scale, in torchao's int4."""
BLOCK = 64
"""The same in bitsandbytes' 4-bit types, which take no other."""


def _says_more_than_a_cast(record: logging.LogRecord) -> bool:
    return "inputs will be cast" not in str(record.msg)


def _bitsandbytes_int8(linear: nn.Linear, device: torch.device) -> nn.Module:
    """LLM.int8() (Dettmers et al. 2022, arXiv 2208.07339); the layer quantizes when it is moved."""
    import bitsandbytes

    # That floats become 16 bits on their way to 8 is said for each product: dozens of lines a batch
    logging.getLogger("bitsandbytes.autograd._functions").addFilter(_says_more_than_a_cast)
    made = bitsandbytes.nn.Linear8bitLt(
        linear.in_features, linear.out_features, linear.bias is not None, has_fp16_weights=False, device="cpu"
    )
    made.weight = bitsandbytes.nn.Int8Params(linear.weight.data.cpu(), requires_grad=False, has_fp16_weights=False)
    made.bias = linear.bias
    return made.to(device)


def _bitsandbytes_4bit(kind: str) -> Callable[[nn.Linear, torch.device], nn.Module]:
    """Blocks of 4-bit floats (Dettmers et al. 2023, arXiv 2305.14314)."""

    def convert(linear: nn.Linear, device: torch.device) -> nn.Module:
        import bitsandbytes

        made = bitsandbytes.nn.Linear4bit(
            linear.in_features, linear.out_features, linear.bias is not None, quant_type=kind, device="cpu"
        )
        made.weight = bitsandbytes.nn.Params4bit(
            linear.weight.data.cpu(), requires_grad=False, quant_type=kind, blocksize=BLOCK, module=made
        )
        made.bias = linear.bias
        return made.to(device)

    return convert


def _torchao(bits: int) -> Callable[[nn.Linear, torch.device], nn.Module]:
    """Weights only, symmetric: 8 bits with a scale for each output, 4 bits with one for each `GROUP`.

    The scales are those of `functional.fake_quant`: what was trained for them is kept to the last bit. torchao's own
    spread one number more over the negative side, and move every weight that already lies on a grid.
    """

    def convert(linear: nn.Linear, device: torch.device) -> nn.Module:
        from torchao.quantization import IntxUnpackedToInt8Tensor

        weight = linear.weight.detach().to(device)
        run = weight.shape[1] if bits == 8 else GROUP
        scales = weight_scales(weight.reshape(len(weight), -1, run), bits)
        packed = IntxUnpackedToInt8Tensor.from_hp(
            weight,
            (1, run),
            getattr(torch, f"int{bits}"),
            intx_choose_qparams_algorithm=None,
            custom_scale=scales,
            custom_zero_point=torch.zeros_like(scales, dtype=torch.int8),
        )
        linear = linear.to(device)
        linear.weight = nn.Parameter(packed, requires_grad=False)
        return linear

    return convert


@dataclass(frozen=True)
class LowBit:
    """A kind of layer.

    Attributes:
        package: what brings it; the name of its extra, too.
        convert: (linear layer, device) -> the layer in low bits.
        multiple: of this the number of a layer's inputs must be one; others stay as they are.
    """

    package: str
    convert: Callable[[nn.Linear, torch.device], nn.Module]
    multiple: int = 1


LOW_BIT = {
    "bitsandbytes-int8": LowBit("bitsandbytes", _bitsandbytes_int8),
    "bitsandbytes-fp4": LowBit("bitsandbytes", _bitsandbytes_4bit("fp4")),
    "bitsandbytes-nf4": LowBit("bitsandbytes", _bitsandbytes_4bit("nf4")),
    "torchao-int8": LowBit("torchao", _torchao(8)),
    "torchao-int4": LowBit("torchao", _torchao(4), multiple=GROUP),
}


def load_low_bit(folder: str | Path, kind: str, device: str | torch.device = "cpu") -> "PreTrainedModel":
    """The model in ``folder``, with its linear layers, but for the head, in low bits; for inference.

    Args:
        folder: what `save_pretrained` or a training wrote, cut or not.
        kind: a key of `LOW_BIT`.

    Raises:
        ConfigError: no such kind, not a model, or layers of this kind do not compute on ``device``; says why.
        MissingDependencyError: the package is not installed.
    """
    if kind not in LOW_BIT:
        raise ConfigError(unknown("kind", kind, LOW_BIT))
    device = torch.device(device)
    require_low_bit(kind, device)
    model = load_pretrained(class_of(folder), str(folder)).eval()
    replaced, left = 0, []
    for name, module in list(model.base_model.named_modules()):
        if type(module) is not nn.Linear:
            continue
        if module.in_features % LOW_BIT[kind].multiple:
            left.append(name)
            continue
        model.base_model.set_submodule(name, LOW_BIT[kind].convert(module, device))
        replaced += 1
    if left:
        logger.warning(
            "%d of %d linear layers stay in float: %s takes inputs in multiples of %d",
            *(len(left), len(left) + replaced, kind, LOW_BIT[kind].multiple),
        )
    return model.to(device).requires_grad_(False)


def require_low_bit(kind: str, device: torch.device) -> None:
    """Refuse what does not work here: a small layer is made and called, which no table of devices can promise.

    Raises:
        ConfigError, MissingDependencyError: as for `load_low_bit`.
    """
    package = LOW_BIT[kind].package
    require_packages([package], f"'{kind}'", package)
    try:
        with torch.no_grad():
            given = nn.Linear(2 * BLOCK, BLOCK)
            found = LOW_BIT[kind].convert(given, device)(torch.ones(3, 2 * BLOCK, device=device))
        assert found.isfinite().all()
    except Exception as error:  # of the packages, of missing kernels, and of devices that are not there
        words = " ".join(str(error).split())[:160]
        raise ConfigError(
            f"'{kind}' does not work on {device} here ({type(error).__name__}: {words}); use another of "
            f"{', '.join(LOW_BIT)}, or an int8 export (`hf-efficient export`)"
        ) from error

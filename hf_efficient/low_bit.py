"""Finished models in the low-bit layers of bitsandbytes and torchao, or with torch's 2:4 sparse weights: converted as
they are loaded, nothing exported.

transformers does this for plain checkpoints by ``from_pretrained(..., quantization_config=...)``. A cut model's
config.json holds its shapes in that place, and transformers would ignore one of the two; here the shapes come first,
then the low-bit layers.
"""

import logging
import warnings
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
SPARSE_SHAPE = (32, 64)
"""Of these the outputs and inputs of a 2:4 sparse weight in 16 bits have to be multiples."""


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


class _Sparse24(nn.Linear):
    """Computes in the type of its weight, whatever the model around it does."""

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        given = inputs.to(self.weight.dtype).contiguous()
        return nn.functional.linear(given, self.weight, self.bias).to(inputs.dtype)


def _sparse24(linear: nn.Linear, device: torch.device) -> nn.Module:
    """Without the zeros and in bf16, for sparse tensor cores (Mishra et al. 2021, arXiv 2104.08378)."""
    made = _Sparse24(linear.in_features, linear.out_features, linear.bias is not None, device="meta")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*prototype", UserWarning)
        packed = torch.sparse.to_sparse_semi_structured(linear.weight.detach().to(device, torch.bfloat16).contiguous())
    made.weight = nn.Parameter(packed, requires_grad=False)
    if linear.bias is not None:
        made.bias = nn.Parameter(linear.bias.detach().to(device, torch.bfloat16), requires_grad=False)
    return made


def _has_2_of_4(linear: nn.Linear) -> bool:
    rows, columns = linear.weight.shape
    if rows % SPARSE_SHAPE[0] or columns % SPARSE_SHAPE[1]:
        return False
    return bool((linear.weight.reshape(-1, 4).ne(0).sum(1) <= 2).all())


def _in_multiples(of: int) -> tuple[Callable[[nn.Linear], bool], str]:
    """Which layers a kind takes whose blocks must fill a row, and the same in words."""
    return lambda linear: linear.in_features % of == 0, f"inputs in multiples of {of}"


@dataclass(frozen=True)
class LowBit:
    """A kind of layer.

    Attributes:
        package: what brings it; the name of its extra, too.
        convert: (linear layer, device) -> the layer in low bits.
        fits: whether it takes a layer; others stay as they are.
        takes: the same in words.
    """

    package: str
    convert: Callable[[nn.Linear, torch.device], nn.Module]
    fits: Callable[[nn.Linear], bool] = lambda linear: True
    takes: str = "any"


LOW_BIT = {
    "bitsandbytes-int8": LowBit("bitsandbytes", _bitsandbytes_int8),
    "bitsandbytes-fp4": LowBit("bitsandbytes", _bitsandbytes_4bit("fp4"), *_in_multiples(BLOCK)),
    "bitsandbytes-nf4": LowBit("bitsandbytes", _bitsandbytes_4bit("nf4"), *_in_multiples(BLOCK)),
    "torchao-int8": LowBit("torchao", _torchao(8)),
    "torchao-int4": LowBit("torchao", _torchao(4), *_in_multiples(GROUP)),
    "sparse24": LowBit(
        "torch",
        _sparse24,
        _has_2_of_4,
        "weights of which two in every four are zero, in multiples of {} outputs and {} inputs".format(*SPARSE_SHAPE),
    ),
}


def load_low_bit(folder: str | Path, kind: str, device: str | torch.device = "cpu") -> "PreTrainedModel":
    """The model in ``folder``, with its linear layers, but for the head, in low bits; for inference.

    Args:
        folder: what `save_pretrained` or a training wrote, cut or not.
        kind: a key of `LOW_BIT`.

    Raises:
        ConfigError: no such kind, not a model, no layer that the kind takes, or layers of this kind do not compute on
            ``device``; says why.
        MissingDependencyError: the package is not installed.
    """
    if kind not in LOW_BIT:
        raise ConfigError(unknown("kind", kind, LOW_BIT))
    device = torch.device(device)
    require_low_bit(kind, device)
    model = load_pretrained(class_of(folder), str(folder)).eval()
    replaced, left = convert_layers(model.base_model, kind, device)
    if not replaced:
        raise ConfigError(
            f"'{kind}' takes {LOW_BIT[kind].takes}; no linear layer of the model in {folder} is like that"
        )
    if left:
        logger.warning(
            "%d of %d linear layers stay in float: %s takes %s",
            *(len(left), len(left) + replaced, kind, LOW_BIT[kind].takes),
        )
    return model.to(device).requires_grad_(False)


def convert_layers(base: nn.Module, kind: str, device: torch.device) -> tuple[int, list[str]]:
    """Put the linear layers of ``base`` that ``kind`` takes into low bits.

    Returns:
        how many they were, and the paths of those that stay in float.
    """
    replaced, left = 0, []
    for name, module in list(base.named_modules()):
        if type(module) is not nn.Linear:
            continue
        if not LOW_BIT[kind].fits(module):
            left.append(name)
            continue
        base.set_submodule(name, LOW_BIT[kind].convert(module, device))
        replaced += 1
    return replaced, left


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
            given.weight[:, ::2] = 0  # one kind takes no other
            found = LOW_BIT[kind].convert(given, device)(torch.ones(3, 2 * BLOCK, device=device))
        assert found.isfinite().all()
    except Exception as error:  # of the packages, of missing kernels, and of devices that are not there
        words = " ".join(str(error).split())[:160]
        raise ConfigError(
            f"'{kind}' does not work on {device} here ({type(error).__name__}: {words}); use another of "
            f"{', '.join(LOW_BIT)}, or an int8 export (`hf-efficient export`)"
        ) from error

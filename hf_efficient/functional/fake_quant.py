"""Numbers rounded to what a quantized kernel can hold, as floats; gradients pass straight through."""

from typing import Any

import torch


def fake_quantize_range(values: torch.Tensor, low: Any, high: Any) -> torch.Tensor:
    """``values`` rounded to 256 evenly spaced numbers from ``low`` to ``high``, zero among them; the rest is clipped.

    Asymmetric uint8, one scale for the tensor, as ONNX Runtime and OpenVINO quantize activations.

    Args:
        low, high: numbers or scalar tensors; the range is widened to hold zero.
    """
    ends = [torch.as_tensor(end, dtype=torch.float32, device=values.device) for end in (low, high)]
    return torch.fake_quantize_per_tensor_affine(values, *steps(*ends), 0, 255)


def steps(low: torch.Tensor, high: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Distance of neighbouring numbers, and which of 0 to 255 stands for zero, in a range that is widened to hold it.

    Args:
        low, high: scalars, fp32.
    """
    low, high = low.clamp_max(0), high.clamp_min(0)
    scale = ((high - low) / 255).clamp_min(1e-12)
    return scale, (-low / scale).round().to(torch.int32)


def fake_quantize_dynamic(values: torch.Tensor) -> torch.Tensor:
    """The same in the range that ``values`` themselves have."""
    found = values.detach()
    return fake_quantize_range(values, found.min().float(), found.max().float())


def fake_quantize_weight(
    weight: torch.Tensor, bits: int = 8, per: str = "channel", group: int = 32, scales: torch.Tensor | None = None
) -> torch.Tensor:
    """``weight`` (out, ...) rounded to numbers symmetric to zero, 2^bits - 1 for each scale.

    Args:
        per: ``channel``, ``tensor``, or ``group``: a scale for each run of ``group`` numbers along a row; a row whose
            length is no multiple of that has one scale.
        scales: distance of neighbouring numbers of each run, where they are not the weight's own (`weight_scales`).
    """
    runs = {"channel": len(weight), "tensor": 1, "group": len(weight)}[per]
    rows = weight.reshape(runs, -1)
    if per == "group" and rows.shape[1] % group == 0:
        rows = rows.reshape(-1, group)
    most = 2 ** (bits - 1) - 1
    zeros = torch.zeros(len(rows), dtype=torch.int32, device=weight.device)
    scales = weight_scales(rows, bits) if scales is None else scales
    return torch.fake_quantize_per_channel_affine(rows, scales, zeros, 0, -most, most).reshape(weight.shape)


def weight_scales(runs: torch.Tensor, bits: int) -> torch.Tensor:
    """Distance of neighbouring numbers of each run, fp32: the greatest of ``runs`` (..., numbers) is 2^(bits-1) - 1 of
    them from zero.
    """
    return (runs.detach().abs().amax(-1) / (2 ** (bits - 1) - 1)).clamp_min(1e-12).float()


class _Floor(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: torch.Tensor, step: float) -> torch.Tensor:
        return torch.floor(values / step) * step

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        return gradients[0], None


def fixed_point(values: torch.Tensor, step: float) -> torch.Tensor:
    """Exactly ``floor(values / step) * step``."""
    return _Floor.apply(values, step)  # type: ignore[no-any-return]

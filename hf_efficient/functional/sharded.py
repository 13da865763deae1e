"""Tensors of which each process holds a part (DTensor, as FSDP2 makes of parameters); plain ones pass as they are."""

from typing import Any

import torch


def own(tensor: torch.Tensor) -> torch.Tensor:
    """What this process holds of ``tensor``; a change of it is a change of ``tensor``."""
    found: Any = tensor
    return found.to_local() if _is_shared_out(tensor) else tensor


def own_part(values: torch.Tensor, like: Any) -> torch.Tensor:
    """Of ``values``, which every process has whole, what this one holds where they are shared out as ``like`` is."""
    if not _is_shared_out(like):
        return values
    from torch.distributed.tensor import distribute_tensor

    shared: Any = distribute_tensor(values, like.device_mesh, like.placements, src_data_rank=None)
    return shared.to_local().clone().to(own(like).device)  # else it would keep all of them alive


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """All of ``tensor`` on every process. All of them have to ask for it."""
    return joined(own(tensor), tensor) if _is_shared_out(tensor) else tensor


def joined(part: torch.Tensor, like: Any) -> torch.Tensor:
    """All of which each process holds a ``part``, shared out as ``like`` is. All of them have to ask for it."""
    if not _is_shared_out(like):
        return part
    from torch.distributed.tensor import DTensor

    sent = part.view(torch.uint8) if part.dtype == torch.bool else part  # gloo sends no bools
    shared = DTensor.from_local(
        sent, like.device_mesh, like.placements, run_check=False, shape=like.shape, stride=like.stride()
    )
    return shared.full_tensor().view(part.dtype).to(part.device)


def _is_shared_out(tensor: Any) -> bool:
    return hasattr(tensor, "full_tensor")  # importing DTensor to ask takes a second

"""How much memory an optimizer's state takes, inside and outside the embeddings."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn


def embedding_parameters(model: nn.Module) -> frozenset[int]:
    """`id` of every parameter that belongs to an `nn.Embedding` of ``model``."""
    embeddings = (module for module in model.modules() if isinstance(module, nn.Embedding))
    return frozenset(id(parameter) for module in embeddings for parameter in module.parameters(recurse=False))


def optimizer_state_bytes(
    optimizer: torch.optim.Optimizer, model: nn.Module, saved: Mapping[str, Any] | None = None
) -> dict[str, int]:
    """Bytes that the state of ``optimizer`` holds: ``{"embeddings": bytes, "other": bytes}``.

    Storages are counted, each once: of a quantized tensor its codes, scales and tables, not what it stands for.

    Args:
        model: the model whose parameters the optimizer updates.
        saved: a state dict of this optimizer (as in `optimizer.pt`) to count instead of its present state.
    """
    state = optimizer.state if saved is None else _by_parameter(optimizer, saved)
    embeddings, seen = embedding_parameters(model), set[Any]()
    total = {"embeddings": 0, "other": 0}
    for parameter, values in state.items():
        place = "embeddings" if id(parameter) in embeddings else "other"
        total[place] += sum(_storage_bytes(tensor, seen) for tensor in _tensors(values))
    return total


def adamw_state_bytes(model: nn.Module) -> dict[str, int]:
    """What two 32-bit moments per trained element would take, in the form of `optimizer_state_bytes`."""
    embeddings, total = embedding_parameters(model), {"embeddings": 0, "other": 0}
    for parameter in model.parameters():
        if parameter.requires_grad:
            total["embeddings" if id(parameter) in embeddings else "other"] += 8 * parameter.numel()
    return total


def _by_parameter(optimizer: torch.optim.Optimizer, saved: Mapping[str, Any]) -> dict[Any, Any]:
    """Saved states under the parameters they belong to: both sides list their groups in the same order."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    indices = [index for group in saved["param_groups"] for index in group["params"]]
    return {p: saved["state"][i] for p, i in zip(parameters, indices, strict=True) if i in saved["state"]}


def _tensors(values: Any) -> Iterator[torch.Tensor]:
    """Every plain tensor in nested ``values``; wrapper tensors (quantized, sharded) taken apart."""
    if isinstance(values, Mapping):
        for value in values.values():
            yield from _tensors(value)
    elif isinstance(values, torch.Tensor) and hasattr(values, "__tensor_flatten__"):
        yield from _tensors({name: getattr(values, name) for name in values.__tensor_flatten__()[0]})
    elif isinstance(values, torch.Tensor):
        yield values
    elif isinstance(values, Sequence) and not isinstance(values, str):
        for value in values:
            yield from _tensors(value)


def _storage_bytes(tensor: torch.Tensor, seen: set[Any]) -> int:
    storage = tensor.untyped_storage()
    key = (tensor.device, storage.data_ptr())
    if key in seen:
        return 0
    seen.add(key)
    return storage.nbytes()

"""Examples of a padded batch, one by one: without their padding, recognised again, and padded anew."""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import torch

DECODER = "decoder_"


def positions(inputs: Mapping[str, Any]) -> torch.Tensor | None:
    """Which positions are not padding, boolean (examples, positions); None where a batch has no attention mask."""
    mask = inputs.get("attention_mask")
    return None if mask is None or mask.dim() != 2 else mask.bool()


def decoder_positions(inputs: Mapping[str, Any]) -> torch.Tensor | None:
    """The same for a decoder: its own mask, else up to the last label; None where neither is there.

    A decoder without inputs or labels of its own reads what the encoder does, and has its mask.
    """
    mask = inputs.get("decoder_attention_mask")
    if mask is not None:
        return mask.bool()
    if labels_are_tokens(inputs):
        counted = inputs["labels"].ne(-100)
        return counted.flip(1).cumsum(1).flip(1) > 0
    given = inputs.get("decoder_input_ids")
    return positions(inputs) if given is None else torch.ones_like(given, dtype=torch.bool)


def labels_are_tokens(inputs: Mapping[str, Any]) -> bool:
    """Whether there is an integer label for each of several positions."""
    labels = inputs.get("labels")
    return isinstance(labels, torch.Tensor) and labels.dim() == 2 and not labels.is_floating_point()


def counted_outputs(inputs: Mapping[str, Any], logits: torch.Tensor, shifted: bool = False) -> torch.Tensor:
    """Which outputs the training loss counts, boolean: the shape of ``logits`` without the last dimension.

    Args:
        inputs: the batch; outputs with a label count; where there are no labels, all but padding.
        logits: shape (examples, ..., outputs).
        shifted: as in a causal language model, each position predicts the next one's label.
    """
    labels, shape = inputs.get("labels"), logits.shape[:-1]
    if isinstance(labels, torch.Tensor) and labels.shape == shape and not labels.is_floating_point():
        counted: torch.Tensor = labels != -100
        return torch.cat([counted[:, 1:], torch.zeros_like(counted[:, :1])], dim=1) if shifted else counted
    mask = positions(inputs)
    return mask if mask is not None and mask.shape == shape else torch.ones_like(logits[..., 0], dtype=torch.bool)


def example_keys(
    inputs: Mapping[str, torch.Tensor], mask: torch.Tensor | None, decoder_mask: torch.Tensor | None
) -> list[str]:
    """A name for each example (hexadecimal, 128 bits) that depends on its values alone, not on how it was padded.

    Args:
        inputs: tensors whose first dimension is examples.
        mask: of the encoder or the whole model, as `positions` gives it; strips tensors of its length.
        decoder_mask: as `decoder_positions` gives it; strips labels and what is named ``decoder_...``.
    """
    columns = {}
    for name in sorted(inputs):
        stripping = decoder_mask if name == "labels" or name.startswith(DECODER) else mask
        columns[name] = split(inputs[name], stripping)
    digests = []
    for rows in zip(*columns.values(), strict=True):
        digest = hashlib.blake2b(digest_size=16)
        for name, row in zip(columns, rows, strict=True):
            digest.update(f"{name} {row.dtype} {tuple(row.shape)}".encode())
            digest.update(raw_bytes(row))
        digests.append(digest.hexdigest())
    return digests


def raw_bytes(tensor: torch.Tensor) -> bytes:
    """The values of ``tensor`` as they lie in memory, of any number type."""
    return tensor.detach().contiguous().cpu().reshape(-1).view(torch.uint8).numpy().tobytes()


def split(value: torch.Tensor, mask: torch.Tensor | None) -> list[torch.Tensor]:
    """Rows of ``value`` (examples, positions, ...) on the CPU without padding; whole where the mask does not fit."""
    if mask is None or value.shape[:2] != mask.shape:
        return list(value.detach().cpu().unbind())
    return list(value.detach()[mask].cpu().split(mask.sum(1).tolist()))


def join(rows: Sequence[torch.Tensor], mask: torch.Tensor | None, device: torch.device | str = "cpu") -> torch.Tensor:
    """The padded batch of ``rows``, in fp32 on ``device``: what `split` took apart, with zeros for padding."""
    if mask is None:
        return torch.stack(list(rows)).to(device).float()
    joined = torch.zeros(*mask.shape, *rows[0].shape[1:], device=device)
    joined[mask.to(device)] = torch.cat(list(rows)).to(device).float()
    return joined

"""Ranges of inputs that a model was trained with, kept in its config for the export."""

import zlib
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

from hf_efficient.functional.sharded import whole

ATTRIBUTE = "activation_ranges"
"""Of the config: path of a layer -> least input, greatest input, checksum of the weights that they go with."""


class Range(NamedTuple):
    """Least and greatest input of the linear layer that has these weights (out, in)."""

    weight: np.ndarray
    low: float
    high: float


def keep_ranges(model: nn.Module, ranges: Mapping[str, torch.Tensor]) -> None:
    """Put ``ranges`` (path of a layer -> shape (2,)) into the model's config; none take away what was there."""
    config: Any = getattr(model, "config", None)
    if config is None:
        return
    vars(config).pop(ATTRIBUTE, None)
    if ranges:
        kept = {path: [*found.tolist(), _checksum(_weight(model, path))] for path, found in ranges.items()}
        setattr(config, ATTRIBUTE, kept)


def trained_ranges(model: nn.Module) -> Iterator[Range]:
    """What `keep_ranges` kept, of layers whose weights are still the same: others were trained on, or cut, since."""
    for path, (low, high, checksum) in getattr(getattr(model, "config", None), ATTRIBUTE, {}).items():
        try:
            weight = _weight(model, path)
        except AttributeError:
            continue
        if _checksum(weight) == checksum:
            yield Range(weight, low, high)


def _weight(model: nn.Module, path: str) -> np.ndarray:
    return whole(model.get_parameter(f"{path}.weight").detach()).float().cpu().numpy()


def _checksum(weight: np.ndarray) -> int:
    return zlib.crc32(np.ascontiguousarray(weight).tobytes())

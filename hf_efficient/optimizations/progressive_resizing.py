"""Progressive resizing: images grow while a model trains; of small ones a ViT makes fewer tokens."""

import inspect
import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.functional import interpolate
from transformers import TrainerState

from hf_efficient.errors import ConfigError, NoEffectWarning
from hf_efficient.optimization import Context, Optimization, Order
from hf_efficient.timing import evaluating

IMAGES, KEYWORD = "pixel_values", "interpolate_pos_encoding"
STRIDE = 32
"""Sides are multiples of it where a configuration has no patch size: by so much convolutions shrink an image."""


@dataclass(eq=False, kw_only=True)
class ProgressiveResizing(Optimization):
    """Train on small images first, on larger ones patch by patch, and on whole ones at the end.

    Tokens of a ViT grow with the square of the sides; its encodings of positions are interpolated. Sides grow evenly,
    as in progressive learning (Tan and Le 2021, arXiv 2104.00298, section 4.2, there with more regularization of larger
    images). Whole ones at the end take the model to what it serves (Touvron et al. 2019, arXiv 1906.06423).
    """

    start: float = 0.5
    """Sides of the first images over those of whole ones, above 0; rounded to whole patches. 1: they are whole."""
    until: float = 0.9
    """Part of the training, from 0 to 1, after which images are whole."""

    name = "progressive_resizing"
    order = Order.PRECISION

    def __post_init__(self) -> None:
        if not 0 < self.start <= 1:
            raise ConfigError(f"progressive_resizing.start must be above 0 and at most 1, got {self.start:g}")
        if not 0 <= self.until <= 1:
            raise ConfigError(f"progressive_resizing.until must be from 0 to 1, got {self.until:g}")
        self.reset()

    def reset(self) -> None:
        self._able = False
        self._grown = 1.0  # of the way from the first sides to whole ones
        self._multiple = STRIDE
        self._keywords: dict[str, Any] = {}
        self._told: dict[str, Any] = {}

    def prepare_model(self, model: nn.Module, context: Context) -> nn.Module:
        self.reset()
        batches = context.calibration(1)
        images = batches[0].get(IMAGES) if batches else None
        if not isinstance(images, torch.Tensor) or images.dim() != 4:
            warnings.warn("progressive_resizing: batches have no images", NoEffectWarning, 2)
            return model
        base: Any = model.get_base_model() if hasattr(model, "peft_config") else model  # type: ignore[operator]
        patch = getattr(getattr(base, "config", None), "patch_size", STRIDE)
        self._multiple = patch if isinstance(patch, int) else max(patch)
        self._keywords = {KEYWORD: True} if KEYWORD in inspect.signature(base.forward).parameters else {}
        whole = list(images.shape[2:])
        first = [self._side(side, 0.0) for side in whole]
        if first == whole or not self.until:
            asked = f"start={self.start:g} and until={self.until:g}, and patches or strides of {self._multiple}"
            warnings.warn(f"progressive_resizing: images of {whole} pixels stay so with {asked}", NoEffectWarning, 2)
            return model
        self._try(model, batches[0], self._resized(batches[0], 0.0))
        self._able = True
        self._told = {"first_sides": first, "whole_sides": whole}
        return model

    def _resized(self, batch: Mapping[str, Any], grown: float) -> dict[str, Any]:
        sides = [self._side(side, grown) for side in batch[IMAGES].shape[2:]]
        return {**batch, **self._keywords, IMAGES: interpolate(batch[IMAGES], size=sides, mode="area")}

    def _side(self, whole: int, grown: float) -> int:
        first = min(whole, max(1, round(self.start * whole / self._multiple)) * self._multiple)
        return whole if grown >= 1 else first + int((whole - first) * grown / self._multiple) * self._multiple

    @staticmethod
    @torch.no_grad()
    def _try(model: Any, batch: Mapping[str, Any], smaller: Mapping[str, Any]) -> None:
        """Refuse inputs that belong to places in the image, and a model whose images have one size."""
        placed = [
            name
            for name, value in batch.items()
            if name != IMAGES and isinstance(value, torch.Tensor) and (value.dim() > 2 or value.dtype == torch.bool)
        ]
        if placed:
            raise ConfigError(
                f"progressive_resizing makes images smaller, not what belongs to places in them: {', '.join(placed)}; "
                "drop progressive_resizing"
            )
        try:
            with evaluating(model):
                model(**smaller)
        except (AssertionError, RuntimeError, TypeError, ValueError) as error:
            raise ConfigError(
                f"progressive_resizing needs a model that takes images of several sizes, and this "
                f"{type(model).__name__} does not: {error}; drop progressive_resizing"
            ) from error

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._grown = self._at(state.global_step, state) if self._able else 1.0

    def _at(self, step: int, state: TrainerState) -> float:
        return min(1.0, step / (self.until * state.max_steps))

    def train_batch(self, batch: dict[str, Any]) -> dict[str, Any]:
        return batch if self._grown >= 1 else self._resized(batch, self._grown)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if not self._able:
            return
        whole, steps = self._told["whole_sides"], range(state.global_step)
        pixels = sum(math.prod(self._side(side, self._at(step, state)) for side in whole) for step in steps)
        self._told["pixels_spared"] = round(1 - pixels / (len(steps) * math.prod(whole)), 4)

    def describe(self) -> dict[str, Any]:
        return dict(self._told)

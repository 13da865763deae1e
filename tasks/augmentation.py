"""Images that a training sees differently in every epoch: cut out and mirrored at random."""

import math
import zlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field
from torch.nn.functional import interpolate
from torch.utils.data import DataLoader
from transformers import TrainerCallback

from hf_efficient.trainer import EfficientTrainer

RATIOS = (3 / 4, 4 / 3)
"""Width over height of what is cut out."""
TRIES = 10
"""Random shapes of which one has to fit into the image; else it stays whole."""


class AugmentationSettings(BaseModel):
    """What happens to training images."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    least_area: float = Field(default=1.0, gt=0, le=1)
    """A rectangle of random size, at least this share of the image, is cut out and resized to the whole (Szegedy et
    al. 2015, arXiv 1409.4842, section 6); 1: none."""

    mirrored: float = Field(default=0.5, ge=0, le=1)
    """Share of the images that is mirrored; 0 where left and right matter, as in digits and letters."""


class Augmentation(TrainerCallback):
    """Changes ``pixel_values`` of rows, uint8 (channels, height, width).

    What happens to an image goes by a seed, the epoch and the image itself, so that neither the number of data workers
    nor a resumed training makes a difference.
    """

    def __init__(self, settings: AugmentationSettings):
        self.settings = settings
        self._epoch = torch.zeros((), dtype=torch.long).share_memory_()  # data workers see it change

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._epoch.fill_(int(state.epoch or 0))

    def __call__(self, row: dict[str, Any], seed: int) -> dict[str, Any]:
        pixels = np.ascontiguousarray(row["pixel_values"])
        random = np.random.default_rng((seed, int(self._epoch), zlib.crc32(pixels)))
        if self.settings.least_area < 1:
            pixels = _resized(pixels, *_rectangle(random, *pixels.shape[1:], self.settings.least_area))
        if random.random() < self.settings.mirrored:
            pixels = pixels[..., ::-1]
        return {**row, "pixel_values": pixels}


def _rectangle(random: np.random.Generator, height: int, width: int, least: float) -> tuple[slice, slice]:
    for _ in range(TRIES):
        area = random.uniform(least, 1) * height * width
        ratio = math.exp(random.uniform(*map(math.log, RATIOS)))
        high, wide = round(math.sqrt(area / ratio)), round(math.sqrt(area * ratio))
        if 0 < high <= height and 0 < wide <= width:
            top, left = random.integers(height - high + 1), random.integers(width - wide + 1)
            return slice(top, top + high), slice(left, left + wide)
    return slice(0, height), slice(0, width)


def _resized(pixels: np.ndarray, rows: slice, columns: slice) -> np.ndarray:
    """What is in the rectangle, at the size of ``pixels``."""
    inside = torch.from_numpy(np.ascontiguousarray(pixels[:, rows, columns]))[None]
    return interpolate(inside, pixels.shape[1:], mode="bilinear", antialias=True)[0].numpy()


class Augmenting:
    """A collator of rows that are augmented first."""

    def __init__(self, augmentation: Augmentation, seed: int, collator: Callable[[Sequence[Any]], Any]):
        self.augmentation, self.seed, self.collator = augmentation, seed, collator

    def __call__(self, rows: Sequence[dict[str, Any]]) -> Any:
        return self.collator([self.augmentation(row, self.seed) for row in rows])


class AugmentingTrainer(EfficientTrainer):
    """Augments what it trains on, in the data workers where there are any; evaluation sees images as they are."""

    def __init__(self, *args: Any, augmentation: AugmentationSettings | None = None, **kwargs: Any):
        self.augmentation = None if augmentation is None else Augmentation(augmentation)
        super().__init__(*args, **kwargs)
        if self.augmentation is not None:
            self.add_callback(self.augmentation)

    def get_train_dataloader(self) -> DataLoader:
        if self.augmentation is None:
            return super().get_train_dataloader()
        own = self.data_collator
        self.data_collator = Augmenting(self.augmentation, self.args.seed, own)
        try:
            return super().get_train_dataloader()
        finally:
            self.data_collator = own

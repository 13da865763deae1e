"""Image classification: a class, several, or a number for each image."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from datasets import Array3D, Dataset
from PIL import Image
from transformers import PreTrainedModel

from hf_efficient.errors import ConfigError
from hf_efficient.tasks.augmentation import AugmentationSettings, AugmentingTrainer
from hf_efficient.tasks.classification import Classification
from hf_efficient.tasks.images import ImageData, ImageTask, resized
from hf_efficient.tasks.targets import LabelledData


class ImageClassificationData(ImageData, LabelledData):
    """Columns of a set of labelled images."""

    augmentation: AugmentationSettings | None = None
    """What training images go through at random, in every epoch anew; None: nothing."""

    def columns(self) -> list[str]:
        return [self.image, self.label]


class ImageClassification(ImageTask, Classification):
    """A label per image."""

    name = "image-classification"
    pipeline = "image-classification"
    auto_model = "AutoModelForImageClassification"
    data_settings = ImageClassificationData

    trainer_class: type = AugmentingTrainer

    settings: ImageClassificationData

    def trainer(self, **kwargs: Any) -> Any:
        settings = self.settings.augmentation
        return super().trainer(**({} if settings is None else {"augmentation": settings}), **kwargs)

    def load_model(self, model: str, **kwargs: Any) -> PreTrainedModel:
        loaded = super().load_model(model, **kwargs)
        size = getattr(loaded.config, "image_size", None)
        if self.processor is not None and size is not None:
            wanted = (size, size) if isinstance(size, int) else tuple(size)
            given = resized(self.processor, [Image.new(self.mode, (64, 48))])[0].shape[1:]
            if given != wanted:
                raise ConfigError(
                    f"model '{model}' takes images of {_size(wanted)} pixels, but its processor makes them "
                    f"{_size(given)}; set the size in its preprocessor_config.json"
                )
        return loaded

    def encode(self, split: Dataset) -> Dataset:
        """``pixel_values`` uint8 (channels, height, width), resized, to be scaled by the collator; ``labels``."""
        processor, indices, label = self.processor, self.indexer(split), self.settings.label

        def make(images: list[Image.Image], batch: dict[str, list], rows: list[int]) -> dict[str, Any]:
            made: dict[str, Any] = {"pixel_values": _of_one_size(processor, images)}
            if indices is not None:
                made["labels"] = indices(batch[label])
            return made

        shape = _of_one_size(processor, [self.raw(self.undecoded(split)[0])])[0].shape
        features = {"pixel_values": Array3D(shape, "uint8"), "labels": self.target.feature()}
        if indices is None:
            del features["labels"]
        made = self.map_images(split, make, features)
        return made.with_format("numpy", columns=["pixel_values"], output_all_columns=True, dtype=np.uint8)

    def collator(self) -> Callable[[list[dict[str, Any]]], dict[str, Any]]:
        """Rescales and normalises as the processor says."""
        return ImageCollator(self.processor)


class ImageCollator:
    """Joins rows of resized images into ``pixel_values`` float32 (images, channels, height, width), and ``labels``."""

    def __init__(self, processor: Any):
        self.processor = processor

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        batch = dict(
            self.processor(
                [np.asarray(row["pixel_values"]) for row in rows],
                do_resize=False,
                do_center_crop=False,
                input_data_format="channels_first",
                return_tensors="pt",
            )
        )
        if "labels" in rows[0]:
            labels = torch.as_tensor(np.asarray([row["labels"] for row in rows]))
            batch["labels"] = labels.float() if labels.is_floating_point() else labels
        return batch


def _of_one_size(processor: Any, images: list[Image.Image]) -> list[np.ndarray]:
    found = resized(processor, images)
    if len({array.shape for array in found}) > 1:
        raise ConfigError(f"{type(processor).__name__} makes images of several sizes; use one that makes one size")
    return found


def _size(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape))

"""Image classification: a class, several, or a number for each image."""

import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from datasets import Array3D, Dataset, Features
from PIL import Image, ImageOps, UnidentifiedImageError
from transformers import AutoConfig, PreTrainedModel

from hf_efficient.errors import ConfigError, DataError
from hf_efficient.pretrained import load_pretrained, resolve_model
from hf_efficient.tasks.classification import Classification
from hf_efficient.tasks.files import FileData, contents, file_named, holds_files, is_named
from hf_efficient.tasks.targets import LabelledData

_AT_ONCE = 100  # images in memory at their full size


class ImageClassificationData(FileData, LabelledData):
    """Columns of a set of labelled images."""

    image: str = "image"
    """Column of the image: as `datasets` has it, the bytes of a file, or the path of one, seen from the data file's
    folder or from here."""

    def columns(self) -> list[str]:
        return [self.image, self.label]


class ImageClassification(Classification):
    """A label per image. Images are read and resized once; what is left, per batch, is arithmetic."""

    name = "image-classification"
    pipeline = "image-classification"
    auto_model = "AutoModelForImageClassification"
    auto_processor = "AutoImageProcessor"
    data_settings = ImageClassificationData

    settings: ImageClassificationData

    _mode = "RGB"

    def check_inputs(self, dataset: Dataset, where: str) -> None:
        column, feature = self.settings.image, dataset.features[self.settings.image]
        if not (isinstance(feature, datasets.Image) or holds_files(feature)):
            given = getattr(feature, "dtype", type(feature).__name__)
            raise DataError(
                f"{where}: column '{column}' must hold images, bytes or paths, got {given}; "
                f"name another column of {', '.join(dataset.column_names)}"
            )

    def load_processor(self, model: str, **kwargs: Any) -> Any:
        config = load_pretrained(AutoConfig, resolve_model(model))
        self._mode = "L" if getattr(config, "num_channels", 3) == 1 else "RGB"
        return super().load_processor(model, **kwargs)

    def load_model(self, model: str, **kwargs: Any) -> PreTrainedModel:
        loaded = super().load_model(model, **kwargs)
        size = getattr(loaded.config, "image_size", None)
        if self.processor is not None and size is not None:
            wanted = (size, size) if isinstance(size, int) else tuple(size)
            given = _resized(self.processor, [Image.new(self._mode, (64, 48))])[0].shape[1:]
            if given != wanted:
                raise ConfigError(
                    f"model '{model}' takes images of {_size(wanted)} pixels, but its processor makes them "
                    f"{_size(given)}; set the size in its preprocessor_config.json"
                )
        return loaded

    def encode(self, split: Dataset) -> Dataset:
        """``pixel_values`` uint8 (channels, height, width), resized, to be scaled by the collator; ``labels``."""
        processor, mode, indices = self.processor, self._mode, self.indexer(split)
        column, label, folders = self.settings.image, self.settings.label, self.settings.folders()
        if isinstance(split.features[column], datasets.Image):
            split = split.cast_column(column, datasets.Image(decode=False))

        def read(batch: dict[str, list], rows: list[int]) -> dict[str, Any]:
            images = [_opened(value, row, mode, folders) for value, row in zip(batch[column], rows, strict=True)]
            made: dict[str, Any] = {"pixel_values": _resized(processor, images)}
            if indices is not None:
                made["labels"] = indices(batch[label])
            return made

        first = split[0][column]
        shape = _resized(processor, [_opened(first, 0, mode, folders)])[0].shape
        features = {"pixel_values": Array3D(shape, "uint8"), "labels": self.target.feature()}
        if indices is None:
            del features["labels"]
        options = {"with_indices": True, "batch_size": _AT_ONCE, "features": Features(features)}
        if is_named(first):
            options["load_from_cache_file"] = False
        made = self.map_batches(split, read, **options)
        return made.with_format("numpy", columns=["pixel_values"], output_all_columns=True, dtype=np.uint8)

    def collator(self) -> Callable[[list[dict[str, Any]]], dict[str, Any]]:
        """Rescales and normalises as the processor says."""
        return ImageCollator(self.processor)

    def raw(self, example: dict[str, Any]) -> Any:
        """The image as PIL has it."""
        return _opened(example[self.settings.image], 0, self._mode, self.settings.folders())

    def preprocess(self, inputs: list[Any]) -> dict[str, Any]:
        """Resized, rescaled and normalised."""
        return dict(self.processor(inputs, return_tensors="pt"))


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


def _resized(processor: Any, images: list[Any]) -> list[np.ndarray]:
    """``images``, as PIL has them, of the size that the processor gives: uint8, (channels, height, width)."""
    arrays = [np.asarray(image)[..., None] if image.mode == "L" else np.asarray(image) for image in images]
    made = processor(arrays, do_rescale=False, do_normalize=False, input_data_format="channels_last")["pixel_values"]
    found = [np.asarray(pixels).round().clip(0, 255).astype(np.uint8) for pixels in made]
    if len({array.shape for array in found}) > 1:
        raise ConfigError(f"{type(processor).__name__} makes images of several sizes; use one that makes one size")
    return found


def _opened(value: Any, row: int, mode: str, folders: Sequence[Path]) -> Image.Image:
    """The image that a row's value holds or names, upright.

    Args:
        row: its number, from 0.
    """
    if isinstance(value, Image.Image):
        return value.convert(mode)
    content, name = contents(value)
    try:
        source: Any = io.BytesIO(content) if isinstance(content, bytes) else file_named(str(content), folders)
        with Image.open(source) as image:
            return ImageOps.exif_transpose(image).convert(mode)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:  # of PIL's readers
        is_other = isinstance(error, UnidentifiedImageError)  # whose words are an object's address
        reason = (
            "of no format that is known" if is_other else " ".join(f"{type(error).__name__}: {error}".split())[:140]
        )
        raise DataError(
            f"row {row + 1}: cannot read the image{f' {name}' if name else ''} ({reason}); replace it or delete the row"
        ) from error


def _size(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape))

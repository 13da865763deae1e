"""What tasks on images share: images read, turned upright and resized by the processor, once."""

import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from datasets import Dataset, Features
from PIL import Image, ImageOps, UnidentifiedImageError
from transformers import AutoConfig

from hf_efficient.errors import DataError
from hf_efficient.pretrained import load_pretrained, resolve_model
from hf_efficient.task import Task
from hf_efficient.tasks.files import FileData, contents, file_named, holds_files, is_named

_AT_ONCE = 100  # images in memory at their full size

Maker = Callable[[list[Image.Image], dict[str, list], list[int]], dict[str, Any]]
"""Images of some rows, the rows' columns, and their numbers from 0 -> encoded columns."""


class ImageData(FileData):
    """The column of the image."""

    image: str = "image"
    """Column of the image: as `datasets` has it, the bytes of a file, or the path of one, seen from the data file's
    folder or from here."""


class ImageTask(Task):
    """Images are read and resized once; what is left, per batch, is arithmetic."""

    auto_processor = "AutoImageProcessor"
    data_settings = ImageData

    settings: ImageData

    mode = "RGB"
    """Of PIL: what images are read as."""

    def check_inputs(self, dataset: Dataset, where: str) -> None:
        """Refuse a column that holds no images.

        Raises:
            DataError: names ``where``, the column and its type.
        """
        column, feature = self.settings.image, dataset.features[self.settings.image]
        if not (isinstance(feature, datasets.Image) or holds_files(feature)):
            given = getattr(feature, "dtype", type(feature).__name__)
            raise DataError(
                f"{where}: column '{column}' must hold images, bytes or paths, got {given}; "
                f"name another column of {', '.join(dataset.column_names)}"
            )

    def load_processor(self, model: str, **kwargs: Any) -> Any:
        config = load_pretrained(AutoConfig, resolve_model(model))
        self.mode = "L" if getattr(config, "num_channels", 3) == 1 else "RGB"
        return super().load_processor(model, **kwargs)

    def undecoded(self, split: Dataset) -> Dataset:
        """``split`` with its images as bytes and paths: reading one that is broken ends in an error of ours."""
        column = self.settings.image
        is_decoded = isinstance(split.features[column], datasets.Image)
        return split.cast_column(column, datasets.Image(decode=False)) if is_decoded else split

    def map_images(self, split: Dataset, make: Maker, features: dict[str, Any]) -> Dataset:
        """`map_batches` by ``make``, which gets the images of the rows.

        Args:
            features: of what it makes.
        """
        mode, column, folders = self.mode, self.settings.image, self.settings.folders()
        split = self.undecoded(split)

        def read(batch: dict[str, list], rows: list[int]) -> dict[str, Any]:
            images = [opened(value, row, mode, folders) for value, row in zip(batch[column], rows, strict=True)]
            return make(images, batch, rows)

        options = {"with_indices": True, "batch_size": _AT_ONCE, "features": Features(features)}
        if is_named(split[0][column]):
            options["load_from_cache_file"] = False
        return self.map_batches(split, read, in_processes=True, **options)

    def raw(self, example: dict[str, Any]) -> Image.Image:
        """The image as PIL has it."""
        return opened(example[self.settings.image], 0, self.mode, self.settings.folders())

    def preprocess(self, inputs: list[Any]) -> dict[str, Any]:
        """What the processor makes of images."""
        return dict(self.processor(inputs, return_tensors="pt"))


def resized(processor: Any, images: list[Any], **options: Any) -> list[np.ndarray]:
    """``images``, as PIL has them, of the size that the processor gives: uint8, (channels, height, width).

    Args:
        options: more of what the processor takes.
    """
    arrays = [np.asarray(image)[..., None] if image.mode == "L" else np.asarray(image) for image in images]
    options = {"do_rescale": False, "do_normalize": False, "input_data_format": "channels_last", **options}
    made = processor(arrays, **options)["pixel_values"]
    return [np.asarray(pixels).round().clip(0, 255).astype(np.uint8) for pixels in made]


def opened(value: Any, row: int, mode: str, folders: Sequence[Path]) -> Image.Image:
    """The image that a row's value holds or names, upright.

    Args:
        row: its number, from 0.

    Raises:
        DataError: it cannot be read.
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

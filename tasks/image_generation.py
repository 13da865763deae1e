"""Image generation: an autoregressive model of the ImageGPT kind, trained on images as sequences of palette colours."""

import io
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from datasets import Dataset, DatasetDict, List, Value
from PIL import Image
from transformers import (
    MODEL_FOR_CAUSAL_IMAGE_MODELING_MAPPING,
    AutoConfig,
    EvalPrediction,
    PreTrainedModel,
    default_data_collator,
)
from transformers.models.auto.auto_factory import _BaseAutoModelClass

from hf_efficient.errors import ConfigError
from hf_efficient.pretrained import load_pretrained, resolve_model
from hf_efficient.tasks.images import ImageData, ImageTask
from hf_efficient.tasks.sampling import seeded
from hf_efficient.tasks.text_generation import TextGeneration
from hf_efficient.timing import GeneratingRuntime

NEW_PIXELS = 32
"""The model is timed on completing images whose last pixels, so many, are missing."""

SAMPLES = 16
"""Images that are generated to be shown."""


class ImageGenerationData(ImageData):
    """Column of a set of images."""

    def columns(self) -> list[str]:
        return [self.image]


class AutoModelForCausalImageModeling(_BaseAutoModelClass):
    """transformers has the table of these models, and no class for it."""

    _model_mapping = MODEL_FOR_CAUSAL_IMAGE_MODELING_MAPPING


class ImageGeneration(ImageTask):
    """Pixels one after the other, row by row, each a colour of the processor's palette; judged by bits for each.

    The first token, which no pixel has, starts an image. As many positions as pixels, like published models have, leave
    no room for it and all pixels: the last pixel is then neither learnt nor judged.
    """

    name = "image-generation"
    pipeline = ""
    auto_model = "AutoModelForCausalImageModeling"
    main_metric = "bits_per_dim"
    greater_is_better = False
    data_settings = ImageGenerationData

    settings: ImageGenerationData

    reduce_logits = staticmethod(TextGeneration.reduce_logits)

    _start = _positions = 0
    _model: PreTrainedModel | None = None
    """The one that was trained or judged last."""

    def check(self, data: DatasetDict) -> None:
        for split, dataset in data.items():
            self.check_inputs(dataset, f"data.{split}")
        super().check(data)

    def auto_class(self) -> Any:
        return AutoModelForCausalImageModeling

    def load_processor(self, model: str, **kwargs: Any) -> Any:
        config: Any = load_pretrained(AutoConfig, resolve_model(model))
        if config.model_type not in {known.model_type for known in MODEL_FOR_CAUSAL_IMAGE_MODELING_MAPPING}:
            raise ConfigError(f"'{model}' is a '{config.model_type}' model; image-generation takes those of ImageGPT")
        processor = super().load_processor(model, **kwargs)
        colours = 0 if processor.clusters is None else len(processor.clusters)
        pixels, self._start, self._positions = self._pixels, config.vocab_size - 1, config.n_positions
        if colours != self._start or pixels > self._positions:
            raise ConfigError(
                f"model '{model}' takes {self._start} colours and {self._positions} positions, but its processor has "
                f"{colours} colours (clusters) and makes images of {pixels} pixels (size); set these in its "
                "preprocessor_config.json"
            )
        return processor

    @property
    def _pixels(self) -> int:
        return self.processor.size["height"] * self.processor.size["width"]

    def encode(self, split: Dataset) -> Dataset:
        """``input_ids``: the start and the colour of each pixel; ``labels``: the same."""
        quantize = self._quantize()

        def make(images: list[Image.Image], batch: dict[str, list], rows: list[int]) -> dict[str, Any]:
            ids = quantize(images)
            return {"input_ids": ids, "labels": ids}

        return self.map_images(split, make, dict.fromkeys(("input_ids", "labels"), List(Value("int64"))))

    def _quantize(self) -> Callable[[list[Image.Image]], list[list[int]]]:
        """What makes ids of images; it refers to values only."""
        processor, start, limit = self.processor, self._start, self._positions

        def ids(images: list[Image.Image]) -> list[list[int]]:
            made = processor([np.asarray(image) for image in images], input_data_format="channels_last")["input_ids"]
            return [[start, *np.asarray(one).tolist()][:limit] for one in made]

        return ids

    def collator(self) -> Callable[[list[dict[str, Any]]], dict[str, Any]]:
        """Stacks rows, which are of equal length."""
        return default_data_collator

    def compute_metrics(self, prediction: EvalPrediction) -> dict[str, float]:
        """Bits per pixel, of colours of the palette, from losses in nats (images, pixels)."""
        return _scores(np.asarray(prediction.predictions))

    def baseline(self, data: DatasetDict, split: str) -> tuple[str, dict[str, float]]:
        """Each colour as probable as it is frequent at its position in train, one more of each counted."""
        train, judged = (np.asarray(self.encode(data[name])["labels"])[:, 1:] for name in ("train", split))
        counts = 1 + np.stack([np.bincount(column, minlength=self._start) for column in train.T])
        shares = counts / counts.sum(axis=1, keepdims=True)
        losses = -np.log(shares[np.arange(shares.shape[0]), judged])
        return "each colour by its frequency at that pixel in train", _scores(losses)

    def trainer(self, **kwargs: Any) -> Any:
        made = super().trainer(**kwargs)
        self._model = made.model
        return made

    def details(self, prediction: EvalPrediction) -> dict[str, str | bytes]:
        """``samples.png``: images that the trainer's model generates, the same each time."""
        return {} if self._model is None else {"samples.png": self.samples(self._model)}

    def samples(self, model: PreTrainedModel, count: int = SAMPLES, seed: int = 0) -> bytes:
        """A PNG file: ``count`` images by ``model`` in a grid, drawn from its own distribution."""
        device = model.device
        start = torch.full((count, 1), self._start, device=device)
        with seeded(device, seed):
            generator: Any = model.eval()
            ids = generator.generate(
                input_ids=start, attention_mask=torch.ones_like(start), max_new_tokens=self._pixels,
                do_sample=True, top_k=0, pad_token_id=self._start,
            )  # fmt: skip
        return self._grid(ids[:, 1:].cpu().numpy())

    def _grid(self, ids: np.ndarray) -> bytes:
        """A PNG file of images, given as colours (images, pixels)."""
        processor = self.processor
        colours = np.asarray(processor.clusters)
        if processor.do_normalize:
            colours = colours * np.asarray(processor.image_std) + np.asarray(processor.image_mean)
        height, width = processor.size["height"], processor.size["width"]
        across = math.ceil(math.sqrt(len(ids)))
        zoom = max(1, 96 // max(height, width))
        sheet = Image.new("RGB", (across * (width * zoom + 4), math.ceil(len(ids) / across) * (height * zoom + 4)))
        for index, one in enumerate(ids):
            pixels = (255 * colours[one]).round().clip(0, 255).astype(np.uint8).reshape(height, width, 3)
            image = Image.fromarray(pixels).resize((width * zoom, height * zoom), Image.Resampling.NEAREST)
            sheet.paste(image, (index % across * (width * zoom + 4) + 2, index // across * (height * zoom + 4) + 2))
        file = io.BytesIO()
        sheet.save(file, format="PNG")
        return file.getvalue()

    def preprocess(self, inputs: list[Any]) -> dict[str, Any]:
        """The beginnings of images."""
        return self.collator()(self._beginnings(self._quantize()(inputs)))

    def requests(self, rows: Dataset) -> Dataset:
        """Beginnings of images, to be completed."""
        return Dataset.from_list(self._beginnings(self.encode(rows)["input_ids"]))

    def runtime(self, model: PreTrainedModel) -> GeneratingRuntime:
        """Completes images."""
        return GeneratingRuntime(model, max_new_tokens=self._missing, do_sample=False, pad_token_id=self._start)

    @property
    def _missing(self) -> int:
        return min(NEW_PIXELS, self._pixels // 2)

    def _beginnings(self, ids: Any) -> list[dict[str, Any]]:
        length = 1 + self._pixels - self._missing
        return [{"input_ids": row[:length], "attention_mask": [1] * length} for row in ids]


def _scores(losses: np.ndarray) -> dict[str, float]:
    return {"bits_per_dim": float(losses.mean(dtype=np.float64) / math.log(2))}

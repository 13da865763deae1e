"""Object detection: boxes and classes of the objects in each image, by models of the DETR and YOLOS kind."""

import importlib.util
import json
import logging
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from datasets import ClassLabel, Dataset, DatasetDict, LargeList, List, Value
from PIL import Image
from torch import nn
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoConfig, EvalPrediction, PreTrainedConfig, PreTrainedModel

from hf_efficient.errors import ConfigError, DataError, unknown
from hf_efficient.pretrained import is_new, load_pretrained, resolve_model
from hf_efficient.tasks.boxes import BoxFormat, ObjectReader, average_precisions
from hf_efficient.tasks.boxes_picture import boxes_png
from hf_efficient.tasks.images import ImageData, ImageTask, resized
from hf_efficient.trainer import EfficientTrainer

logger = logging.getLogger(__name__)

PADDING = -100
"""In place of rows that an image has fewer than another: as a Trainer pads what it joins."""

SURE = 0.5
"""Predictions with a lower score are not shown; metrics count them all. As the pipeline has it."""

SHOWN_IMAGES = 8

SPREAD = 1.0
"""Standard deviation of new tokens and positions. With 0.5, `yolos-tiny` needs more than twice as many steps."""

_FEATURES = {
    "pixel_values": {"data": Value("binary"), "shape": List(Value("int32"))},
    "labels": {
        "class_labels": List(Value("int64")),
        "boxes": List(List(Value("float32"))),
        "orig_size": List(Value("int32")),
    },
}


class ObjectDetectionData(ImageData):
    """Columns of a set of images with boxes."""

    objects: str = "objects"
    """Column of the objects: a struct with a list of boxes and a list of classes, or a list of structs of both; empty
    lists where an image shows none."""

    bbox: str = "bbox"
    """What boxes are called in there: four numbers each."""

    category: str = "category"
    """What classes are called in there: names or whole numbers."""

    bbox_format: BoxFormat = "coco"
    """Of boxes, in pixels: ``coco``: left, top, width, height; ``voc``: left, top, right, bottom."""

    def columns(self) -> list[str]:
        return [self.image, self.objects]


class DetectionTrainer(EfficientTrainer):
    """Evaluates on arrays in place of lists of labels, so that batches and processes can be joined.

    Predictions (images, boxes, 6): score, class, left, top, right, bottom; label_ids (images, objects, 5): the same
    without score; in pixels of the image as it was, padded with `PADDING`.
    """

    def prediction_step(
        self, model: Any, inputs: dict[str, Any], prediction_loss_only: bool, ignore_keys: list[str] | None = None
    ) -> Any:
        inputs, loss, sizes = self._prepare_inputs(inputs), None, None
        labels = inputs.get("labels")
        with torch.no_grad(), self.compute_loss_context_manager():
            if labels is None:
                outputs = model(**inputs)
            else:
                loss, outputs = self.compute_loss(model, inputs, return_outputs=True)
                loss = loss.detach().mean()
                sizes = torch.stack([label["extent"] for label in labels])
        if prediction_loss_only:
            return loss, None, None
        processor: Any = self.processing_class
        found = processor.post_process_object_detection(outputs, threshold=0.0, target_sizes=sizes)
        said = [torch.cat((_column(one["scores"]), _column(one["labels"]), one["boxes"].float()), 1) for one in found]
        return loss, _padded(said), None if labels is None else _padded([_given(label) for label in labels])


class ObjectDetection(ImageTask):
    """Boxes and classes of objects, judged by COCO's mean average precision."""

    name = "object-detection"
    pipeline = "object-detection"
    auto_model = "AutoModelForObjectDetection"
    main_metric = "map"
    data_settings = ObjectDetectionData
    trainer_class = DetectionTrainer

    settings: ObjectDetectionData

    _most = 0
    """Objects of the image of train that has most."""

    def check(self, data: DatasetDict) -> None:
        found = {}
        for split, dataset in data.items():
            self.check_inputs(dataset, f"data.{split}")
            found[split] = self._names(dataset, split)
            if not any(found[split]):
                raise DataError(f"data.{split} has no object in any image; give images with objects")
        super().check(data)
        self._most = max(map(len, found["train"]))
        seen = {name for names in found["train"] for name in names}
        for split in set(data) - {"train"}:
            for row, names in enumerate(found[split], 1):
                if new := sorted(set(names) - seen):
                    raise DataError(
                        f"data.{split}: row {row}: no object of data.train is of {unknown('class', new[0], seen)}; "
                        "correct the class, or delete the object"
                    )

    def labels(self, data: DatasetDict) -> list[str]:
        """As declared by a ClassLabel, else sorted, numbers by value."""
        train = data["train"]
        names = {name for names in self._names(train, "train") for name in names}
        declared = self._reader(train).declared
        return [*declared] or sorted(
            names, key=lambda name: (not name.isdigit(), len(name) if name.isdigit() else 0, name)
        )

    def _names(self, dataset: Dataset, split: str) -> list[list[str]]:
        """Classes of the objects of each row.

        Raises:
            DataError: a column that holds no objects, or a row that holds none of this kind; names split and row.
        """
        column, where = self.settings.objects, f"data.{split}"
        for field in (self.settings.bbox, self.settings.category):
            fields = _fields(dataset.features[column])
            if field not in fields:
                reason = unknown("field", field, fields)
                raise DataError(f"{where}: column '{column}' must hold boxes and classes of objects; {reason}")
        reader = self._reader(dataset)
        try:
            return [reader.names(value, row) for row, value in enumerate(dataset[column])]
        except DataError as error:
            raise DataError(f"{where}: {error}") from error

    def _reader(self, dataset: Dataset) -> ObjectReader:
        settings = self.settings
        category = _fields(dataset.features[settings.objects])[settings.category]
        declared = category.names if isinstance(category, ClassLabel) else ()
        return ObjectReader(settings.bbox, settings.category, settings.bbox_format, tuple(declared))

    def load_model(self, model: str, **kwargs: Any) -> PreTrainedModel:
        _check_backbone(load_pretrained(AutoConfig, resolve_model(model)), model)
        loaded = super().load_model(model, **kwargs)
        if is_new(model):
            _spread(loaded)
        config: Any = loaded.config
        found = getattr(config, "num_queries", None) or getattr(config, "num_detection_tokens", self._most)
        if self._most > found:
            logger.warning(
                "an image of data.train has %d objects, and model '%s' finds %d at most; take one with more detection "
                "tokens or queries",
                *(self._most, model, found),
            )
        return loaded

    def encode(self, split: Dataset) -> Dataset:
        """``pixel_values``: resized images as bytes of uint8 and their shape (channels, height, width).

        ``labels``: ``class_labels``; ``boxes``, centre, width and height as shares of the image; ``orig_size``, height
        and width of the image as it was.
        """
        processor, settings, indices = self.processor, self.settings, {n: i for i, n in enumerate(self.label_names)}
        reader = self._reader(split) if settings.objects in split.column_names else None

        def make(images: list[Image.Image], batch: dict[str, list], rows: list[int]) -> dict[str, Any]:
            pixels = resized(processor, images, do_pad=False)
            made: dict[str, Any] = {"pixel_values": [{"data": one.tobytes(), "shape": one.shape} for one in pixels]}
            if reader is not None:
                made["labels"] = []
                for image, value, row in zip(images, batch[settings.objects], rows, strict=True):
                    boxes = reader.corners(value, row, *image.size) / np.array([*image.size, *image.size])
                    centred = np.concatenate(((boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]), 1)
                    classes = [indices[name] for name in reader.names(value, row)]
                    size = [image.height, image.width]
                    made["labels"].append({"class_labels": classes, "boxes": centred.tolist(), "orig_size": size})
            return made

        features = dict(_FEATURES)
        if reader is None:
            del features["labels"]
        return self.map_images(split, make, features)

    def collator(self) -> Callable[[list[dict[str, Any]]], dict[str, Any]]:
        """Rescales and normalises as the processor says, and pads to the largest image."""
        return DetectionCollator(self.processor)

    def compute_metrics(self, prediction: EvalPrediction) -> dict[str, float]:
        """``map``: mean of `average_precisions` over IoU and classes; ``map_50`` and ``map_75``: at one IoU."""
        found = self._precisions(prediction)
        means = {"map": found, "map_50": found[0], "map_75": found[5]}
        return {name: float(np.nanmean(values)) for name, values in means.items()}

    def baseline(self, data: DatasetDict, split: str) -> tuple[str, dict[str, float]]:
        """The mean box of the most frequent class of train, in each image."""
        train, judged = self.encode(data["train"])["labels"], self.encode(data[split])["labels"]
        pairs = [pair for row in train for pair in zip(row["class_labels"], row["boxes"], strict=True)]
        most = Counter(number for number, _ in pairs).most_common(1)[0][0]
        x, y, width, height = np.mean([box for number, box in pairs if number == most], axis=0)
        corners = np.array([x - width / 2, y - height / 2, x + width / 2, y + height / 2])
        sizes = np.array([[row["orig_size"][1], row["orig_size"][0]] * 2 for row in judged])
        said = np.concatenate((np.full((len(judged), 2), [1, most]), corners * sizes), 1)[:, None]
        given = _padded([_given(_tensors(row, torch.ones(2))) for row in judged])
        name = f"the mean box of '{self.label_names[most]}' in each image"
        return name, self.compute_metrics(EvalPrediction(said, given.numpy()))

    def per_class(self, prediction: EvalPrediction) -> dict[str, float]:
        """Average precision of each class that occurs, mean over IoU."""
        found = self._precisions(prediction).mean(axis=0)
        return {name: float(value) for name, value in zip(self.label_names, found, strict=True) if np.isfinite(value)}

    def details(self, prediction: EvalPrediction) -> dict[str, str | bytes]:
        """``boxes.jsonl``: objects of each image as given, and as predicted with a score of `SURE` or more.

        ``boxes.png``: the first images with both, where ``prediction.inputs`` has the rows.
        """
        said, given = _rows(prediction.predictions), _rows(prediction.label_ids)
        said = [rows[rows[:, 0] >= SURE] for rows in said]
        lines = (
            json.dumps({"given": self._told(known), "predicted": self._told(found)}, ensure_ascii=False)
            for known, found in zip(given, said, strict=True)
        )
        files: dict[str, str | bytes] = {"boxes.jsonl": "".join(f"{line}\n" for line in lines)}
        rows: Any = prediction.inputs
        if rows is not None:
            images = [self.raw(row) for row in rows.select(range(min(SHOWN_IMAGES, len(rows))))]
            files["boxes.png"] = boxes_png(images, said, given, self.label_names)
        return files

    def _precisions(self, prediction: EvalPrediction) -> np.ndarray:
        said, given = _rows(prediction.predictions), _rows(prediction.label_ids)
        return average_precisions(said, given, len(self.label_names))

    def _told(self, rows: np.ndarray) -> list[dict[str, Any]]:
        """Boxes as COCO has them."""
        told = []
        for *score, number, left, top, right, bottom in rows.tolist():
            box = [round(value, 1) for value in (left, top, right - left, bottom - top)]
            shown = {"category": self.label_names[int(number)], "bbox": box}
            told.append({**shown, **({"score": round(score[0], 4)} if score else {})})
        return told


class DetectionCollator:
    """Joins rows into ``pixel_values`` (images, channels, height, width) and a mask of what is not padding.

    ``labels``: for each image ``class_labels``, ``boxes`` as shares of the padded image, as models take them, and
    ``extent``: height and width of the padded image in pixels of the image as it was.
    """

    def __init__(self, processor: Any):
        self.processor = processor

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        given = [row["pixel_values"] for row in rows]
        images = [np.frombuffer(bytearray(one["data"]), np.uint8).reshape(one["shape"]) for one in given]
        batch = dict(self.processor(images, do_resize=False, input_data_format="channels_first", return_tensors="pt"))
        if "labels" in rows[0]:
            padded = torch.tensor(batch["pixel_values"].shape[-2:])
            ratios = [padded / torch.tensor(image.shape[-2:]) for image in images]
            batch["labels"] = [_tensors(row["labels"], ratio.flip(0)) for row, ratio in zip(rows, ratios, strict=True)]
        return batch


def _tensors(label: Mapping[str, Any], ratio: torch.Tensor) -> dict[str, torch.Tensor]:
    """What a model takes of one image's labels.

    Args:
        ratio: (width, height) of the padded image over the image.
    """
    boxes = torch.tensor(label["boxes"], dtype=torch.float32).reshape(-1, 4)
    return {
        "class_labels": torch.tensor(label["class_labels"], dtype=torch.int64),
        "boxes": boxes / ratio.repeat(2),
        "extent": torch.tensor(label["orig_size"]) * ratio.flip(0),
    }


def _given(label: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """Objects of one image: class, left, top, right, bottom in pixels, (objects, 5)."""
    centre, size = label["boxes"][:, :2], label["boxes"][:, 2:]
    corners = torch.cat((centre - size / 2, centre + size / 2), 1) * label["extent"].flip(0).repeat(2)
    return torch.cat((_column(label["class_labels"]), corners), 1)


def _column(values: torch.Tensor) -> torch.Tensor:
    return values.float()[:, None]


def _padded(rows: list[torch.Tensor]) -> torch.Tensor:
    return pad_sequence(rows, True, PADDING)


def _rows(padded: Any) -> list[np.ndarray]:
    """Of each image, without padding."""
    return [rows[rows[:, 0] != PADDING] for rows in np.asarray(padded)]


def _fields(feature: Any) -> dict[str, Any]:
    """Name of each field of a column of objects -> the type of its values; empty for another column."""
    inside = feature.feature if isinstance(feature, (List, LargeList)) else feature
    if not isinstance(inside, Mapping):
        return {}
    return {name: one.feature if isinstance(one, (List, LargeList)) else one for name, one in inside.items()}


def _spread(model: PreTrainedModel) -> None:
    """Random values for tokens and positions that transformers leaves at zero, since YOLOS starts from a trained ViT.

    Equal tokens say the same of every image, and learn to tell objects apart only slowly.
    """
    for name, parameter in model.named_parameters():
        if name.endswith(("detection_tokens", "position_embeddings")) and not parameter.any():
            nn.init.trunc_normal_(parameter, std=SPREAD)


def _check_backbone(config: PreTrainedConfig, model: str) -> None:
    backbone = getattr(config, "backbone_config", None)
    if getattr(backbone, "model_type", None) == "timm_backbone" and importlib.util.find_spec("timm") is None:
        raise ConfigError(
            f"model '{model}' has a backbone of the package timm, which is not installed; pip install timm, or take a "
            "model without one, as of the YOLOS kind"
        )

"""Object detection: boxes go through padding and back, labels of any number, and a model that learns them."""

import io
import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from datasets import ClassLabel, Dataset, DatasetDict, Features, List, Value
from PIL import Image
from transformers import (
    DetrConfig,
    DetrForObjectDetection,
    DetrImageProcessorPil,
    EvalPrediction,
    ResNetConfig,
    YolosConfig,
    YolosForObjectDetection,
    YolosImageProcessorPil,
    set_seed,
)

from hf_efficient.compress import compress
from hf_efficient.data import load
from hf_efficient.errors import ConfigError, DataError
from hf_efficient.task import get_task
from hf_efficient.tasks.object_detection import DetectionTrainer, ObjectDetection, ObjectDetectionData
from tests.tasks.conftest import task_trainer
from tests.tasks.test_image_classification import file_bytes

BOXES = List(List(Value("float64")))
COLOURS = {"blue": (10, 10, 250), "red": (250, 10, 10)}
SMALL = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 32}
STRETCHED = {"shortest_edge": 16, "longest_edge": 64}


def scene(index: int, width: int = 32, height: int = 32) -> tuple[bytes, dict[str, list]]:
    """A red rectangle, and in every second picture a blue one; nothing in every fifth."""
    image = Image.new("RGB", (width, height), (240, 240, 240))
    boxes, names = [], []
    for name, left in (("red", 1 + index % 5), ("blue", 17 + index % 4))[: 0 if index % 5 == 4 else 1 + index % 2]:
        box = [left, 1 + 4 * (index % 4), 9, 8 + index % 3]
        image.paste(COLOURS[name], (box[0], box[1], box[0] + box[2], box[1] + box[3]))
        boxes.append([float(value) for value in box])
        names.append(name)
    return file_bytes(image), {"bbox": boxes, "category": names}


def splits(count: int = 10, **size: int) -> DatasetDict:
    images, objects = zip(*(scene(index, **size) for index in range(count)), strict=True)
    return of(list(images), list(objects))


def of(images: list[Any], objects: list[Any]) -> DatasetDict:
    rows = Dataset.from_dict({"image": images, "objects": objects})
    return DatasetDict({"train": rows, "validation": rows})


def tiny_yolos(folder: Path, size: dict[str, int] | None = None, **changes: Any) -> str:
    """Write a model that takes images of 32x32 pixels, and a processor that makes them of ``size``."""
    set_seed(0)
    config = YolosConfig(
        image_size=[32, 32], patch_size=8, num_detection_tokens=4, use_mid_position_embeddings=False,
        **{**SMALL, **changes},
    )  # fmt: skip
    YolosForObjectDetection(config).save_pretrained(folder)
    YolosImageProcessorPil(size=size or {"height": 32, "width": 32}).save_pretrained(folder)
    return str(folder)


@pytest.fixture
def checkpoint(tmp_path: Path) -> str:
    return tiny_yolos(tmp_path / "model")


def task(**settings: Any) -> ObjectDetection:
    return ObjectDetection(ObjectDetectionData(train="unused", **settings))


def ready(data: DatasetDict, model: str, **settings: Any) -> ObjectDetection:
    built = task(**settings)
    built.check(data)
    built.load_processor(model)
    return built


def corners(data: Dataset) -> list[list[list[float]]]:
    return [[[x, y, x + w, y + h] for x, y, w, h in row["bbox"]] for row in data["objects"]]


# Data


def test_the_sample_and_a_new_model() -> None:
    settings = ObjectDetectionData(train="sample:scenes")
    data = load(settings)
    built = get_task("object-detection")(settings)
    built.check(data)
    built.load_processor("new:yolos-tiny")
    model = built.load_model("new:yolos-tiny")
    assert built.label_names == ["circle", "square", "triangle"] == [*model.config.label2id]
    rows = built.encode(data["validation"].select(range(20)))
    batch = built.collator()(list(rows))
    assert batch["pixel_values"].shape == (20, 3, 64, 64)
    assert any(len(label["boxes"]) == 0 for label in batch["labels"])
    found = model(**batch)
    assert torch.isfinite(found.loss)
    assert found.logits.shape == (20, 8, 4)


@pytest.mark.parametrize("batch_size", [1, 10])
def test_boxes_come_back_in_pixels(tmp_path: Path, batch_size: int) -> None:
    """From images that are wide or high, resized and padded, labels are again what the data has."""
    model = tiny_yolos(tmp_path / "model", STRETCHED)
    wide, high = splits(5, width=96, height=48)["train"], splits(5, width=40, height=64)["train"]
    rows = Dataset.from_list([*wide, *high])
    data = DatasetDict({"train": rows, "validation": rows})
    built = ready(data, model)
    batch = built.collator()(list(built.encode(rows)))
    assert batch["pixel_values"].shape[2:] == (16, 32)
    assert batch["pixel_mask"].sum((1, 2)).unique().numel() == 2, "some are padded"
    made = task_trainer(built, built.load_model(model), data, tmp_path / "out", per_device_eval_batch_size=batch_size)
    said = made.predict(made.eval_dataset)
    for found, expected in zip(np.asarray(said.label_ids), corners(rows), strict=True):
        known = found[found[:, 0] >= 0]
        np.testing.assert_allclose(known[:, 1:], np.reshape(expected, (-1, 4)), atol=1e-3)
    names = [[built.label_names[int(row[0])] for row in found if row[0] >= 0] for found in np.asarray(said.label_ids)]
    assert names == [row["category"] for row in rows["objects"]]


def test_what_the_model_sees_is_what_the_processor_makes(checkpoint: str) -> None:
    data = splits()
    built = ready(data, checkpoint)
    batch = built.collator()(list(built.encode(data["train"])))
    expected = built.preprocess([built.raw(row) for row in data["train"]])
    torch.testing.assert_close(batch["pixel_values"], expected["pixel_values"], atol=1e-4, rtol=0)
    without = built.encode(data["train"].remove_columns("objects"))
    assert "labels" not in built.collator()(list(without))


def test_every_way_to_hold_objects(checkpoint: str, tmp_path: Path) -> None:
    images, objects = zip(*(scene(index) for index in range(5)), strict=True)
    pairs = [[dict(zip(one, pair, strict=True)) for pair in zip(*one.values(), strict=True)] for one in objects]
    voc = [{**one, "bbox": [[x, y, x + w, y + h] for x, y, w, h in one["bbox"]]} for one in objects]
    renamed = [{"boxes": one["bbox"], "label": one["category"]} for one in objects]
    classes = List(ClassLabel(names=["blue", "red"]))
    declared = of(
        list(images), [{**one, "category": [["blue", "red"].index(n) for n in one["category"]]} for one in objects]
    )
    features = Features({"image": Value("binary"), "objects": {"bbox": BOXES, "category": classes}})
    for index, content in enumerate(images):
        (tmp_path / f"{index}.png").write_bytes(content)
    lines = [json.dumps({"image": f"{index}.png", "objects": one}) for index, one in enumerate(objects)]
    files = {split: str(tmp_path / f"{split}.jsonl") for split in ("train", "validation")}
    for file in files.values():
        Path(file).write_text("\n".join(lines))
    read = load(ObjectDetectionData(**files))
    ways: dict[str, tuple[DatasetDict, dict[str, Any]]] = {
        "lists": (of(list(images), list(objects)), {}),
        "pairs": (of(list(images), pairs), {}),
        "voc": (of(list(images), voc), {"bbox_format": "voc"}),
        "other names": (of(list(images), renamed), {"bbox": "boxes", "category": "label"}),
        "declared classes": (declared.cast(features), {}),
        "jsonl": (read, {"test": files["train"]}),
    }
    expected = None
    for way, (data, settings) in ways.items():
        found = list(ready(data, checkpoint, **settings).encode(data["train"])["labels"])
        expected = expected or found
        assert found == expected, way


@pytest.mark.parametrize(
    ("row", "objects", "message"),
    [
        (
            2,
            {"bbox": [[20, 20, 20, 5]], "category": ["red"]},
            r"data.train: row 3: object 1 has a box outside its image",
        ),
        (1, {"bbox": [[2, 2, 0, 5]], "category": ["red"]}, r"data.train: row 2: object 1 has an empty or inverted box"),
    ],
)
def test_bad_boxes_name_split_and_row(checkpoint: str, row: int, objects: Any, message: str) -> None:
    images, given = zip(*(scene(index) for index in range(4)), strict=True)
    data = of(list(images), [objects if index == row else one for index, one in enumerate(given)])
    with pytest.raises(DataError, match=message):
        ready(data, checkpoint).encode_all(data)


def test_broken_image(checkpoint: str) -> None:
    images, objects = zip(*(scene(index) for index in range(4)), strict=True)
    data = of([*images[:3], images[3][:-40]], list(objects))
    with pytest.raises(DataError, match=r"data.train: row 4: cannot read the image.*replace it or delete the row"):
        ready(data, checkpoint).encode_all(data)


def test_bad_classes_name_split_and_row() -> None:
    data = splits()
    other = [{"bbox": [[1, 1, 5, 5]], "category": ["rad"]}, *data["train"]["objects"]]
    data["validation"] = Dataset.from_dict({"image": [scene(0)[0]] * len(other), "objects": other})
    with pytest.raises(DataError, match=r"data.validation: row 1: no object.*'rad'; did you mean 'red'\?.*correct the"):
        task().check(data)
    short = of([scene(0)[0]], [{"bbox": [[1, 1, 5, 5]], "category": []}])
    with pytest.raises(DataError, match=r"data.train: row 1: 1 boxes .* and 0 classes"):
        task().check(short)


@pytest.mark.parametrize(
    ("objects", "message"),
    [
        (["red"], r"column 'objects' must hold boxes and classes of objects; unknown field 'bbox'"),
        ([{"boxes": [[1, 1, 5, 5]], "category": ["red"]}], r"unknown field 'bbox'; did you mean 'boxes'"),
        ([{"bbox": [], "category": []}], r"data.train has no object in any image; give images with objects"),
    ],
)
def test_no_objects(objects: list[Any], message: str) -> None:
    data = of([scene(0)[0]], objects)
    with pytest.raises(DataError, match=message):
        task().check(data)


# Models


def test_model_that_finds_too_few(checkpoint: str, caplog: pytest.LogCaptureFixture) -> None:
    images, objects = zip(*(scene(index) for index in range(4)), strict=True)
    many = {"bbox": [[1.0, 1.0, 5.0, 5.0]] * 6, "category": ["red"] * 6}
    built = ready(of(list(images), [*objects[:3], many]), checkpoint)
    with caplog.at_level(logging.WARNING):
        built.load_model(checkpoint)
    assert "has 6 objects, and model" in caplog.text
    assert "finds 4 at most" in caplog.text


def test_tokens_of_a_new_model_differ(checkpoint: str) -> None:
    """Else all would say the same. Those of a trained one stay as they are."""
    built = ready(splits(), checkpoint)
    new, trained = (
        built.load_model(model).vit.embeddings.detection_tokens for model in (f"new:{checkpoint}", checkpoint)
    )
    assert len(new[0].unique(dim=0)) == 4
    assert not trained.any()


def test_backbone_of_a_package_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    DetrConfig().save_pretrained(tmp_path / "detr")
    with pytest.raises(ConfigError, match=r"backbone of the package timm, which is not installed; pip install timm"):
        task().load_model(f"new:{tmp_path / 'detr'}")


def test_detr_without_that_package(tmp_path: Path) -> None:
    """Another family, whose mask of padding the model takes."""
    set_seed(0)
    backbone = ResNetConfig(embedding_size=8, hidden_sizes=[8, 8], depths=[1, 1], out_features=["stage2"])
    sizes = {f"{side}_{name}": value for side in ("encoder", "decoder") for name, value in
             (("layers", 1), ("attention_heads", 2), ("ffn_dim", 16))}  # fmt: skip
    config = DetrConfig(backbone_config=backbone, d_model=16, num_queries=5, **sizes)
    DetrForObjectDetection(config).save_pretrained(tmp_path / "detr")
    DetrImageProcessorPil(size={"shortest_edge": 32, "longest_edge": 64}).save_pretrained(tmp_path / "detr")
    data = splits(4, width=48, height=32)
    built = ready(data, str(tmp_path / "detr"))
    made = task_trainer(built, built.load_model(str(tmp_path / "detr")), data, tmp_path / "out", max_steps=2)
    made.train()
    said = made.predict(made.eval_dataset)
    assert np.asarray(said.predictions).shape == (4, 5, 6)
    assert said.metrics["test_map"] >= 0


# Metrics


def test_metrics_and_reports(checkpoint: str) -> None:
    """A model that finds every object but the blue ones."""
    data = splits()
    built = ready(data, checkpoint)
    blue, red = range(2)
    given = np.full((10, 2, 5), -100.0)
    said = np.full((10, 3, 6), -100.0)
    for index, (boxes, row) in enumerate(zip(corners(data["train"]), data["train"]["objects"], strict=True)):
        for number, (box, name) in enumerate(zip(boxes, row["category"], strict=True)):
            given[index, number] = [{"blue": blue, "red": red}[name], *box]
            if name == "red":
                said[index, number] = [0.9, red, *box]
        said[index, 2] = [0.1, red, 0, 0, 9, 9]
    prediction = EvalPrediction(said, given, data["validation"])  # type: ignore[arg-type]
    assert built.compute_metrics(prediction) == pytest.approx({"map": 0.5, "map_50": 0.5, "map_75": 0.5})
    assert built.per_class(prediction) == pytest.approx({"blue": 0.0, "red": 1.0})
    files = built.details(prediction)
    lines = [json.loads(line) for line in str(files["boxes.jsonl"]).splitlines()]
    assert [line["given"] for line in lines][4] == [] == [line["predicted"] for line in lines][4]
    assert lines[0]["given"] == [{"category": "red", "bbox": [1.0, 1.0, 9.0, 8.0]}]
    assert lines[0]["predicted"] == [{"category": "red", "bbox": [1.0, 1.0, 9.0, 8.0], "score": 0.9}]
    assert min(Image.open(io.BytesIO(files["boxes.png"])).size) > 300  # type: ignore[arg-type]
    assert "boxes.png" not in built.details(EvalPrediction(said, given))


def test_baseline_is_the_mean_box(checkpoint: str) -> None:
    images, boxes = [scene(0)[0]] * 3, [[4.0, 4.0, 8.0, 8.0], [6.0, 8.0, 8.0, 8.0], [20.0, 20.0, 4.0, 4.0]]
    objects = [{"bbox": [box], "category": [name]} for box, name in zip(boxes, ("red", "red", "blue"), strict=True)]
    data = of(images, objects)
    at_the_mean = {"bbox": [[5.0, 6.0, 8.0, 8.0]], "category": ["red"]}
    data["test"] = Dataset.from_dict({"image": images[:2], "objects": [at_the_mean, objects[2]]})
    name, found = ready(data, checkpoint).baseline(data, "test")
    assert "mean box of 'red'" in name
    # Of two boxes of equal score the right one comes first; no box is of class blue
    assert found == pytest.approx({"map": 0.5, "map_50": 0.5, "map_75": 0.5})


# Training


def test_learns_and_answers_in_a_pipeline(checkpoint: str, tmp_path: Path) -> None:
    data = splits()
    built = ready(data, checkpoint)
    made = task_trainer(
        built, built.load_model(checkpoint), data, tmp_path / "out", num_train_epochs=300, learning_rate=5e-3,
        per_device_train_batch_size=10, save_strategy="no",
    )  # fmt: skip
    assert type(made) is DetectionTrainer
    made.train()
    assert made.evaluate()["eval_map_50"] > 0.2 + built.baseline(data, "validation")[1]["map_50"]
    made.save_model(str(tmp_path / "saved"))
    find: Any = transformers.pipeline(built.pipeline, model=str(tmp_path / "saved"), device="cpu")  # type: ignore[call-overload]
    (first, *_) = sorted(find(built.raw(data["train"][0]), threshold=0.0), key=lambda one: -one["score"])
    assert first["label"] == "red"
    assert [first["box"][side] for side in ("xmin", "ymin")] == pytest.approx([1, 1], abs=3)


def test_cut_and_taught(checkpoint: str, tmp_path: Path) -> None:
    """Lists of labels go through pruning and distillation."""
    data = splits()
    built = ready(data, checkpoint)
    model = built.load_model(checkpoint)
    made = task_trainer(
        built, model, data, tmp_path / "out", num_train_epochs=2, dense_epochs=2,
        optimizations={
            "structured_pruning": {"keep_layers": 2, "keep_heads": 0.5, "keep_ffn": 0.5, "calibration_batches": 2},
            "distillation": {"alpha": 0.5},
        },
    )  # fmt: skip
    made.train()
    loaded = built.load_model(str(made.finished)).eval()
    assert loaded.config.num_hidden_layers == 2
    batch = built.collator()(list(built.encode(data["train"])))
    with torch.no_grad():
        assert torch.equal(loaded(**batch).logits, made.model.eval()(**batch).logits)
    small: Any = compress(loaded, made.train_dataset, built.collator(), keep_layers=1)[0]
    assert small.config.num_hidden_layers == 1


@pytest.mark.data
def test_public_data(data_folder: Path) -> None:
    files = {split: str(data_folder / "bccd" / f"{split}.parquet") for split in ("train", "validation", "test")}
    settings = ObjectDetectionData(**files)
    data = load(settings)
    built = ObjectDetection(settings)
    built.check(data)
    built.load_processor("new:yolos-tiny")
    assert built.label_names == ["RBC", "WBC", "Platelets"]
    assert sum(len(row["boxes"]) for row in built.encode(data["test"])["labels"]) == sum(
        len(row["bbox"]) for row in data["test"]["objects"]
    )

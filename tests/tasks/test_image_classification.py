"""Images from data sets, files and bytes; read and resized once, scaled per batch."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from datasets import Dataset, DatasetDict
from PIL import Image
from transformers import EvalPrediction, ViTConfig, ViTForImageClassification, ViTImageProcessorPil, set_seed

from hf_efficient import EfficientTrainer, EfficientTrainingArguments
from hf_efficient.data import load
from hf_efficient.errors import ConfigError, DataError
from hf_efficient.task import get_task
from hf_efficient.tasks.image_classification import ImageClassification, ImageClassificationData

COLOURS = {"red": (250, 10, 10), "green": (10, 250, 10), "blue": (10, 10, 250)}
NAMES = [*COLOURS] * 4


def picture(name: str, index: int, mode: str = "RGB") -> Image.Image:
    image = Image.new("RGB", (20 + index, 16), COLOURS[name])
    image.putpixel((index, 3), (255, 255, 255))
    return image.convert(mode)


def file_bytes(image: Image.Image, format: str = "PNG") -> bytes:
    file = io.BytesIO()
    image.save(file, format=format)
    return file.getvalue()


PICTURES = [picture(name, index) for index, name in enumerate(NAMES)]


def splits(images: list[Any] = PICTURES, names: list[str] = NAMES) -> DatasetDict:
    rows = Dataset.from_dict({"image": images, "label": names})
    return DatasetDict({"train": rows, "validation": rows})


def tiny_vit(folder: Path, labels: list[str] | None = None, size: int = 8, channels: int = 3) -> str:
    """Write a model that takes images of 8 pixels, and a processor that makes them of ``size``."""
    set_seed(0)
    names = {"id2label": dict(enumerate(labels or ["a", "b"]))}
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    config = ViTConfig(image_size=8, patch_size=4, num_channels=channels, **sizes, **names)
    ViTForImageClassification(config).save_pretrained(folder)
    mean = [0.5] * channels
    ViTImageProcessorPil(size={"height": size, "width": size}, image_mean=mean, image_std=mean).save_pretrained(folder)
    return str(folder)


@pytest.fixture
def checkpoint(tmp_path: Path) -> str:
    return tiny_vit(tmp_path / "model")


def task(**settings: Any) -> ImageClassification:
    return ImageClassification(ImageClassificationData(train="unused", **settings))


def ready(data: DatasetDict, model: str, **settings: Any) -> ImageClassification:
    built = task(**settings)
    built.check(data)
    built.load_processor(model)
    return built


def test_the_sample_and_a_new_model() -> None:
    settings = ImageClassificationData(train="sample:shapes")
    data = load(settings)
    built = get_task("image-classification")(settings)
    built.check(data)
    built.load_processor("new:vit-tiny")
    model = built.load_model("new:vit-tiny")
    assert built.label_names == ["circle", "cross", "square", "star", "triangle"] == [*model.config.label2id]
    encoded = built.encode(data["validation"].select(range(5)))
    assert encoded[0]["pixel_values"].shape == (3, 64, 64)
    assert encoded[0]["pixel_values"].dtype == np.uint8
    batch = built.collator()(list(encoded))
    assert model(**batch).logits.shape == (5, 5)
    assert model.dtype == torch.float32


def test_batches_are_what_the_processor_makes(checkpoint: str) -> None:
    built = ready(splits(), checkpoint)
    batch = built.collator()(list(built.encode(splits()["train"])))
    expected = built.preprocess([built.raw(row) for row in splits()["train"]])
    torch.testing.assert_close(batch["pixel_values"], expected["pixel_values"], atol=1.01 / 127.5, rtol=0)
    assert batch["labels"].tolist() == [built.label_names.index(name) for name in NAMES]
    without = built.encode(splits()["train"].remove_columns("label"))
    assert set(built.collator()(list(without))) == {"pixel_values"}


def test_many_images_are_read_in_several_processes(checkpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    data = splits([file_bytes(image) for image in PICTURES])["train"]
    built = ready(splits(), checkpoint)
    expected = built.encode(data)[:]
    torch.ones(500, 500) @ torch.ones(500, 500)  # threads that a forked process has not
    monkeypatch.setattr("hf_efficient.task.MANY_FOR_PROCESSES", 2)
    monkeypatch.setattr("hf_efficient.task.available_cores", lambda: 2)
    used, mapped = [], Dataset.map
    monkeypatch.setattr(Dataset, "map", lambda *args, **given: used.append(given) or mapped(*args, **given))
    found = built.encode(data.select(range(len(data))))[:]
    assert used[0]["num_proc"] == 2
    assert np.array_equal(found["pixel_values"], expected["pixel_values"])
    assert found["labels"] == expected["labels"]
    with pytest.raises(DataError, match="row 5"):
        built.encode(splits([*[file_bytes(image) for image in PICTURES[:4]], b"no image"] * 2, NAMES[:10])["train"])


def test_every_way_to_hold_images(checkpoint: str, tmp_path: Path) -> None:
    names = [f"{index}.png" for index in range(len(PICTURES))]
    for name, image in zip(names, PICTURES, strict=True):
        image.save(tmp_path / name)
    source = tmp_path / "train.csv"
    source.write_text("image,label\n" + "\n".join(f"{n},{label}" for n, label in zip(names, NAMES, strict=True)))
    ways = {
        "paths from the file's folder": names,
        "whole paths": [str(tmp_path / name) for name in names],
        "bytes": [file_bytes(image) for image in PICTURES],
        "structs": [{"bytes": file_bytes(image), "path": None} for image in PICTURES],
    }
    built = ready(splits(), checkpoint)
    expected = np.stack([row["pixel_values"] for row in built.encode(splits()["train"])])
    for way, images in ways.items():
        data = splits(images)
        other = ready(data, checkpoint, validation=str(source))
        found = np.stack([row["pixel_values"] for row in other.encode(data["train"])])
        assert np.array_equal(found, expected), way
        assert other.raw(data["train"][0]).size == PICTURES[0].size
    assert load(ImageClassificationData(train=str(source)))["train"].column_names == ["image", "label"]


def test_grey_images_of_any_kind(tmp_path: Path) -> None:
    model = tiny_vit(tmp_path / "grey", channels=1)
    modes = ["L", "RGB", "P"] * 4
    data = splits([file_bytes(picture(name, index, modes[index])) for index, name in enumerate(NAMES)])
    built = ready(data, model)
    batch = built.collator()(list(built.encode(data["train"])))
    assert batch["pixel_values"].shape == (12, 1, 8, 8)
    assert built.load_model(model)(**batch).logits.shape == (12, 3)


def test_pictures_are_turned_upright(checkpoint: str) -> None:
    image = Image.new("RGB", (8, 4), COLOURS["red"])
    exif = image.getexif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    file = io.BytesIO()
    image.save(file, format="JPEG", exif=exif)
    assert ready(splits(), checkpoint).raw({"image": file.getvalue()}).size == (4, 8)


@pytest.mark.parametrize(
    ("broken", "reason"),
    [
        (b"no image", r"of no format that is known"),
        (file_bytes(PICTURES[0])[:-40], r"[Tt]runcated"),
        (b"", r"of no format that is known"),
    ],
    ids=["other", "truncated", "empty"],
)
def test_broken_image(checkpoint: str, broken: bytes, reason: str) -> None:
    data = splits([file_bytes(image) for image in PICTURES[:11]] + [broken])
    built = ready(data, checkpoint)
    with pytest.raises(DataError, match=rf"data.train: row 12: cannot read the image.*{reason}.*replace it or delete"):
        built.encode_all(data)


def test_missing_file(checkpoint: str) -> None:
    data = splits(["nowhere.png"] * 12)
    with pytest.raises(DataError, match=r"row 1: cannot read the image nowhere.png .*No such file"):
        ready(data, checkpoint).encode(data["train"])


def test_no_images() -> None:
    data = splits([*range(12)])
    with pytest.raises(DataError, match=r"data.train: column 'image' must hold images, bytes or paths, got int64"):
        task().check(data)


def test_processor_of_another_size(tmp_path: Path) -> None:
    model = tiny_vit(tmp_path / "model", size=16)
    built = ready(splits(), model)
    with pytest.raises(ConfigError, match=r"takes images of 8x8 pixels, but its processor makes them 16x16"):
        built.load_model(model)


def test_trains_and_answers_in_a_pipeline(checkpoint: str, tmp_path: Path) -> None:
    built = ready(splits(), checkpoint)
    arguments = EfficientTrainingArguments(
        str(tmp_path / "out"), num_train_epochs=30, learning_rate=1e-2, use_cpu=True, report_to="none",
        disable_tqdm=True, dataloader_pin_memory=False, measure_seconds=0,
    )  # fmt: skip
    trainer = EfficientTrainer(
        model=built.load_model(checkpoint),
        args=arguments,
        train_dataset=built.encode(splits()["train"]),
        eval_dataset=built.encode(splits()["validation"]),
        data_collator=built.collator(),
        processing_class=built.processor,
        compute_metrics=built.compute_metrics,
    )
    trainer.train()
    assert trainer.evaluate()["eval_accuracy"] == 1.0
    trainer.save_model(str(tmp_path / "saved"))
    classify = transformers.pipeline(built.pipeline, model=str(tmp_path / "saved"), device="cpu")
    assert [classify(built.raw(row))[0]["label"] for row in splits()["train"].select(range(3))] == NAMES[:3]


def test_confusion_picture(checkpoint: str) -> None:
    built = ready(splits(), checkpoint)
    said = EvalPrediction(np.eye(3)[[0, 1, 1]], np.array([0, 1, 2]))
    assert built.per_class(said) == {"blue": 1.0, "green": 1.0, "red": 0.0}
    shown = Image.open(io.BytesIO(built.details(said)["confusion.png"]))
    assert min(shown.size) > 300

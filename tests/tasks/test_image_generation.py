"""Image generation: palettes, bits per pixel, and images that are generated and completed."""

import io
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset, DatasetDict
from PIL import Image
from sklearn.datasets import load_digits
from transformers import (
    EvalPrediction,
    ImageGPTConfig,
    ImageGPTForCausalImageModeling,
    ImageGPTImageProcessorPil,
    set_seed,
)

from hf_efficient import EfficientTrainer
from hf_efficient.data import load
from hf_efficient.errors import ConfigError, DataError
from hf_efficient.measure import measure
from hf_efficient.task import get_task
from hf_efficient.tasks.image_generation import ImageGeneration, ImageGenerationData
from tests.tasks.conftest import task_trainer
from tests.tasks.test_image_classification import file_bytes, tiny_vit

GREYS = 4
START = GREYS


def tiny_imagegpt(folder: Path, size: int = 4, positions: int | None = None, greys: int = GREYS, **changes: Any) -> str:
    """Write a model of images of ``size`` pixels a side in so many greys from black to white, and its processor."""
    set_seed(0)
    sizes = {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": positions or size * size + 1, **changes}
    still = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)
    config = ImageGPTConfig(**{"vocab_size": greys + 1, **sizes, **still})
    ImageGPTForCausalImageModeling(config).save_pretrained(folder)
    clusters = [[-1 + 2 * index / (greys - 1)] * 3 for index in range(greys)]
    ImageGPTImageProcessorPil(clusters=clusters, size={"height": size, "width": size}).save_pretrained(folder)
    return str(folder)


@pytest.fixture
def checkpoint(tmp_path: Path) -> str:
    return tiny_imagegpt(tmp_path / "model")


def picture(values: list[list[int]]) -> bytes:
    return file_bytes(Image.fromarray(np.array(values, dtype=np.uint8)))


def striped(index: int) -> bytes:
    """Columns of black and white, or white and black."""
    return picture([[255 * ((column + index) % 2) for column in range(4)]] * 4)


def splits(images: list[Any] | None = None) -> DatasetDict:
    rows = Dataset.from_dict({"image": images or [striped(index) for index in range(12)]})
    return DatasetDict({"train": rows, "validation": rows})


def ready(model: str, data: DatasetDict | None = None) -> ImageGeneration:
    built = ImageGeneration(ImageGenerationData(train="unused"))
    built.check(data or splits())
    built.load_processor(model)
    return built


def trainer(built: ImageGeneration, model: Any, folder: Path, data: DatasetDict | None = None, **settings: Any) -> Any:
    options = {"save_strategy": "no", "learning_rate": 1e-2, **settings}
    return task_trainer(built, model, data or splits(), folder, **options)


def test_the_sample_and_a_new_model() -> None:
    settings = ImageGenerationData(train="sample:shapes")
    data = load(settings)
    built = get_task("image-generation")(settings)
    built.check(data)
    built.load_processor("new:imagegpt-tiny")
    model = built.load_model("new:imagegpt-tiny")
    batch = built.collator()(list(built.encode(data["validation"].select(range(3)))))
    assert batch["input_ids"].shape == (3, 257)
    assert batch["input_ids"][:, 0].tolist() == [8] * 3
    assert batch["input_ids"][:, 1:].max() < 8
    assert model(**batch).logits.shape == (3, 257, 8)


def test_pixels_become_the_nearest_colour(checkpoint: str) -> None:
    values = [[0, 30, 60, 90], [100, 140, 180, 200], [220, 240, 255, 0], [85, 170, 255, 0]]
    (ids,) = ready(checkpoint).encode(Dataset.from_dict({"image": [picture(values)]}))["input_ids"]
    assert ids == [START, *(round(value / 85) for row in values for value in row)]


def test_metrics_are_the_model_s_loss(checkpoint: str, tmp_path: Path) -> None:
    built = ready(checkpoint)
    made = trainer(built, built.load_model(checkpoint), tmp_path / "out", per_device_eval_batch_size=5)
    said = made.predict(made.eval_dataset)
    assert np.asarray(said.predictions).shape == (12, 16)
    with torch.no_grad():
        loss = made.model(**built.collator()(list(made.eval_dataset))).loss.item()
    assert said.metrics["test_bits_per_dim"] == pytest.approx(loss / math.log(2), rel=1e-5)


def test_bits() -> None:
    """Two colours of equal chance take a bit."""
    built = ImageGeneration(ImageGenerationData(train="unused"))
    found = built.compute_metrics(EvalPrediction(np.full((2, 3), math.log(2)), np.zeros((2, 4))))
    assert found == pytest.approx({"bits_per_dim": 1.0})


def test_baseline_goes_by_frequency_at_each_pixel(checkpoint: str) -> None:
    data = splits([striped(0)] * 3)
    data["test"] = splits([striped(0), striped(1)])["train"]
    name, found = ready(checkpoint).baseline(data, "test")
    # At each pixel the one colour was seen three times of three, and one more of each of four is counted
    assert found["bits_per_dim"] == pytest.approx(-(math.log2(4 / 7) + math.log2(1 / 7)) / 2)
    assert "at that pixel" in name


def test_learns_generates_and_reloads(checkpoint: str, tmp_path: Path) -> None:
    built = ready(checkpoint)
    made = trainer(built, built.load_model(checkpoint), tmp_path / "out", num_train_epochs=60)
    assert type(made) is EfficientTrainer
    made.train()
    said = made.predict(made.eval_dataset)
    assert said.metrics["test_bits_per_dim"] < built.baseline(splits(), "validation")[1]["bits_per_dim"] / 4
    made.save_model(str(tmp_path / "saved"))
    loaded = built.load_model(str(tmp_path / "saved"))
    for name, value in made.model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value), name
    before = torch.random.get_rng_state()
    files = built.details(EvalPrediction(said.predictions, said.label_ids))
    assert files == {"samples.png": built.samples(loaded)}
    assert torch.equal(torch.random.get_rng_state(), before), "the caller's random numbers go on as they were"
    sheet = np.asarray(Image.open(io.BytesIO(built.samples(loaded, count=1))))
    assert sheet.shape == (100, 100, 3)
    pixels = sheet[2:98:24, 2:98:24, 0]
    assert pixels.tolist() in [[[0, 255, 0, 255]] * 4, [[255, 0, 255, 0]] * 4], "one of the two that it has seen"


def test_as_many_positions_as_pixels(tmp_path: Path) -> None:
    """As published models have: all but the last pixel are learnt, and whole images are generated."""
    model = tiny_imagegpt(tmp_path / "model", positions=16)
    built = ready(model)
    made = trainer(built, built.load_model(model), tmp_path / "out", max_steps=2)
    made.train()
    said = made.predict(made.eval_dataset)
    assert np.asarray(said.predictions).shape == (12, 15)
    assert Image.open(io.BytesIO(built.samples(made.model))).size == (400, 400)


def test_what_is_timed_completes_images(checkpoint: str) -> None:
    built = ready(checkpoint)
    rows = splits()["train"]
    examples = list(built.requests(rows))
    assert {len(row["input_ids"]) for row in examples} == {9}
    raw = [built.raw(row) for row in rows]
    assert torch.equal(built.preprocess(raw)["input_ids"], built.collator()(examples)["input_ids"])
    timing = measure(
        built.runtime(built.load_model(checkpoint).eval()), examples, built.collator(), repeats=1, seconds=0, warmup=0,
        preprocess=built.preprocess, raw=raw,
    )  # fmt: skip
    assert timing.new_tokens == 8


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"vocab_size": 9}, r"takes 8 colours and 17 positions, but its processor has 4 colours \(clusters\)"),
        (
            {"positions": 9},
            r"takes 4 colours and 9 positions, but its .* makes images of 16 pixels \(size\); set these",
        ),
    ],
)
def test_processor_that_does_not_fit(tmp_path: Path, changes: dict[str, int], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ready(tiny_imagegpt(tmp_path / "model", **changes))


def test_another_kind_of_model(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is a 'vit' model; image-generation takes those of ImageGPT"):
        ready(tiny_vit(tmp_path / "vit"))


def test_bad_images(checkpoint: str) -> None:
    with pytest.raises(DataError, match=r"data.train: column 'image' must hold images, bytes or paths, got int64"):
        ready(checkpoint, splits([1, 2]))
    data = splits([striped(0), b"no image"])
    with pytest.raises(DataError, match=r"data.train: row 2: cannot read the image .*replace it or delete the row"):
        ready(checkpoint, data).encode_all(data)


@pytest.mark.slow
def test_digits(tmp_path: Path) -> None:
    """Handwriting as it comes with scikit-learn, 8x8 pixels, in eight of its seventeen greys."""
    images = [file_bytes(Image.fromarray((15 * one).astype(np.uint8))) for one in load_digits().images]
    data = DatasetDict({"train": splits(images[:1500])["train"], "validation": splits(images[1500:])["train"]})
    model = tiny_imagegpt(tmp_path / "model", size=8, greys=8, n_embd=48)
    built = ready(model, data)
    made = trainer(
        built, built.load_model(model), tmp_path / "out", data, num_train_epochs=6, learning_rate=5e-3,
        per_device_train_batch_size=32, warmup_steps=0.1, per_device_eval_batch_size=100,
    )  # fmt: skip
    made.train()
    assert made.evaluate()["eval_bits_per_dim"] < 0.9 * built.baseline(data, "validation")[1]["bits_per_dim"]

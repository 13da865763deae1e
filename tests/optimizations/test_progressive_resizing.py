"""Which images a model sees and when, and which models take them; every optimization: `tests/test_contract.py`."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import (
    ConvNextConfig,
    ConvNextForImageClassification,
    DeiTConfig,
    DeiTForImageClassification,
    Dinov2Config,
    Dinov2ForImageClassification,
    LevitConfig,
    LevitForImageClassification,
    SwinConfig,
    SwinForImageClassification,
    ViTConfig,
    ViTForImageClassification,
    ViTForMaskedImageModeling,
    set_seed,
)

from hf_efficient import (
    ConfigError,
    EfficientTrainer,
    EfficientTrainingArguments,
    NoEffectWarning,
    ProgressiveResizing,
)
from hf_efficient.optimization import Context
from tests.test_parity import build
from tests.tiny import SMALL, Examples


class Recorder:
    """Sides of the images that a model computes on, while it trains and while it does not."""

    def __init__(self, model: nn.Module):
        self.trained: list[tuple[int, ...]] = []
        self.evaluated: set[tuple[int, ...]] = set()
        model.register_forward_pre_hook(self._note, with_kwargs=True)

    def _note(self, module: nn.Module, given: Any, named: dict[str, Any]) -> None:
        sides = tuple(named["pixel_values"].shape[2:])
        if module.training:
            self.trained.append(sides)
        else:
            self.evaluated.add(sides)


def images(height: int, width: int, count: int = 48) -> Examples:
    """The brighter colour tells the class."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.rand(count, 3, height, width, generator=generator)
    for index, each in enumerate(pixels):
        each[index % 2] += 2
    return Examples([{"pixel_values": each, "labels": index % 2} for index, each in enumerate(pixels)])


def batch(side: int, **more: torch.Tensor) -> dict[str, torch.Tensor]:
    return {"pixel_values": torch.rand(2, 3, side, side), "labels": torch.tensor([0, 1]), **more}


def prepared(model: Any, given: dict[str, torch.Tensor], **settings: Any) -> ProgressiveResizing:
    args = EfficientTrainingArguments("out", use_cpu=True, report_to="none")
    one = ProgressiveResizing(**settings)
    one.attach()
    one.prepare_model(model, Context(args=args, model=model, calibration=lambda batches: [given]))
    return one


def made(folder: Path, model: Any, data: Examples, optimizations: Any, **options: Any) -> Any:
    given = {"model": model, "train_dataset": data, "eval_dataset": data}
    settings = {"optimizations": optimizations, "measure_seconds": 0, "save_strategy": "no", **options}
    return build(EfficientTrainer, EfficientTrainingArguments, folder, kind="vision", given=given, **settings)


def vit(**changes: Any) -> ViTForImageClassification:
    set_seed(0)
    return ViTForImageClassification(ViTConfig(patch_size=4, num_labels=2, **{**SMALL, "image_size": 16, **changes}))


def test_whole_images_at_the_end_and_in_every_evaluation(tmp_path: Path) -> None:
    model = vit()
    seen = Recorder(model)
    options = {"eval_strategy": "steps", "eval_steps": 3, "gradient_accumulation_steps": 2}
    trainer = made(tmp_path, model, images(16, 16), {"progressive_resizing": {"until": 0.5}}, **options)
    seen.evaluated.clear()
    trainer.train()
    assert seen.trained == [(8, 8)] * 4 + [(12, 12)] * 2 + [(16, 16)] * 6  # two micro-batches a step
    assert seen.evaluated - {(8, 8)} == {(16, 16)}  # the model was tried on the first ones
    spared = 1 - (2 * 64 + 144 + 3 * 256) / (6 * 256)
    told = {"first_sides": [8, 8], "whole_sides": [16, 16], "pixels_spared": pytest.approx(spared, abs=1e-4)}
    assert trainer.optimizations[0].describe() == told


def test_the_first_half_of_the_sides_is_the_mean_of_pixels() -> None:
    one, given = prepared(vit(), batch(16)), batch(16)
    assert one.train_batch(given) is given  # no step has begun

    class State:
        global_step, max_steps = 0, 10

    one.on_step_begin(None, State, None)
    smaller = one.train_batch(given)
    mean = given["pixel_values"].unflatten(2, (8, 2)).unflatten(4, (8, 2)).mean((3, 5))
    torch.testing.assert_close(smaller["pixel_values"], mean)
    assert smaller["interpolate_pos_encoding"] is True
    assert smaller["labels"] is given["labels"]


@pytest.mark.parametrize(("start", "side"), [(0.01, 4), (0.3, 4), (0.5, 8), (0.7, 12)])
def test_sides_are_whole_patches(start: float, side: int) -> None:
    assert prepared(vit(), batch(16), start=start).describe()["first_sides"] == [side, side]


def test_images_that_are_not_square(tmp_path: Path) -> None:
    model = vit(image_size=(8, 16))
    seen = Recorder(model)
    with pytest.raises(
        ConfigError, match="takes images of several sizes"
    ):  # transformers interpolates square ones alone
        made(tmp_path, model, images(8, 16), {"progressive_resizing": {}}).train()
    assert not seen.trained


TINY = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 32, "num_hidden_layers": 1}
MODELS: dict[str, tuple[Any, int, int]] = {
    "deit": (lambda: DeiTForImageClassification(DeiTConfig(image_size=32, patch_size=8, **TINY)), 32, 16),
    "dinov2": (
        lambda: Dinov2ForImageClassification(
            Dinov2Config(image_size=28, patch_size=7, hidden_size=16, num_hidden_layers=1, num_attention_heads=2)
        ),
        28,
        14,
    ),
    "swin": (
        lambda: SwinForImageClassification(
            SwinConfig(image_size=32, patch_size=4, embed_dim=8, depths=[1, 1], num_heads=[1, 2], window_size=2)
        ),
        32,
        16,
    ),
    "convnext": (
        lambda: ConvNextForImageClassification(ConvNextConfig(hidden_sizes=[4, 4, 8, 8], depths=[1, 1, 1, 1])),
        64,
        32,
    ),
}


@pytest.mark.parametrize("family", MODELS)
def test_families(family: str) -> None:
    make, whole, side = MODELS[family]
    model, given = make(), batch(whole)
    one = prepared(model, given)
    assert one.describe()["first_sides"] == [side, side]


def test_a_model_of_one_size_is_refused() -> None:
    stages = {"hidden_sizes": [16, 16, 16], "num_attention_heads": [1, 1, 1], "depths": [1, 1, 1]}
    model = LevitForImageClassification(LevitConfig(image_size=64, key_dim=[8, 8, 8], **stages))
    with pytest.raises(ConfigError, match=r"this LevitForImageClassification does not: .*drop progressive_resizing"):
        prepared(model, batch(64))


def test_masks_of_patches_are_refused() -> None:
    model = ViTForMaskedImageModeling(ViTConfig(image_size=16, patch_size=4, encoder_stride=4, **SMALL))
    with pytest.raises(ConfigError, match="bool_masked_pos"):
        prepared(model, batch(16, bool_masked_pos=torch.ones(2, 16, dtype=torch.bool)))


@pytest.mark.parametrize(
    ("setting", "value", "allowed"), [("start", 0.0, "above 0"), ("start", 1.5, "at most 1"), ("until", -1.0, "0 to 1")]
)
def test_settings_out_of_range(setting: str, value: float, allowed: str) -> None:
    with pytest.raises(ConfigError, match=f"{setting} must be .*{allowed}"):
        ProgressiveResizing(**{setting: value})


def test_images_of_one_patch_stay_whole() -> None:
    with pytest.warns(NoEffectWarning, match=r"images of \[4, 4\] pixels stay so"):
        prepared(vit(image_size=4), batch(4))


def test_a_teacher_sees_the_same_images(tmp_path: Path) -> None:
    optimizations = {"progressive_resizing": {}, "distillation": {"hidden": 1.0}}
    trainer = made(tmp_path, vit(), images(16, 16), optimizations, dense_epochs=2)
    trainer.train()
    assert trainer.accounts.batches.keys() == {(8, 8), (12, 12), (16, 16)}

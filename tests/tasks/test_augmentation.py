"""Images changed at random: what is done to them, and that it goes by seed, epoch and image alone."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from hf_efficient import EfficientTrainingArguments
from hf_efficient.tasks.augmentation import Augmentation, AugmentationSettings, AugmentingTrainer
from hf_efficient.tasks.image_classification import ImageClassification, ImageClassificationData
from hf_efficient.trial import run_trial
from hf_efficient.tuning import CACHE_VARIABLE
from tests.test_contract import StopMain
from tests.test_parity import assert_same_tensors, build, train
from tests.tiny import Examples, image_examples, image_model

BOTH = AugmentationSettings(least_area=0.3)


def ramp(height: int = 12, width: int = 10) -> dict[str, Any]:
    """Brighter to the right and, more, downwards."""
    pixels = np.add.outer(10 * np.arange(height), np.arange(width)).astype(np.uint8)
    return {"pixel_values": np.stack([pixels] * 3), "labels": 1}


def at_epoch(augmentation: Augmentation, epoch: float) -> Augmentation:
    augmentation.on_epoch_begin(None, SimpleNamespace(epoch=epoch), None)
    return augmentation


def pixels_of(row: dict[str, Any]) -> np.ndarray:
    return np.asarray(row["pixel_values"])


def test_mirrored() -> None:
    row = ramp()
    always, never = (Augmentation(AugmentationSettings(mirrored=share))(row, 0) for share in (1, 0))
    assert np.array_equal(pixels_of(always), pixels_of(row)[..., ::-1])
    assert np.array_equal(pixels_of(never), pixels_of(row))
    assert always["labels"] == 1


def test_a_rectangle_is_cut_out() -> None:
    row, shares = ramp(), []
    augmentation = Augmentation(AugmentationSettings(least_area=0.25, mirrored=0))
    for seed in range(50):
        made = pixels_of(augmentation(row, seed)).astype(int)
        assert made.shape == (3, 12, 10)
        assert (np.diff(made, axis=1) >= 0).all()  # upright as before
        assert (np.diff(made, axis=2) >= 0).all()
        high = (made[0, -1, 0] - made[0, 0, 0]) / 110 * 11 + 1
        shares.append(high / 12)
    assert min(shares) < 0.7
    assert max(shares) > 0.9


def test_goes_by_seed_epoch_and_image() -> None:
    augmentation, row = Augmentation(BOTH), ramp()
    first = pixels_of(augmentation(row, 0))
    assert np.array_equal(pixels_of(Augmentation(BOTH)(row, 0)), first)
    others = [augmentation(row, 1), at_epoch(augmentation, 1.5)(row, 0)]
    assert not any(np.array_equal(pixels_of(other), first) for other in others)
    assert np.array_equal(pixels_of(at_epoch(augmentation, 0)(row, 0)), first)


def trainer(folder: Path, given: Any = None, augmentation: Any = BOTH, **options: Any) -> Any:
    given = {"augmentation": augmentation, "data_collator": stacked, **(given or {})}
    rows = [
        {**one, "pixel_values": (80 * one["pixel_values"]).numpy().astype(np.uint8)}
        for one in image_examples().examples
    ]
    given["train_dataset"] = given["eval_dataset"] = Examples(rows)
    return build(AugmentingTrainer, EfficientTrainingArguments, folder, "vision", given, measure_seconds=0, **options)


def stacked(rows: Any) -> dict[str, torch.Tensor]:
    return {
        "pixel_values": torch.stack([torch.tensor(row["pixel_values"].copy()).float() / 255 for row in rows]),
        "labels": torch.tensor([row["labels"] for row in rows]),
    }


def test_a_training_sees_other_images_and_an_evaluation_the_same(tmp_path: Path) -> None:
    model = image_model()
    seen = []
    for augmentation in (None, BOTH):
        one = trainer(tmp_path, {"model": model}, augmentation)
        seen.append((next(iter(one.get_train_dataloader())), one.evaluate()["eval_loss"]))
    assert not torch.equal(seen[0][0]["pixel_values"], seen[1][0]["pixel_values"])
    assert seen[0][1] == seen[1][1]


@pytest.mark.parametrize("workers", [{}, {"dataloader_persistent_workers": True}], ids=str)
def test_data_workers_make_no_difference(tmp_path: Path, workers: dict[str, Any]) -> None:
    alone = trainer(tmp_path / "alone")
    shared = trainer(tmp_path / "shared", dataloader_num_workers=1, dataloader_pin_memory=False, **workers)
    train(alone, shared)
    assert_same_tensors(dict(alone.model.state_dict()), dict(shared.model.state_dict()))


def test_resumes_to_equal_weights(tmp_path: Path) -> None:
    ours = {"optimizations": {"precision": {"dtype": "bf16"}}}  # with none, stock resumes, and loses a ViT's weights
    undisturbed = trainer(tmp_path / "undisturbed", **ours)
    train(undisturbed)
    train(trainer(tmp_path / "stopped", {"callbacks": [StopMain]}, **ours))
    resumed = trainer(tmp_path / "stopped", **ours)
    train(resumed, resume_from_checkpoint=str(tmp_path / "stopped" / "checkpoint-4"))
    assert_same_tensors(dict(undisturbed.model.state_dict()), dict(resumed.model.state_dict()))


def test_autotune_tries_with_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "choices"))
    called = []
    monkeypatch.setattr(Augmentation, "__call__", lambda self, row, seed: called.append(seed) or row)
    monkeypatch.setattr("hf_efficient.autotune.run_trial", lambda build, args, steps: run_trial(build, args, 1))
    trainer(tmp_path, autotune=True, num_train_epochs=1)
    assert called


def test_as_a_setting_of_the_task(tmp_path: Path) -> None:
    built = ImageClassification(ImageClassificationData(train="unused", augmentation={"least_area": 0.5}))  # type: ignore[arg-type]
    made = built.trainer(model=image_model(), args=EfficientTrainingArguments(str(tmp_path), use_cpu=True))
    assert made.augmentation.settings == AugmentationSettings(least_area=0.5, mirrored=0.5)
    with pytest.raises(ValidationError, match="less than or equal to 1"):
        AugmentationSettings(least_area=1.5)

"""What is known of a model's cuts is found again by its weights and batches, and is what would be computed."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch

from hf_efficient.cutting import search as module
from hf_efficient.cutting.known import FOLDER
from hf_efficient.cutting.search import Search
from tests.cutting.test_search import STACK
from tests.test_parity import assert_same_tensors

LAYERS, WIDTHS = {STACK: [0, 1, 2]}, {(STACK, index, "ffn"): 8 for index in range(3)}


def applied(trained: Any, batches: Any, folder: Path | None, widths: Any = WIDTHS) -> dict[str, torch.Tensor]:
    search = Search(trained, batches, folder=folder)
    shape = search.best_of(LAYERS, widths).shape
    made = copy.deepcopy(trained)
    search.apply(made, shape)
    return dict(made.state_dict())


def test_another_training_computes_nothing_again(
    trained: Any, batches: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = applied(trained, batches, None)
    assert_same_tensors(applied(trained, batches, tmp_path), plain)
    with monkeypatch.context() as patch:
        for name in ("removal_orders", "repair", "streams", "moments"):
            patch.setattr(module, name, lambda *args, **kwargs: pytest.fail("computed again"))
        assert_same_tensors(applied(trained, batches, tmp_path), plain)
    with monkeypatch.context() as patch:  # another shape: the same orders
        patch.setattr(module, "removal_orders", lambda *args, **kwargs: pytest.fail("computed again"))
        narrow = dict.fromkeys(WIDTHS, 4)
        found = applied(trained, batches, tmp_path, narrow)
    assert_same_tensors(found, applied(trained, batches, None, narrow))
    assert {file.suffix for file in (tmp_path / FOLDER).iterdir()} == {".json", ".safetensors"}


def test_another_model_or_other_batches_are_not_the_same(trained: Any, batches: Any, tmp_path: Path) -> None:
    first = applied(trained, batches, tmp_path)
    other = copy.deepcopy(trained)
    with torch.no_grad():
        other.classifier.bias += 1e-3
    assert_same_tensors(applied(other, batches, tmp_path), applied(other, batches, None))
    fewer = batches[:-1]
    assert_same_tensors(applied(trained, fewer, tmp_path), applied(trained, fewer, None))
    assert_same_tensors(applied(trained, batches, tmp_path), first)
    assert len(list((tmp_path / FOLDER).glob("*.json"))) == 3


def test_few_weights_are_kept(trained: Any, batches: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hf_efficient.cutting.known.KEPT", 2)
    for width in (4, 8, 12, 16):
        applied(trained, batches, tmp_path, dict.fromkeys(WIDTHS, width))
    assert len(list((tmp_path / FOLDER).glob("*.safetensors"))) == 2
    assert len(list((tmp_path / FOLDER).glob("*.json"))) == 1
    first = applied(trained, batches, tmp_path, dict.fromkeys(WIDTHS, 4))
    assert_same_tensors(first, applied(trained, batches, None, dict.fromkeys(WIDTHS, 4)))

"""Optimizations on parts of weights, by `fully_shard` on two processes: what they come to is what one process does."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForSequenceClassification

from hf_efficient.functional.sharded import joined, own, own_part, whole
from hf_efficient.plan import build_optimizations
from hf_efficient.rounding import Rounding, readers
from tests.sharded_worker import BATCH, CASES, Result, train
from tests.test_distributed import on_two_processes
from tests.test_parity import assert_same_tensors
from tests.tiny import pad, text_examples

ROUNDED = [case for case, settings in CASES.items() if "quantization" in settings]
PRUNED = [case for case, settings in CASES.items() if "pruning" in settings]
CLOSE = {"rtol": 1e-4, "atol": 1e-5}
STEP_APART = {"rtol": 1e-4, "atol": 5e-3}
"""A number half way between two that can be held went to the other one."""


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with the results of both ranks."""
    folder = tmp_path_factory.mktemp("sharded")
    on_two_processes("tests.sharded_worker", folder, timeout_s=110)
    return folder


def close(case: str) -> dict[str, float]:
    return CLOSE if case in PRUNED else STEP_APART


def load(folder: Path, case: str, rank: int = 0) -> Result:
    return Result(**torch.load(folder / f"{case}-rank{rank}.pt", weights_only=True))


@pytest.mark.parametrize("case", CASES)
def test_equals_one_process(case: str, two: Path) -> None:
    _, expected = train(case, rank=0, processes=1)
    for rank in (0, 1):
        found = load(two, case, rank)
        assert found.told == expected.told
        assert found.told, "the optimization says what it did"
        for name, weight in expected.weights.items():
            torch.testing.assert_close(
                found.weights[name], weight, **close(case), msg=lambda text, name=name: f"{name}: {text}"
            )
        if case in PRUNED:
            zero = {name: weight == 0 for name, weight in expected.weights.items()}
            assert_same_tensors(zero, {name: weight == 0 for name, weight in found.weights.items()})


@pytest.mark.parametrize("case", CASES)
def test_resumes_on_two_processes_and_on_one(case: str, two: Path) -> None:
    found = load(two, case)
    assert_same_tensors(torch.load(two / f"{case}-resumed-rank0.pt", weights_only=True), found.weights)
    _, alone = train(case, rank=0, processes=1, begin=found)
    for name, weight in alone.weights.items():
        torch.testing.assert_close(found.weights[name], weight, **close(case))


@pytest.mark.parametrize("case", CASES)
def test_a_saved_model_loads_plainly(case: str, two: Path) -> None:
    model, _ = train(case, rank=0, processes=1)
    loaded = AutoModelForSequenceClassification.from_pretrained(two / case)
    batch = pad([text_examples()[index] for index in range(BATCH)])
    with torch.no_grad():
        tolerance = 1e-4 if case in PRUNED else 1e-2
        torch.testing.assert_close(loaded(**batch).logits, model.eval()(**batch).logits, rtol=1e-3, atol=tolerance)
    if case in ROUNDED:  # by the scales of whole weights: rounded once more, they stay
        (one,) = build_optimizations(CASES[case])
        before = {name: tensor.clone() for name, tensor in loaded.state_dict().items()}
        Rounding(one._scheme, packed=readers(loaded, batch)).fold(loaded)
        for name, tensor in loaded.state_dict().items():
            torch.testing.assert_close(tensor, before[name], rtol=1e-5, atol=1e-7)


def test_ranges_of_inputs_are_those_of_all_processes(two: Path) -> None:
    _, expected = train("static", rank=0, processes=1)
    (one, other) = (load(two, "static", rank).ranges for rank in (0, 1))
    assert one == other
    assert expected.ranges.keys() == one.keys()
    for path, (low, high, _) in expected.ranges.items():
        assert one[path][:2] == pytest.approx([low, high], rel=1e-2, abs=1e-2)


def test_one_process_with_gradients_that_are_not_finite_is_seen_by_all(two: Path) -> None:
    for rank in (0, 1):
        assert torch.load(two / f"guards-rank{rank}.pt", weights_only=True) == (True, False)


def test_plain_tensors_pass() -> None:
    values: Any = torch.randn(3, 2)
    assert own(values) is whole(values) is values
    assert own_part(values, values) is joined(values, values) is values

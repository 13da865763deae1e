from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, f1_score

from hf_efficient.tasks.metrics import ClassificationMetrics


@pytest.mark.parametrize(("classes", "predicted"), [(2, 2), (7, 7), (7, 3)])
def test_equal_to_scikit_learn(classes: int, predicted: int) -> None:
    generator = np.random.default_rng(0)
    references = generator.integers(classes, size=200)
    predictions = np.where(generator.random(200) < 0.5, references, generator.integers(predicted, size=200))
    assert ClassificationMetrics().compute(predictions=predictions, references=references) == {
        "accuracy": accuracy_score(references, predictions),
        "f1_macro": f1_score(references, predictions, average="macro", zero_division=0.0),
    }


def test_batches_add_up() -> None:
    metric = ClassificationMetrics()
    metric.add_batch(predictions=[0, 1], references=[0, 0])
    metric.add_batch(predictions=[1, 1], references=[1, 1])
    assert metric.compute()["accuracy"] == 0.75


def test_a_class_that_is_never_predicted_counts_as_zero_without_a_warning() -> None:
    result = ClassificationMetrics().compute(predictions=[0, 0, 0, 0], references=[0, 0, 0, 1])
    assert result == {"accuracy": 0.75, "f1_macro": pytest.approx((6 / 7) / 2)}


def test_many_at_once_share_nothing_and_leave_no_file(tmp_path: Path) -> None:
    def accuracy(wrong: int) -> float:
        predictions = [1] * wrong + [0] * (20 - wrong)
        metric = ClassificationMetrics(cache_dir=str(tmp_path))
        return metric.compute(predictions=predictions, references=[0] * 20)["accuracy"]

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(accuracy, range(20))) == [(20 - wrong) / 20 for wrong in range(20)]
    assert not [file for file in tmp_path.rglob("*") if file.is_file()]


def test_random_state_is_untouched() -> None:
    np.random.seed(3)
    expected = np.random.random()
    np.random.seed(3)
    ClassificationMetrics().compute(predictions=[0, 1], references=[0, 1])
    assert np.random.random() == expected

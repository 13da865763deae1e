"""Labels of several classes and numbers: read from any column, learnt, cut and judged as what they are."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, DatasetDict, Features, List, Value
from scipy.stats import pearsonr
from sklearn.metrics import f1_score
from transformers import AutoModelForSequenceClassification, EvalPrediction, PrinterCallback, pipeline

from hf_efficient import EfficientTrainer, EfficientTrainingArguments
from hf_efficient.cutting.observation import divergence, logits_on
from hf_efficient.errors import DataError
from hf_efficient.guard import compare
from hf_efficient.measure import TorchRuntime
from hf_efficient.tasks.targets import MULTI, REGRESSION
from hf_efficient.tasks.text_classification import TextClassification, TextClassificationData
from tests.tasks.conftest import tiny_checkpoint

WORDS = ["card", "money", "app"]
TEXTS = ["my card is lost", "money and card", "app", "the app and my money", "no", "card app money"] * 4
SEVERAL = [["card"], ["money", "card"], ["app"], ["app", "money"], [], ["card", "app", "money"]] * 4
NUMBERS = [1.5, 0.5, -2.0, 0.25, 0.0, 3.0] * 4


def splits(label: list, feature: Any = None, texts: list[str] = TEXTS) -> DatasetDict:
    features = None if feature is None else Features({"text": Value("string"), "label": feature})
    rows = Dataset.from_dict({"text": texts, "label": label}, features=features)
    return DatasetDict({"train": rows, "validation": rows})


def checked(data: DatasetDict, problem_type: str, **settings: Any) -> TextClassification:
    built = TextClassification(TextClassificationData(train="-", max_length=16, problem_type=problem_type, **settings))
    built.check(data)
    return built


# Several classes


@pytest.mark.parametrize(
    "data",
    [
        splits(SEVERAL),
        splits([[WORDS.index(name) for name in row] for row in SEVERAL], List(ClassLabel(names=WORDS))),
        splits([" | ".join(row) for row in SEVERAL]),
    ],
    ids=["names", "numbers of named classes", "one text"],
)
def test_several_classes_from_any_column(data: DatasetDict, checkpoint: str) -> None:
    built = checked(data, MULTI)
    assert sorted(built.label_names) == sorted(WORDS)
    built.load_processor(checkpoint)
    marks = np.asarray(built.encode(data["train"])["labels"])
    found = [{built.label_names[index] for index in np.flatnonzero(row)} for row in marks]
    assert found == [set(row) for row in SEVERAL]


def test_metrics_of_several_classes_are_scikit_learn_s() -> None:
    built = checked(splits(SEVERAL), MULTI)
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(size=(40, 3)), rng.integers(0, 2, (40, 3)).astype(np.float32)
    found = built.compute_metrics(EvalPrediction(logits, labels))
    assert found["f1_micro"] == pytest.approx(f1_score(labels, logits > 0, average="micro"))
    assert found["f1_macro"] == pytest.approx(f1_score(labels, logits > 0, average="macro"))
    assert found["accuracy"] == pytest.approx(((logits > 0) == labels).all(1).mean())
    assert built.main_metric in found
    sure = built.compute_metrics(EvalPrediction(np.where(labels > 0, 50.0, -50.0), labels))
    assert sure["f1_micro"] == 1
    assert sure["calibration_error"] == pytest.approx(0, abs=1e-6)
    recalls = built.per_class(EvalPrediction(logits, labels))
    assert recalls["app"] == pytest.approx((logits > 0)[labels[:, 0] > 0, 0].mean())
    assert re.search(r"micro avg +0\.\d{4}", built.details(EvalPrediction(logits, labels))["classes.txt"])


@pytest.fixture
def cut(tmp_path: Path) -> tuple[TextClassification, EfficientTrainer]:
    """A model of several classes, trained, then cut and taught by itself."""
    data = splits(SEVERAL)
    built = checked(data, MULTI)
    checkpoint = tiny_checkpoint(tmp_path / "model", hidden_size=32, intermediate_size=32)
    tokenizer = built.load_processor(checkpoint)
    made = EfficientTrainer(
        model=built.load_model(checkpoint),
        args=EfficientTrainingArguments(
            str(tmp_path / "out"),
            dense_epochs=30,
            num_train_epochs=20,
            learning_rate=5e-3,
            per_device_train_batch_size=8,
            report_to="none",
            save_strategy="no",
            logging_strategy="no",
            disable_tqdm=True,
            dataloader_pin_memory=False,
            use_cpu=True,
            measure_seconds=0,
            optimizations={
                "structured_pruning": {"keep_ffn": 0.5, "calibration_batches": 3, "importance": "obs"},
                "distillation": {"teacher": "self"},
            },
        ),
        train_dataset=built.encode(data["train"]),
        eval_dataset=built.encode(data["validation"]),
        data_collator=built.collator(),
        processing_class=tokenizer,
        compute_metrics=built.compute_metrics,
    )
    made.remove_callback(PrinterCallback)
    made.train()
    return built, made


def test_several_classes_are_learnt_cut_and_answered(cut: Any) -> None:
    built, made = cut
    assert made.evaluate()["eval_f1_micro"] > 0.9
    model = AutoModelForSequenceClassification.from_pretrained(made.finished)
    assert model.config.problem_type == MULTI
    assert model.bert.encoder.layer[0].intermediate.dense.out_features == 16
    [answers] = pipeline(built.pipeline, model=model, tokenizer=built.processor, top_k=None)(["money and card"])
    assert {answer["label"] for answer in answers if answer["score"] > 0.5} == {"money", "card"}
    shares = {answer["label"]: answer["score"] for answer in answers}
    assert sum(shares.values()) > 1.2, "each for itself"


def test_distance_and_agreement_go_class_by_class(cut: Any) -> None:
    built, made = cut
    examples = made.examples(made.eval_dataset, 12)
    batches = [made.collate(examples)]
    model = made.model.eval()
    with torch.no_grad():
        logits = model(**batches[0]).logits
    [rows] = logits_on(model, batches)
    assert rows.shape == (12 * 3, 2)
    torch.testing.assert_close(rows.softmax(-1)[:, 0], logits.sigmoid().flatten())
    assert divergence(model, batches, [rows]) == pytest.approx(0, abs=1e-6)
    comparison = compare(
        TorchRuntime(model), TorchRuntime(model), examples, made.collate, metrics=built.compute_metrics
    )
    assert comparison.agreement == 1.0
    assert comparison.drop == 0.0


# Numbers


@pytest.mark.parametrize("numbers", [NUMBERS, [str(number) for number in NUMBERS]], ids=["numbers", "text"])
def test_a_number_is_learnt(numbers: list, checkpoint: str) -> None:
    data = splits(numbers)
    built = checked(data, REGRESSION)
    built.load_processor(checkpoint)
    model = built.load_model(checkpoint)
    assert (model.config.num_labels, model.config.problem_type) == (1, REGRESSION)
    batch = built.collator()(list(built.encode(data["train"])))
    assert batch["labels"].dtype == torch.float32
    outputs = model(**batch)
    assert outputs.loss.item() == pytest.approx(
        (outputs.logits[:, 0] - batch["labels"]).square().mean().item(), rel=1e-5
    )


def test_metrics_of_numbers() -> None:
    built = checked(splits(NUMBERS), REGRESSION)
    said = np.asarray(NUMBERS)[:, None] * 0.5 + np.random.default_rng(0).normal(size=(24, 1))
    found = built.compute_metrics(EvalPrediction(said, np.asarray(NUMBERS)))
    assert found["pearson"] == pytest.approx(pearsonr(said[:, 0], NUMBERS).statistic)
    assert found["mae"] == pytest.approx(np.abs(said[:, 0] - NUMBERS).mean())
    assert built.main_metric in found
    assert built.compute_metrics(EvalPrediction(np.ones((24, 1)), np.asarray(NUMBERS)))["pearson"] == 0.0
    assert built.details(EvalPrediction(said, np.asarray(NUMBERS))) == {}


# What needs no model


def test_baselines() -> None:
    data = splits(SEVERAL)
    said, found = checked(data, MULTI).baseline(data, "validation")
    assert said == "always 'card'"
    assert found["f1_micro"] == pytest.approx(2 * 12 / (24 + 36))
    data = splits(NUMBERS)
    said, found = checked(data, REGRESSION).baseline(data, "validation")
    assert said == f"always {np.mean(NUMBERS):.4g}, the mean"
    assert found["rmse"] == pytest.approx(np.std(NUMBERS))


# What does not fit

BAD = {
    "several as numbers": (MULTI, [1.5] * 24, r"must hold a list of names, or names separated by '\|', got float64"),
    "none at all": (MULTI, ["|"] * 24, r"no class in column 'label'; label some rows"),
    "no number": (REGRESSION, ["1", "two"] * 12, r"'label' must hold a number per row, got 'two' in row 2; correct it"),
    "not finite": (REGRESSION, [1.0, float("inf")] * 12, r"a number per row, got 'inf' in row 2"),
    "the same number": (REGRESSION, [1.0] * 24, r"the same number in all rows of 'label'"),
}


@pytest.mark.parametrize("case", BAD)
def test_labels_of_another_kind(case: str) -> None:
    problem_type, labels, message = BAD[case]
    with pytest.raises(DataError, match=message):
        checked(splits(labels), problem_type)


def test_a_class_that_train_does_not_have() -> None:
    data = splits(SEVERAL)
    data["test"] = Dataset.from_dict({"text": ["a", "b"], "label": [["crad"], ["card", "crad"]]})
    with pytest.raises(DataError, match=r"data.test has 2 rows labelled 'crad', but data.train has none"):
        checked(data, MULTI)


def test_one_class_each_has_a_table() -> None:
    built = checked(splits(["card", "money", "app"] * 8), "single_label_classification")
    said = EvalPrediction(np.eye(3)[[0, 1, 1]], np.array([0, 1, 2]))
    table = built.details(said)["classes.txt"]
    assert [line.split()[0] for line in table.splitlines()[2:5]] == built.label_names

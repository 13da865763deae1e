"""What the label of an example is: one class, several, or a number."""

import re
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Literal, get_args

import datasets
import numpy as np
from datasets import ClassLabel, Dataset, List, Value
from pydantic import Field
from sklearn.metrics import classification_report

from hf_efficient.data import DataSettings
from hf_efficient.errors import DataError, unknown
from hf_efficient.functional.confidence import calibration_error, probabilities
from hf_efficient.tasks.columns import TEXT, WHOLE, check_type
from hf_efficient.tasks.confusion import confusion_png
from hf_efficient.tasks.metrics import ClassificationMetrics, MultiLabelMetrics, RegressionMetrics

ProblemType = Literal["single_label_classification", "multi_label_classification", "regression"]
"""As in a model's config."""

SINGLE, MULTI, REGRESSION = get_args(ProblemType)
DIGITS = 4
"""Of probabilities in answers."""
_NUMBERS = (*WHOLE[1:], "float16", "float32", "float64")


class LabelledData(DataSettings):
    """The column of the label."""

    label: str = "label"
    """Column of the class: a name or a whole number. Of several classes: a list of names, or one text. Of a number: a
    number."""

    problem_type: ProblemType = SINGLE
    """Whether an example has one class, any number of them, or a number (as in a model's config)."""

    label_separator: str = Field(default="|", min_length=1)
    """What separates the classes where several stand in one text."""

    def label_column(self) -> str | None:
        return self.label if self.problem_type == SINGLE else None


class Target(ABC):
    """One kind of label."""

    problem_type: ClassVar[str]
    main_metric: ClassVar[str]

    def __init__(self, settings: LabelledData):
        self.settings, self.label = settings, settings.label

    @abstractmethod
    def check(self, dataset: Dataset, where: str) -> None:
        """Refuse labels of another kind.

        Raises:
            DataError: names ``where``, and what is allowed.
        """

    @abstractmethod
    def names(self, train: Dataset) -> list[str]:
        """What the outputs of a model are called, by their index.

        Raises:
            DataError: too few of them.
        """

    def check_seen(self, dataset: Dataset, split: str, train: Dataset) -> None:
        """Refuse classes of ``split`` that ``train`` has no row of.

        Raises:
            DataError: names the class, and in how many rows it is.
        """
        seen = {name for row in self._all_names(train) for name in row}
        unseen = Counter(name for row in self._all_names(dataset) for name in row if name not in seen)
        for name, count in unseen.items():
            raise DataError(
                f"data.{split} has {count} rows labelled '{name}', but data.train has none; "
                f"add such rows to train, remove them from {split}, or correct the label"
            )

    @abstractmethod
    def feature(self) -> Any:
        """The type of labels in an encoded data set."""

    @abstractmethod
    def indexer(self, split: Dataset, names: Sequence[str]) -> Callable[[list[Any]], list[Any]]:
        """What turns values of the column into labels as models take them. It refers to values only, so that
        `datasets` can tell whether it is the same."""

    @abstractmethod
    def metrics(self, logits: np.ndarray, labels: np.ndarray) -> dict[str, float]:
        """From logits (examples, outputs) and labels."""

    @abstractmethod
    def baseline(self, train: Dataset, judged: Dataset, names: Sequence[str]) -> tuple[str, dict[str, float]]:
        """What needs no model, in words, and its metrics on ``judged``."""

    @abstractmethod
    def answers(self, logits: np.ndarray, names: Sequence[str]) -> list[dict[str, Any]]:
        """What a user's program gets for each of some examples, from logits (examples, outputs)."""

    def per_class(self, logits: np.ndarray, labels: np.ndarray, names: Sequence[str]) -> dict[str, float]:
        """Recall of each class that occurs."""
        return {}

    def details(self, logits: np.ndarray, labels: np.ndarray, names: Sequence[str]) -> dict[str, str | bytes]:
        """Name of a file -> what it says of each class."""
        return {}

    def label_texts(self, dataset: Dataset) -> list[str]:
        """The label of each row as a text, as files have it."""
        return [self.settings.label_separator.join(row) for row in self._all_names(dataset)]

    def _most_frequent(self, train: Dataset) -> str:
        return Counter(name for row in self._all_names(train) for name in row).most_common(1)[0][0]

    def _all_names(self, dataset: Dataset) -> list[list[str]]:
        """Names of the classes of each row."""
        return []


class SingleLabel(Target):
    """One class: a name or a whole number."""

    problem_type = SINGLE
    main_metric = "accuracy"

    def check(self, dataset: Dataset, where: str) -> None:
        feature = dataset.features[self.label]
        allowed = f"{where}: column '{self.label}' must hold one name or whole number per row"
        if isinstance(feature, ClassLabel):
            if -1 in dataset.unique(self.label):
                raise DataError(f"{allowed}, got rows without a label (-1); use rows that have one")
        elif not isinstance(feature, datasets.Json):  # names and numbers mixed
            check_type(dataset, self.label, (*TEXT, *WHOLE), allowed)

    def feature(self) -> Any:
        return Value("int64")

    def names(self, train: Dataset) -> list[str]:
        """As declared by a ClassLabel, else sorted, numbers by value."""
        feature = train.features[self.label]
        given = {name for row in self._all_names(train) for name in row}
        found = list(feature.names) if isinstance(feature, ClassLabel) else sorted(given, key=_by_value)
        if len(found) < 2:
            raise DataError(f"data.train has one class only ({found[0]}); classification needs two or more")
        return found

    def indexer(self, split: Dataset, names: Sequence[str]) -> Callable[[list[Any]], list[int]]:
        indices, feature = {name: index for index, name in enumerate(names)}, split.features[self.label]
        return lambda values: [_index(_name(value, feature), indices) for value in values]

    def metrics(self, logits: np.ndarray, labels: np.ndarray) -> dict[str, float]:
        """Accuracy, macro F1 and calibration error; labels are indices of classes (examples,)."""
        found = ClassificationMetrics().compute(predictions=logits.argmax(-1), references=labels)
        return {**found, "calibration_error": calibration_error(logits, labels)}

    def answers(self, logits: np.ndarray, names: Sequence[str]) -> list[dict[str, Any]]:
        """``{"label": ..., "score": its probability, "scores": {name: probability}}``, the most probable first."""
        return [
            {"label": next(iter(row)), "score": max(row.values()), "scores": row}
            for row in _scores(probabilities(logits), names)
        ]

    def baseline(self, train: Dataset, judged: Dataset, names: Sequence[str]) -> tuple[str, dict[str, float]]:
        most = self._most_frequent(train)
        labels = self.indexer(judged, names)(judged[self.label])
        said = [list(names).index(most)] * len(labels)
        return f"always '{most}'", ClassificationMetrics().compute(predictions=said, references=labels)

    def per_class(self, logits: np.ndarray, labels: np.ndarray, names: Sequence[str]) -> dict[str, float]:
        right = logits.argmax(-1) == labels
        return {names[index]: float(right[labels == index].mean()) for index in sorted(set(labels.tolist()))}

    def details(self, logits: np.ndarray, labels: np.ndarray, names: Sequence[str]) -> dict[str, str | bytes]:
        """``classes.txt``: precision, recall, F1 and number of each; ``confusion.png``: which are taken for which."""
        said = logits.argmax(-1)
        return {
            "classes.txt": _report(labels, said, names, labels=range(len(names))),
            "confusion.png": confusion_png(labels, said, names),
        }

    def _all_names(self, dataset: Dataset) -> list[list[str]]:
        feature = dataset.features[self.label]
        return [[_name(value, feature)] for value in dataset[self.label]]


class MultiLabel(Target):
    """Any number of classes: a list of names, or names in one text with a separator."""

    problem_type = MULTI
    main_metric = "f1_micro"

    def check(self, dataset: Dataset, where: str) -> None:
        feature = dataset.features[self.label]
        inner = getattr(feature, "feature", feature)
        if not (isinstance(inner, ClassLabel) or getattr(inner, "dtype", None) in TEXT):
            given = getattr(inner, "dtype", type(feature).__name__)
            raise DataError(
                f"{where}: column '{self.label}' must hold a list of names, or names separated by "
                f"'{self.settings.label_separator}', got {given}; name another column of "
                f"{', '.join(dataset.column_names)}"
            )

    def feature(self) -> Any:
        return List(Value("float32"))

    def names(self, train: Dataset) -> list[str]:
        """As for a single class."""
        inner = getattr(train.features[self.label], "feature", None)
        if isinstance(inner, ClassLabel):
            return list(inner.names)
        found = sorted({name for row in self._all_names(train) for name in row}, key=_by_value)
        if not found:
            raise DataError(f"data.train has no class in column '{self.label}'; label some rows")
        return found

    def indexer(self, split: Dataset, names: Sequence[str]) -> Callable[[list[Any]], list[list[float]]]:
        indices = {name: index for index, name in enumerate(names)}
        feature, separator = split.features[self.label], self.settings.label_separator

        def index(values: list[Any]) -> list[list[float]]:
            marked = np.zeros((len(values), len(indices)), np.float32)
            for row, value in enumerate(values):
                marked[row, [_index(name, indices) for name in _several(value, feature, separator)]] = 1
            return marked.tolist()

        return index

    def metrics(self, logits: np.ndarray, labels: np.ndarray) -> dict[str, float]:
        """Micro and macro F1, share of examples with all classes right, and calibration error of each yes or no.

        Labels are 0 or 1, shape (examples, classes); a class is predicted where its probability is above a half.
        """
        found = MultiLabelMetrics().compute(predictions=(logits > 0).astype(int), references=labels.astype(int))
        choices = np.stack((np.zeros_like(logits), logits), -1).reshape(-1, 2)
        return {**found, "calibration_error": calibration_error(choices, labels.reshape(-1).astype(int))}

    def answers(self, logits: np.ndarray, names: Sequence[str]) -> list[dict[str, Any]]:
        """``{"labels": [name, ...], "scores": {name: probability}}``: those above a half, the most probable first."""
        found = _scores(probabilities(np.stack((np.zeros_like(logits), logits), -1))[..., 1], names)
        return [{"labels": [name for name, score in row.items() if score > 0.5], "scores": row} for row in found]

    def baseline(self, train: Dataset, judged: Dataset, names: Sequence[str]) -> tuple[str, dict[str, float]]:
        most = self._most_frequent(train)
        labels = np.asarray(self.indexer(judged, names)(judged[self.label]), dtype=int)
        said = np.zeros_like(labels)
        said[:, list(names).index(most)] = 1
        return f"always '{most}'", MultiLabelMetrics().compute(predictions=said, references=labels)

    def per_class(self, logits: np.ndarray, labels: np.ndarray, names: Sequence[str]) -> dict[str, float]:
        right = logits > 0
        shares = {name: right[labels[:, index] > 0, index] for index, name in enumerate(names)}
        return {name: float(found.mean()) for name, found in shares.items() if len(found)}

    def details(self, logits: np.ndarray, labels: np.ndarray, names: Sequence[str]) -> dict[str, str | bytes]:
        """``classes.txt``: precision, recall, F1 and number of each."""
        return {"classes.txt": _report(labels > 0, logits > 0, names)}

    def _all_names(self, dataset: Dataset) -> list[list[str]]:
        feature, separator = dataset.features[self.label], self.settings.label_separator
        return [_several(value, feature, separator) for value in dataset[self.label]]


class Regression(Target):
    """A number."""

    problem_type = REGRESSION
    main_metric = "pearson"

    def check(self, dataset: Dataset, where: str) -> None:
        allowed = f"{where}: column '{self.label}' must hold a number per row"
        check_type(dataset, self.label, (*TEXT, *_NUMBERS), allowed)
        for row, value in enumerate(dataset[self.label], start=1):
            if not _is_number(value):
                raise DataError(f"{allowed}, got '{value}' in row {row}; correct it or delete the row")

    def feature(self) -> Any:
        return Value("float32")

    def names(self, train: Dataset) -> list[str]:
        """One output, called as the column is."""
        if len(set(map(float, train[self.label]))) < 2:
            raise DataError(f"data.train has the same number in all rows of '{self.label}'; regression needs others")
        return [self.label]

    def indexer(self, split: Dataset, names: Sequence[str]) -> Callable[[list[Any]], list[float]]:
        return lambda values: [float(value) for value in values]

    def metrics(self, logits: np.ndarray, labels: np.ndarray) -> dict[str, float]:
        """Pearson and Spearman correlation, mean absolute and root mean squared error, from outputs (examples, 1)."""
        return RegressionMetrics().compute(predictions=logits.reshape(-1), references=labels.reshape(-1))

    def answers(self, logits: np.ndarray, names: Sequence[str]) -> list[dict[str, Any]]:
        """``{"value": ...}``."""
        return [{"value": float(value)} for value in logits.reshape(-1)]

    def baseline(self, train: Dataset, judged: Dataset, names: Sequence[str]) -> tuple[str, dict[str, float]]:
        mean, labels = (
            np.mean([float(value) for value in train[self.label]]),
            [float(one) for one in judged[self.label]],
        )
        said = [mean] * len(labels)
        return f"always {mean:.4g}, the mean", RegressionMetrics().compute(predictions=said, references=labels)


TARGETS: dict[str, type[Target]] = {kind.problem_type: kind for kind in (SingleLabel, MultiLabel, Regression)}


def _report(truth: Any, said: Any, names: Sequence[str], **kwargs: Any) -> str:
    return classification_report(truth, said, target_names=list(names), digits=4, zero_division=0, **kwargs)


def _scores(shares: np.ndarray, names: Sequence[str]) -> list[dict[str, float]]:
    """Of each row, name -> probability, the greatest first."""
    orders = np.argsort(-shares, axis=-1, kind="stable").tolist()
    return [
        {names[index]: round(row[index], DIGITS) for index in order}
        for row, order in zip(shares.tolist(), orders, strict=True)
    ]


def _is_number(value: Any) -> bool:
    try:
        return bool(np.isfinite(float(value)))
    except ValueError:
        return False


def _several(value: Any, feature: Any, separator: str) -> list[str]:
    """Names in a row's value: a list, or a text."""
    if isinstance(value, str):
        return [name for part in value.split(separator) if (name := part.strip())]
    return [_name(each, getattr(feature, "feature", None)) for each in value]


def _name(value: Any, feature: Any) -> str:
    return feature.int2str(value) if isinstance(feature, ClassLabel) else str(value)


def _index(name: str, indices: dict[str, int]) -> int:
    if name not in indices:
        raise DataError(f"{unknown('label', name, indices)}; the model has no class for it")
    return indices[name]


def _by_value(name: str) -> tuple[bool, float, str]:
    """Sort key: whole numbers by value, before names."""
    is_number = re.fullmatch(r"-?\d+", name) is not None
    return (not is_number, int(name) if is_number else 0, name)

"""Recommendation: which of some items a user will take, from what he took before; told by a score of each.

A classifier of pairs of texts with one output: the history, newest first, beside one candidate, so that attention
compares them word by word. Other features stand in the texts, by name. A model of two towers would embed items
beforehand and suit millions of candidates (`sentence-similarity` trains one); this one ranks the tens that such a step
leaves, is an ordinary model of transformers in its pipeline, and new items need nothing but their text.
"""

import itertools
import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from datasets import Dataset, DatasetDict
from pydantic import Field
from transformers import DataCollatorWithPadding, EvalPrediction, PreTrainedModel

from hf_efficient.errors import ConfigError, DataError
from hf_efficient.tasks.columns import TEXT, WHOLE, check_list
from hf_efficient.tasks.metrics import RankingMetrics, logits_of
from hf_efficient.tasks.text import TextData, TextTask
from hf_efficient.timing import Runtime

TOP = 5
"""Candidates of each impression of which coverage and diversity are told."""


class RecommendationData(TextData):
    """Columns of a set of impressions: what was shown to a user at once, and what of it was clicked."""

    history: str = "history"
    """Column of the texts of what the user took before: a list, the newest last."""

    candidates: str = "candidates"
    """Column of the texts of what was shown: a list."""

    clicks: str = "clicks"
    """Column that tells what of it was clicked: a list of 1 and 0."""

    items: str | None = None
    """Column of what the candidates are called: a list; without it their texts tell them apart."""

    categories: str | None = None
    """Column of the candidates' categories: a list. They stand before the texts, and diversity is told by them."""

    features: list[str] = []
    """Columns of other features: one value for the user and the moment, or a list with one for each candidate."""

    max_history: int = Field(default=10, ge=0)
    """Texts of the history that are read, the newest ones."""

    negatives: int = Field(default=4, ge=1)
    """Candidates that were not clicked from which train learns, for each click: drawn, and the same each time."""

    def columns(self) -> list[str]:
        named = [self.history, self.candidates, self.clicks, *filter(None, (self.items, self.categories))]
        return [*named, *self.features]

    def lists(self, dataset: Dataset) -> list[str]:
        """Columns of ``dataset`` with an entry for each candidate."""
        each = [name for name in self.features if hasattr(dataset.features[name], "feature")]
        return [*filter(None, (self.candidates, self.clicks, self.items, self.categories)), *each]


@dataclass(frozen=True)
class Impressions:
    """What was shown in the impressions of a split: for each a list.

    Attributes:
        clicks: 1 or 0.
        items: what they are called.
        categories: None where they are not known.
    """

    clicks: list[list[int]]
    items: list[list[str]]
    categories: list[list[str]] | None

    def split(self, values: Sequence[Any]) -> list[list[Any]]:
        """One list for each impression, of values in their order."""
        left = iter(values)
        return [list(itertools.islice(left, len(shown))) for shown in self.clicks]

    @property
    def key(self) -> bytes:
        """By which predictions find their impressions: an evaluation gives back nothing but labels."""
        return np.fromiter(itertools.chain.from_iterable(self.clicks), dtype=np.int8).tobytes()


class Recommendation(TextTask):
    """A score of each candidate, from the texts of what the user took before; judged by how it ranks them."""

    name = "recommendation"
    pipeline = "text-classification"
    auto_model = "AutoModelForSequenceClassification"
    main_metric = "auc"
    data_settings = RecommendationData

    settings: RecommendationData

    def __init__(self, settings: RecommendationData):
        super().__init__(settings)
        self._impressions: dict[bytes, Impressions] = {}

    def check(self, data: DatasetDict) -> None:
        for split, dataset in data.items():
            where = f"data.{split}"
            self._check_columns(dataset, where)
            for row in self._check_rows(dataset, where):
                if 0 < sum(row) < len(row):
                    break
            else:
                raise DataError(
                    f"{where}: no row has both a candidate that was clicked and one that was not; give such rows"
                )
        super().check(data)

    def _check_columns(self, dataset: Dataset, where: str) -> None:
        settings = self.settings
        for column in filter(None, (settings.history, settings.candidates, settings.items, settings.categories)):
            empty = ("null",) if column == settings.history else ()  # of no user is anything known
            check_list(dataset, column, (*TEXT, *empty), f"{where}: column '{column}' must hold a list of texts")
        check_list(dataset, settings.clicks, WHOLE, f"{where}: column '{settings.clicks}' must hold a list of 1 and 0")

    def _check_rows(self, dataset: Dataset, where: str) -> list[list[int]]:
        """The clicks of each row, once lists are as long as they should be, and filled."""
        settings, lists = self.settings, self.settings.lists(dataset)
        clicks = list(dataset[settings.clicks])
        for column in lists:
            for number, (values, given) in enumerate(zip(dataset[column], clicks, strict=True), start=1):
                if not values or len(values) != len(given):
                    raise DataError(
                        f"{where}: row {number} has {len(given)} entries in '{settings.clicks}' and {len(values)} in "
                        f"'{column}'; give one of each for every candidate"
                    )
                if any(value is None or (isinstance(value, str) and not value.strip()) for value in values):
                    raise DataError(f"{where}: row {number} has an empty entry in '{column}'; fill it in")
        for number, given in enumerate(clicks, start=1):
            if not set(given) <= {0, 1}:
                odd = next(value for value in given if value not in (0, 1))
                raise DataError(f"{where}: row {number} has {odd} in '{settings.clicks}'; allowed: 1 and 0")
        return clicks

    def labels(self, data: DatasetDict) -> list[str]:
        """One output."""
        return ["click"]

    def load_model(self, model: str, **kwargs: Any) -> PreTrainedModel:
        loaded = super().load_model(model, **kwargs)
        loaded.config.problem_type = "multi_label_classification"  # a yes or no, whose loss is binary cross-entropy
        return loaded

    def encode_all(self, data: DatasetDict) -> DatasetDict:
        """`encode` each split; of train what `sampled` leaves."""
        return super().encode_all(DatasetDict({**data, "train": self.sampled(data["train"])}))

    def sampled(self, train: Dataset) -> Dataset:
        """``train`` with ``negatives`` candidates that were not clicked for each click, or as many as there are."""
        clicks, negatives, lists = self.settings.clicks, self.settings.negatives, self.settings.lists(train)

        def sample(batch: dict[str, list], rows: list[int]) -> dict[str, list]:
            kept = [_kept(given, negatives, row) for given, row in zip(batch[clicks], rows, strict=True)]
            fewer = {
                name: [[row[index] for index in chosen] for row, chosen in zip(batch[name], kept, strict=True)]
                for name in lists
            }
            return {**batch, **fewer}

        return self.map_batches(train, sample, with_indices=True, features=train.features)

    def encode(self, split: Dataset) -> Dataset:
        """A row for each candidate of each impression: ``input_ids`` and so on of the pair, cut to ``max_length`` and
        not padded; ``labels``: whether it was clicked."""
        tokenizer, settings = self.processor, self.settings
        is_labelled = settings.clicks in split.column_names
        if is_labelled:
            impressions = self._shown(split)
            self._impressions[impressions.key] = impressions

        def tokenize(batch: dict[str, list]) -> dict[str, list]:
            rows = [dict(zip(batch, values, strict=True)) for values in zip(*batch.values(), strict=True)]
            pairs = [(text, other) for row in rows for text, other in written(row, settings)]
            texts, others = map(list, zip(*pairs, strict=True))
            encoded = tokenizer(texts, others, truncation=True, max_length=settings.max_length)
            if is_labelled:
                encoded["labels"] = [[float(click)] for row in rows for click in row[settings.clicks]]
            return dict(encoded)

        return self.map_batches(split, tokenize)

    def collator(self) -> Callable[[list[dict[str, Any]]], dict[str, Any]]:
        """Pads each batch to its longest row."""
        return DataCollatorWithPadding(self.processor)

    def compute_metrics(self, prediction: EvalPrediction) -> dict[str, float]:
        """How impressions are ranked, and what is at their top, from logits and labels (candidates, 1)."""
        return _metrics(*self._scored(prediction))

    def details(self, prediction: EvalPrediction) -> dict[str, str | bytes]:
        """``rankings.jsonl``: of each impression the items, the best first, with their scores and clicks."""
        impressions, scores = self._scored(prediction)
        lines = []
        for number, (items, clicks, told) in enumerate(zip(impressions.items, impressions.clicks, scores, strict=True)):
            order = np.argsort(-np.asarray(told), kind="stable")
            row = {
                "impression": number + 1,
                "items": [items[index] for index in order],
                "scores": [round(float(told[index]), 4) for index in order],
                "clicks": [clicks[index] for index in order],
            }
            lines.append(json.dumps(row, ensure_ascii=False) + "\n")
        return {"rankings.jsonl": "".join(lines)}

    def baseline(self, data: DatasetDict, split: str) -> tuple[str, dict[str, float]]:
        """What was clicked most often in train first."""
        train, judged = self._shown(data["train"]), self._shown(data[split])
        both = zip(train.items, train.clicks, strict=True)
        counts = Counter(item for items, clicks in both for item, click in zip(items, clicks, strict=True) if click)
        return "popularity, by clicks in train", _metrics(judged, [[counts[i] for i in row] for row in judged.items])

    def raw(self, example: dict[str, Any]) -> dict[str, str]:
        """``{"text": ..., "text_pair": ...}`` of the first candidate."""
        return dict(zip(("text", "text_pair"), written(example, self.settings)[0], strict=True))

    def preprocess(self, inputs: list[Any]) -> dict[str, Any]:
        """Tokenised, cut to ``max_length`` and padded to the longest."""
        texts, others = ([row[name] for row in inputs] for name in ("text", "text_pair"))
        limit = self.settings.max_length
        return self.processor(texts, others, truncation=True, max_length=limit, padding=True, return_tensors="pt")

    def answers(self, runtime: Runtime, inputs: Sequence[Any]) -> list[dict[str, Any]]:
        """``{"score": ...}``: the probability of a click."""
        scores = 1 / (1 + np.exp(-self.logits(runtime, inputs).reshape(-1)))
        return [{"score": float(score)} for score in scores]

    def requests(self, rows: Dataset) -> Dataset:
        """The first candidate of each impression: a batch of so many is what ranking so many takes."""
        lists = self.settings.lists(rows)
        first = self.map_batches(rows, lambda batch: {**batch, **_firsts(batch, lists)}, features=rows.features)
        return self.encode(first)

    def _shown(self, rows: Dataset) -> Impressions:
        settings = self.settings
        categories = None if settings.categories is None else list(rows[settings.categories])
        return Impressions(list(rows[settings.clicks]), list(rows[settings.items or settings.candidates]), categories)

    def _scored(self, prediction: EvalPrediction) -> tuple[Impressions, list[list[float]]]:
        labels = np.asarray(prediction.label_ids).reshape(-1)
        impressions = self._impressions.get(labels.astype(np.int8).tobytes())
        if impressions is None:
            raise ConfigError(
                f"{self.name} is judged by whole impressions, and these {len(labels)} candidates are of no split that "
                "was encoded; predict a split as encode() gave it"
            )
        return impressions, impressions.split(np.asarray(logits_of(prediction)).reshape(-1).tolist())


def written(row: dict[str, Any], settings: RecommendationData) -> list[tuple[str, str]]:
    """The two texts of each candidate: user and moment, and the candidate."""
    features = {name: row[name] for name in settings.features}
    context = [f"{name} {_shown_value(value)}" for name, value in features.items() if not isinstance(value, list)]
    history = list(reversed(row[settings.history]))[: settings.max_history]
    text = " | ".join([*context, *history]) or "no history"
    pairs = []
    for index, candidate in enumerate(row[settings.candidates]):
        told = [] if settings.categories is None else [row[settings.categories][index]]
        told += [f"{name} {_shown_value(v[index])}" for name, v in features.items() if isinstance(v, list)]
        pairs.append((text, " | ".join([*told, candidate])))
    return pairs


def _shown_value(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _firsts(batch: dict[str, list], lists: Sequence[str]) -> dict[str, list]:
    return {name: [row[:1] for row in batch[name]] for name in lists}


def _kept(clicks: Sequence[int], negatives: int, seed: int) -> list[int]:
    """Indices of all that were clicked, and of some that were not."""
    taken, left = np.flatnonzero(clicks), np.flatnonzero(np.asarray(clicks) == 0)
    count = min(len(left), negatives * max(1, len(taken)))
    drawn = np.random.default_rng(seed).choice(left, count, replace=False) if count else left
    return sorted([*taken.tolist(), *drawn.tolist()])


def _metrics(impressions: Impressions, scores: list[list[float]]) -> dict[str, float]:
    found = RankingMetrics().compute(predictions=scores, references=impressions.clicks)
    tops = [np.argsort(-np.asarray(told), kind="stable")[:TOP].tolist() for told in scores]
    shown = {item for items in impressions.items for item in items}
    top = {items[index] for items, best in zip(impressions.items, tops, strict=True) for index in best}
    found["coverage"] = len(top) / len(shown)
    if impressions.categories is not None:
        chosen = [[names[i] for i in best] for names, best in zip(impressions.categories, tops, strict=True)]
        found["diversity"] = float(np.mean([_differing(names) for names in chosen if len(names) > 1] or [0.0]))
    return found


def _differing(names: Sequence[str]) -> float:
    """Share of pairs whose two are not the same."""
    pairs = list(itertools.combinations(names, 2))
    return sum(one != other for one, other in pairs) / len(pairs)

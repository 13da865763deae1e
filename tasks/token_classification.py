"""Token classification: a tag for each word, such as the entities of a text."""

import logging
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
from datasets import ClassLabel, Dataset, DatasetDict
from transformers import DataCollatorForTokenClassification, EvalPrediction

from hf_efficient.errors import ConfigError, DataError, unknown
from hf_efficient.functional.tags import OUTSIDE, split_tag, to_bio
from hf_efficient.tasks.columns import TEXT
from hf_efficient.tasks.metrics import EntityMetrics, logits_of
from hf_efficient.tasks.tag_report import entity_recalls, entity_report, tag_report
from hf_efficient.tasks.text import TextData, TextTask

logger = logging.getLogger(__name__)

IGNORED = -100
"""Label of what has none: special tokens, and all pieces of a word but the first."""


class TokenClassificationData(TextData):
    """Columns of a set of tagged texts."""

    tokens: str = "tokens"
    """Column of the words: a list of texts in each row."""

    tags: str = "ner_tags"
    """Column of their tags: a list as long; BIO, IOB1, IOBES or BILOU, as names or as numbers of named classes."""

    def columns(self) -> list[str]:
        return [self.tokens, self.tags]


class TokenClassification(TextTask):
    """A tag for each word. Tags of any usual scheme are learnt as BIO."""

    name = "token-classification"
    pipeline = "token-classification"
    auto_model = "AutoModelForTokenClassification"
    main_metric = "f1"
    data_settings = TokenClassificationData

    settings: TokenClassificationData

    def check(self, data: DatasetDict) -> None:
        for split, dataset in data.items():
            self._check_rows(dataset, f"data.{split}")
        super().check(data)
        if self.label_names == [OUTSIDE]:
            raise DataError("data.train marks no entity: every tag is O; tag some")
        for split in set(data) - {"train"}:
            self._check_tags_seen(data[split], split)

    def labels(self, data: DatasetDict) -> list[str]:
        """O, then B- and I- of each type that train has, types sorted."""
        found = {tag for tags in self._tags(data["train"]) for tag in to_bio(tags)}
        return sorted(found | {OUTSIDE}, key=lambda tag: (split_tag(tag)[1], tag))

    def load_processor(self, model: str, **kwargs: Any) -> Any:
        tokenizer = super().load_processor(model, **kwargs)
        if not tokenizer.is_fast:
            raise ConfigError(
                f"model '{model}' has no fast tokenizer, which tells the words of its pieces; use another"
            )
        if getattr(tokenizer, "add_prefix_space", None) is False:  # byte-level ones take words with a space before
            tokenizer = super().load_processor(model, **{**kwargs, "add_prefix_space": True})
        return tokenizer

    def encode(self, split: Dataset) -> Dataset:
        """``input_ids`` and so on, cut to ``max_length``; ``labels``: each word's tag at its first piece."""
        tokenizer, settings = self.processor, self.settings
        indices = {name: index for index, name in enumerate(self.label_names)}
        feature = split.features.get(settings.tags)
        names = _names(feature)
        words = sum(len(row) for row in split[settings.tokens])

        def tokenize(batch: dict[str, list]) -> dict[str, list]:
            encoded = tokenizer(
                batch[settings.tokens], is_split_into_words=True, truncation=True, max_length=settings.max_length
            )
            if feature is not None:
                tagged = [to_bio([_name(tag, names) for tag in tags]) for tags in batch[settings.tags]]
                encoded["labels"] = [_labels(encoded.word_ids(row), tags, indices) for row, tags in enumerate(tagged)]
            return dict(encoded)

        made = self.map_batches(split, tokenize)
        if feature is not None:
            judged = sum(label != IGNORED for row in made["labels"] for label in row)
            if judged < words:
                logger.warning(
                    "%d of %d words lie beyond data.max_length=%d and are neither learnt nor judged; raise it",
                    *(words - judged, words, settings.max_length),
                )
        return made

    def collator(self) -> Callable[[list[dict[str, Any]]], dict[str, Any]]:
        """Pads each batch to its longest row; labels with -100."""
        return DataCollatorForTokenClassification(self.processor)

    def compute_metrics(self, prediction: EvalPrediction) -> dict[str, float]:
        """Precision, recall and F1 of whole entities, micro and macro; accuracy of words.

        From logits (examples, pieces, tags) and tag indices (examples, pieces).
        """
        found, truth = self._both(prediction)
        return EntityMetrics().compute(predictions=found, references=truth)

    def per_class(self, prediction: EvalPrediction) -> dict[str, float]:
        """Recall of each type of entity that occurs."""
        found, truth = self._both(prediction)
        return entity_recalls(truth, found)

    def details(self, prediction: EvalPrediction) -> dict[str, str | bytes]:
        """``entities.txt``: each type of entity; ``tags.txt``: each B- and I- tag. As the CoNLL evaluation has them."""
        found, truth = self._both(prediction)
        return {
            "entities.txt": entity_report(truth, found),
            "tags.txt": tag_report(truth, found),
        }

    def raw(self, example: dict[str, Any]) -> str:
        """The text, words joined by spaces."""
        return " ".join(example[self.settings.tokens])

    def preprocess(self, inputs: list[Any]) -> dict[str, Any]:
        """Tokenised, cut to ``max_length`` and padded to the longest."""
        limit = self.settings.max_length
        return self.processor(inputs, truncation=True, max_length=limit, padding=True, return_tensors="pt")

    def _both(self, prediction: EvalPrediction) -> tuple[list[list[str]], list[list[str]]]:
        """Tags said and tags given, of each word that has one; texts without any are left out."""
        said, labels = np.asarray(logits_of(prediction)).argmax(-1), np.asarray(prediction.label_ids)
        rows = [(found[given != IGNORED], given[given != IGNORED]) for found, given in zip(said, labels, strict=True)]
        return (
            [to_bio([self.label_names[index] for index in found]) for found, _ in rows if len(found)],
            [[self.label_names[index] for index in given] for _, given in rows if len(given)],
        )

    def _tags(self, dataset: Dataset) -> Iterable[list[str]]:
        names = _names(dataset.features[self.settings.tags])
        for tags in dataset[self.settings.tags]:
            yield [_name(tag, names) for tag in tags]

    def _check_rows(self, dataset: Dataset, where: str) -> None:
        tokens, tags = self.settings.tokens, self.settings.tags
        _check_list(dataset, tokens, TEXT, f"{where}: column '{tokens}' must hold a list of words in each row")
        if _names(dataset.features[tags]) is None:
            _check_list(dataset, tags, TEXT, f"{where}: column '{tags}' must hold a list of named tags in each row")
        for number, (words, marked) in enumerate(zip(dataset[tokens], self._tags(dataset), strict=True), start=1):
            if not words:
                raise DataError(f"{where}: row {number} has no words; delete it")
            if len(words) != len(marked):
                raise DataError(
                    f"{where}: row {number} has {len(words)} words and {len(marked)} tags; give each word one tag"
                )
            try:
                to_bio(marked)
            except ValueError as error:
                raise DataError(f"{where}: row {number}: {error}; correct it") from None

    def _check_tags_seen(self, dataset: Dataset, split: str) -> None:
        types = {split_tag(tag)[1] for tag in self.label_names}
        for tags in self._tags(dataset):
            for tag in to_bio(tags):
                if tag not in self.label_names:
                    kind = split_tag(tag)[1]
                    what = f"the tag '{tag}'" if kind in types else f"entities of type '{kind}'"
                    raise DataError(
                        f"data.{split} has {what}, but data.train has none; add such rows to train, or remove them "
                        f"from {split}"
                    )


def _names(feature: Any) -> Sequence[str] | None:
    """Names of the classes of a column of numbers."""
    inner = getattr(feature, "feature", None)
    return inner.names if isinstance(inner, ClassLabel) else None


def _name(tag: Any, names: Sequence[str] | None) -> str:
    return str(tag) if names is None else names[tag]


def _labels(words: Sequence[int | None], tags: Sequence[str], indices: dict[str, int]) -> list[int]:
    """For each piece, given the word it is of: that word's tag if it is the first piece."""
    found, before = [], None
    for word in words:
        is_first = word is not None and word != before
        found.append(_index(tags[word], indices) if is_first else IGNORED)  # type: ignore[index]
        before = word
    return found


def _index(tag: str, indices: dict[str, int]) -> int:
    if tag not in indices:
        raise DataError(f"{unknown('tag', tag, indices)}; the model has no class for it")
    return indices[tag]


def _check_list(dataset: Dataset, column: str, allowed: tuple[str, ...], demand: str) -> None:
    feature = dataset.features[column]
    inner = getattr(feature, "feature", None)
    given = getattr(inner, "dtype", None)
    if given not in allowed:
        shown = f"lists of {given}" if given else getattr(feature, "dtype", type(feature).__name__)
        raise DataError(f"{demand}, got {shown}; name another column of {', '.join(dataset.column_names)}")

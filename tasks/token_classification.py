"""Token classification: a tag for each word, such as the entities of a text."""

import logging
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
from datasets import ClassLabel, Dataset, DatasetDict
from pydantic import Field
from transformers import DataCollatorForTokenClassification, EvalPrediction

from hf_efficient.errors import ConfigError, DataError, unknown
from hf_efficient.functional.tags import OUTSIDE, split_tag, to_bio
from hf_efficient.tasks.columns import TEXT, check_list
from hf_efficient.tasks.marking import mark
from hf_efficient.tasks.metrics import EntityMetrics, logits_of
from hf_efficient.tasks.tag_report import entity_recalls, entity_report, tag_report
from hf_efficient.tasks.text import TextData, TextTask
from hf_efficient.tasks.windows import documents, first_pieces, owners
from hf_efficient.timing import Runtime

logger = logging.getLogger(__name__)

IGNORED = -100
"""Label of what has none: special tokens, and all pieces of a word but the first."""

_TEXT = "text"  # column of the row that a window is of, while encoding


class TokenClassificationData(TextData):
    """Columns of a set of tagged texts."""

    tokens: str = "tokens"
    """Column of the words: a list of texts in each row."""

    tags: str = "ner_tags"
    """Column of their tags: a list as long; BIO, IOB1, IOBES or BILOU, as names or as numbers of named classes."""

    stride: int | None = Field(default=None, ge=0)
    """Texts longer than ``max_length`` become windows that overlap by so many tokens; null cuts the texts instead."""

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

    def __init__(self, settings: TokenClassificationData):
        super().__init__(settings)
        self._documents: dict[tuple[tuple[int, ...], ...], list[list[int]]] = {}
        """Labels of each row of an encoded split -> the rows of each text."""

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
        room = self.settings.max_length - tokenizer.num_special_tokens_to_add()
        if self.settings.stride is not None and self.settings.stride >= room:
            raise ConfigError(
                f"data.stride is {self.settings.stride}, but with data.max_length={self.settings.max_length} a window "
                f"has room for {room} tokens of text; set data.stride below that"
            )
        return tokenizer

    def encode(self, split: Dataset) -> Dataset:
        """``input_ids`` and so on, of ``max_length`` at most; ``labels``: each word's tag at its first piece.

        With a ``stride``, a long text becomes several rows, and each word has its label in the row that sees most of
        what is around it.
        """
        tokenizer, settings = self.processor, self.settings
        indices = {name: index for index, name in enumerate(self.label_names)}
        feature = split.features.get(settings.tags)
        names = _names(feature)
        words = sum(len(row) for row in split[settings.tokens])

        def tokenize(batch: dict[str, list], rows: list[int]) -> dict[str, list]:
            encoded = tokenizer(
                batch[settings.tokens],
                is_split_into_words=True,
                truncation=True,
                max_length=settings.max_length,
                return_overflowing_tokens=settings.stride is not None,
                stride=settings.stride or 0,
            )
            texts = encoded.pop("overflow_to_sample_mapping", range(len(rows)))
            if feature is not None:
                encoded["labels"] = []
                for windows in documents(texts):
                    tags = to_bio([_name(tag, names) for tag in batch[settings.tags][texts[windows[0]]]])
                    encoded["labels"] += _labels([encoded.word_ids(row) for row in windows], tags, indices)
            return {**encoded, _TEXT: [rows[text] for text in texts]}

        made = self.map_batches(split, tokenize, with_indices=True)
        texts, made = made[_TEXT], made.remove_columns(_TEXT)
        if feature is not None:
            judged = _judged(made["labels"])
            self._documents[judged] = documents(texts)
            if (missing := words - sum(map(len, judged))) > 0:
                logger.warning(
                    "%d of %d words lie beyond data.max_length=%d and are neither learnt nor judged; raise it, or set "
                    "data.stride",
                    *(missing, words, settings.max_length),
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

    def baseline(self, data: DatasetDict, split: str) -> tuple[str, dict[str, float]]:
        """Each word as it is tagged most often in train; a new one as O."""
        counts: defaultdict[str, Counter[str]] = defaultdict(Counter)
        for words, tags in zip(data["train"][self.settings.tokens], self._tags(data["train"]), strict=True):
            for word, tag in zip(words, to_bio(tags), strict=True):
                counts[word][tag] += 1
        usual = {word: found.most_common(1)[0][0] for word, found in counts.items()}
        said = [to_bio([usual.get(word, OUTSIDE) for word in words]) for words in data[split][self.settings.tokens]]
        given = [to_bio(tags) for tags in self._tags(data[split])]
        return "each word's most frequent tag in train", EntityMetrics().compute(predictions=said, references=given)

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
        """Tokenised, cut to ``max_length`` or into windows of it, and padded to the longest."""
        settings = self.settings
        encoded = self.processor(
            inputs,
            truncation=True,
            max_length=settings.max_length,
            return_overflowing_tokens=settings.stride is not None,
            stride=settings.stride or 0,
            padding=True,
            return_tensors="pt",
        )
        encoded.pop("overflow_to_sample_mapping", None)
        return encoded

    def answers(self, runtime: Runtime, inputs: Sequence[Any]) -> list[dict[str, Any]]:
        """``{"entities": [{"entity", "start", "end", "text", "score"}, ...]}`` of texts of any length.

        Places are counted from 0; the score is the least probability of the tags of an entity's words.
        """
        return [{"entities": found} for found in mark(self.processor, runtime, inputs, self.label_names, self.settings)]

    def _both(self, prediction: EvalPrediction) -> tuple[list[list[str]], list[list[str]]]:
        """Tags said and tags given, of each word that has one; texts without any are left out."""
        said, labels = np.asarray(logits_of(prediction)).argmax(-1), np.asarray(prediction.label_ids)
        kept = labels != IGNORED
        # Nothing but labels comes back from an evaluation: they tell which split it was of
        groups = self._documents.get(_judged(labels.tolist()), [[row] for row in range(len(labels))])
        rows = [(said[group][kept[group]], labels[group][kept[group]]) for group in groups]
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
        check_list(dataset, tokens, TEXT, f"{where}: column '{tokens}' must hold a list of words in each row")
        if _names(dataset.features[tags]) is None:
            check_list(dataset, tags, TEXT, f"{where}: column '{tags}' must hold a list of named tags in each row")
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


def _judged(labels: Iterable[Iterable[int]]) -> tuple[tuple[int, ...], ...]:
    return tuple(tuple(label for label in row if label != IGNORED) for row in labels)


def _labels(windows: list[Sequence[int | None]], tags: Sequence[str], indices: dict[str, int]) -> list[list[int]]:
    """For each piece of a text's windows, given the word it is of: that word's tag if it is the first piece, and in
    the window that owns the word."""
    owner = owners(windows)
    found = [[IGNORED] * len(words) for words in windows]
    for number, words in enumerate(windows):
        for place in first_pieces(words):
            if owner[words[place]] == number:  # type: ignore[index]
                found[number][place] = _index(tags[words[place]], indices)  # type: ignore[index]
    return found


def _index(tag: str, indices: dict[str, int]) -> int:
    if tag not in indices:
        raise DataError(f"{unknown('tag', tag, indices)}; the model has no class for it")
    return indices[tag]

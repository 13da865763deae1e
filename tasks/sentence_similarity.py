"""Sentence similarity: which text of many belongs to a given one, such as the answer to a question.

The model is an encoder that embeds questions and answers alike (Reimers & Gurevych 2019, arXiv 1908.10084), trained
with the other answers of a batch as negatives. It is trained by EfficientTrainer, and what is saved is a model of
sentence-transformers all the same. `efficient(SentenceTransformerTrainer)` trains, too, but fits no task: it evaluates
by the loss alone, so that neither reports nor the choice of the best checkpoint get a metric, and it holds the encoder
in an `nn.Sequential`, in which nothing that is cut, distilled or loaded by class is found.
"""

import itertools
import logging
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from datasets import Dataset, DatasetDict, List, Value
from sklearn.feature_extraction.text import TfidfVectorizer
from torch.nn.utils.rnn import pad_sequence
from transformers import EvalPrediction, PreTrainedModel

from hf_efficient.errors import DataError
from hf_efficient.pretrained import resolve_model
from hf_efficient.tasks.columns import TEXT, check_type
from hf_efficient.tasks.metrics import RetrievalMetrics, Words
from hf_efficient.tasks.sentence_encoder import as_encoder, pooling_of
from hf_efficient.tasks.text import TextData, TextTask
from hf_efficient.trainer import EfficientTrainer

logger = logging.getLogger(__name__)


class SentenceSimilarityData(TextData):
    """Columns of a set of pairs of texts that belong together."""

    question: str = "question"
    """Column of the text that one has."""

    answer: str = "answer"
    """Column of the text that is to be found: an answer, or the same question in other words."""

    question_prefix: str = ""
    """Put before each question, as some models want it: `query: `."""

    answer_prefix: str = ""
    """Put before each answer: `passage: `."""

    def columns(self) -> list[str]:
        return [self.question, self.answer]


class PairTrainer(EfficientTrainer):
    """A row is a pair of texts, and a batch holds both; what evaluation collects has a row for each pair again."""

    def prediction_step(self, *args: Any, **kwargs: Any) -> Any:
        """Logits of shape (pairs, 2, width) and labels (pairs, 2)."""
        loss, *told = super().prediction_step(*args, **kwargs)
        return loss, *(None if each is None else each.unflatten(0, (-1, 2)) for each in told)


class SentenceSimilarity(TextTask):
    """The text that belongs to another, found among all of a split; judged by its rank."""

    name = "sentence-similarity"
    pipeline = ""
    auto_model = "AutoModel"
    main_metric = "mrr"
    data_settings = SentenceSimilarityData
    trainer_class = PairTrainer

    settings: SentenceSimilarityData

    def check(self, data: DatasetDict) -> None:
        for split, dataset in data.items():
            for column in self.settings.columns():
                check_type(dataset, column, TEXT, f"data.{split}: column '{column}' must hold text")
            if len(dataset.unique(self.settings.answer)) < 2:
                raise DataError(
                    f"data.{split}: all {len(dataset)} rows have the same text in column '{self.settings.answer}', so "
                    "there is none to tell it from; add rows with others"
                )
        super().check(data)

    def load_model(self, model: str, **kwargs: Any) -> PreTrainedModel:
        """An encoder, as a `SentenceEncoder` with the pooling that ``model`` was made with."""
        loaded, settings = super().load_model(model, **kwargs), self.settings
        pooling = pooling_of(resolve_model(model), loaded.config.hidden_size)
        prompts = {"query": settings.question_prefix, "document": settings.answer_prefix}
        return as_encoder(loaded, pooling, settings.max_length, prompts)

    def encode(self, split: Dataset) -> Dataset:
        """``input_ids``: of the question and then of the answer; ``texts``: how many are of each; ``labels``: numbers
        of the question and the answer, equal ones alike. Without the column of answers, of questions only."""
        tokenizer, settings = self.processor, self.settings
        prefixes = {settings.question: settings.question_prefix, settings.answer: settings.answer_prefix}
        prefixes = {column: prefix for column, prefix in prefixes.items() if column in split.column_names}
        numbers = {column: _numbers(split[column]) for column in prefixes} if len(prefixes) == 2 else {}

        def ids(prefix: str, texts: list[str]) -> list[list[int]]:
            given = [prefix + text for text in texts]
            return tokenizer(given, truncation=True, max_length=settings.max_length)["input_ids"]

        def tokenize(batch: dict[str, list]) -> dict[str, list]:
            rows = list(zip(*(ids(prefix, batch[column]) for column, prefix in prefixes.items()), strict=True))
            made = {
                "input_ids": [list(itertools.chain.from_iterable(row)) for row in rows],
                "texts": [[len(text) for text in row] for row in rows],
            }
            if numbers:
                told = (map(numbers[column].__getitem__, batch[column]) for column in prefixes)
                made["labels"] = list(map(list, zip(*told, strict=True)))
            return made

        made = self.map_batches(split, tokenize)
        if numbers:
            made = made.cast_column("labels", List(Value("float32")))  # outputs are no class scores
        full = sum(length >= settings.max_length for row in made["texts"] for length in row)
        if full:
            logger.warning(
                "%d texts fill data.max_length=%d and may have been cut; raise it", full, settings.max_length
            )
        return made

    def collator(self) -> Callable[[list[dict[str, Any]]], dict[str, Any]]:
        """Takes rows apart into their texts, and pads these to the longest."""
        return PairCollator(self.processor.pad_token_id)

    def arguments(self) -> dict[str, Any]:
        """Rows are taken apart by the collator, which needs ``texts``."""
        return {"remove_unused_columns": False}

    def compute_metrics(self, prediction: EvalPrediction) -> dict[str, float]:
        """Of the ranks of the right answers among all of the split, for each question.

        From embeddings (pairs, 2, width) and labels (pairs, 2).
        """
        embeddings, labels = np.asarray(prediction.predictions), np.asarray(prediction.label_ids)
        (asked, first), (answers, shown) = (np.unique(labels[:, side], return_index=True) for side in (0, 1))
        scores = embeddings[first, 0] @ embeddings[shown, 1].T
        return _metrics(scores, _belongs(np.searchsorted(asked, labels[:, 0]), np.searchsorted(answers, labels[:, 1])))

    def baseline(self, data: DatasetDict, split: str) -> tuple[str, dict[str, float]]:
        """The answers that share most words with the question, rare ones counting more."""
        rows = data[split]
        numbers = {column: _numbers(rows[column]) for column in self.settings.columns()}
        words = TfidfVectorizer(tokenizer=Words().tokenize, token_pattern=None, lowercase=False)
        answers = words.fit_transform(numbers[self.settings.answer])
        questions = words.transform(numbers[self.settings.question])
        told = (np.array([numbers[column][text] for text in rows[column]], dtype=int) for column in numbers)
        return "words shared, by tf-idf", _metrics((questions @ answers.T).toarray(), _belongs(*told))

    def raw(self, example: dict[str, Any]) -> str:
        """The question, without the prefix."""
        return example[self.settings.question]

    def preprocess(self, inputs: list[Any]) -> dict[str, Any]:
        """Questions with their prefix, tokenised, cut to ``max_length`` and padded to the longest."""
        texts, limit = [self.settings.question_prefix + text for text in inputs], self.settings.max_length
        options = {"truncation": True, "padding": True, "return_token_type_ids": False, "return_tensors": "pt"}
        return dict(self.processor(texts, max_length=limit, **options))

    def requests(self, rows: Dataset) -> Dataset:
        """Questions: answers are embedded once, beforehand."""
        return self.encode(rows.select_columns([self.settings.question]))


class PairCollator:
    """Joins the texts of rows into tensors (texts, tokens), one row's after the other; labels (texts,)."""

    def __init__(self, padding: int):
        self.padding = padding

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        texts = [text for row in rows for text in torch.as_tensor(row["input_ids"]).split(list(row["texts"]))]
        batch = {
            "input_ids": pad_sequence(texts, True, self.padding),
            "attention_mask": pad_sequence([torch.ones_like(text) for text in texts], True, 0),
        }
        if "labels" in rows[0]:
            batch["labels"] = torch.tensor([label for row in rows for label in row["labels"]], dtype=torch.float32)
        return batch


def ranks(scores: np.ndarray, right: np.ndarray) -> list[list[int]]:
    """Ranks from 1 of each question's right answers, ascending; of equal scores, wrong answers come first.

    Args:
        scores: shape (questions, answers).
        right: boolean, of the same shape.
    """
    order = np.lexsort((right, -scores))
    return [(np.flatnonzero(row) + 1).tolist() for row in np.take_along_axis(right, order, axis=1)]


def _metrics(scores: np.ndarray, right: np.ndarray) -> dict[str, float]:
    return RetrievalMetrics().compute(predictions=ranks(scores, right))


def _belongs(questions: np.ndarray, answers: np.ndarray) -> np.ndarray:
    """Boolean (questions, answers): which go together, from the numbers of each pair."""
    found = np.zeros((questions.max() + 1, answers.max() + 1), dtype=bool)
    found[questions, answers] = True
    return found


def _numbers(texts: Sequence[str]) -> dict[str, int]:
    """Each different text -> its number from 0, by where it comes first."""
    return {text: number for number, text in enumerate(dict.fromkeys(texts))}

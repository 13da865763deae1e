"""Metrics as local `evaluate` modules: `evaluate.load` would look for them on the Hub."""

import math
import re
from collections.abc import Iterable
from typing import Any

import datasets
import evaluate
import jiwer
import numpy as np
import sacrebleu
from rouge_score.rouge_scorer import RougeScorer
from rouge_score.tokenizers import Tokenizer
from scipy.stats import pearsonr, rankdata, spearmanr
from seqeval import metrics as entity
from sklearn.metrics import accuracy_score, f1_score, ndcg_score, roc_auc_score
from transformers import EvalPrediction

from hf_efficient.functional.tags import OUTSIDE


class _InMemory(evaluate.Metric):
    """Nothing on disk: processes that evaluate at the same time share no cache file."""

    def __init__(self, **kwargs: Any):
        super().__init__(**{"keep_in_memory": True, **kwargs})


class ClassificationMetrics(_InMemory):
    """Accuracy and macro F1 (mean over the classes that occur) of predicted class indices; both in [0, 1]."""

    def _info(self) -> evaluate.MetricInfo:
        index = datasets.Value("int64")
        return evaluate.MetricInfo(
            description=type(self).__doc__,
            citation="",
            inputs_description="predictions, references: class indices, one per example",
            features=datasets.Features({"predictions": index, "references": index}),
        )

    def _compute(self, predictions: list[int], references: list[int]) -> dict[str, float]:
        return {
            "accuracy": float(accuracy_score(references, predictions)),
            "f1_macro": float(f1_score(references, predictions, average="macro", zero_division=0.0)),
        }


class MultiLabelMetrics(_InMemory):
    """Micro and macro F1, and the share of examples whose classes are all right; in [0, 1]."""

    def _info(self) -> evaluate.MetricInfo:
        marks = datasets.List(datasets.Value("int64"))
        return evaluate.MetricInfo(
            description=type(self).__doc__,
            citation="",
            inputs_description="predictions, references: 0 or 1 for each class",
            features=datasets.Features({"predictions": marks, "references": marks}),
        )

    def _compute(self, predictions: list[list[int]], references: list[list[int]]) -> dict[str, float]:
        truth, said = np.asarray(references), np.asarray(predictions)
        return {
            "f1_micro": float(f1_score(truth, said, average="micro", zero_division=0.0)),
            "f1_macro": float(f1_score(truth, said, average="macro", zero_division=0.0)),
            "accuracy": float((truth == said).all(-1).mean()),
        }


class RegressionMetrics(_InMemory):
    """Pearson's and Spearman's correlation (0 where all predictions are the same), mean absolute and root mean squared
    error in the unit of the numbers."""

    def _info(self) -> evaluate.MetricInfo:
        number = datasets.Value("float64")
        return evaluate.MetricInfo(
            description=type(self).__doc__,
            citation="",
            inputs_description="predictions, references: numbers, one per example",
            features=datasets.Features({"predictions": number, "references": number}),
        )

    def _compute(self, predictions: list[float], references: list[float]) -> dict[str, float]:
        said, truth = np.asarray(predictions), np.asarray(references)
        varies = np.ptp(said) > 0 and np.ptp(truth) > 0
        return {
            "pearson": float(pearsonr(said, truth).statistic) if varies else 0.0,
            "spearman": float(spearmanr(said, truth).statistic) if varies else 0.0,
            "mae": float(np.abs(said - truth).mean()),
            "rmse": float(np.sqrt(np.square(said - truth).mean())),
        }


class EntityMetrics(_InMemory):
    """Precision, recall and F1 of whole entities, F1 also as a mean over types, and accuracy of single tags; in [0, 1].

    An entity counts where type, beginning and end are right (CoNLL-2000), as seqeval computes it.
    """

    def _info(self) -> evaluate.MetricInfo:
        tags = datasets.List(datasets.Value("string"))
        return evaluate.MetricInfo(
            description=type(self).__doc__,
            citation="",
            inputs_description="predictions, references: BIO tags of each text's words",
            features=datasets.Features({"predictions": tags, "references": tags}),
        )

    def _compute(self, predictions: list[list[str]], references: list[list[str]]) -> dict[str, float]:
        both = (references, predictions)
        if not any(tag != OUTSIDE for rows in both for row in rows for tag in row):  # seqeval takes a mean of nothing
            return {"precision": 0.0, "recall": 0.0, "f1": 0.0, "f1_macro": 0.0, "accuracy": 1.0}
        return {
            "precision": float(entity.precision_score(*both, zero_division=0)),
            "recall": float(entity.recall_score(*both, zero_division=0)),
            "f1": float(entity.f1_score(*both, zero_division=0)),
            "f1_macro": float(entity.f1_score(*both, average="macro", zero_division=0)),
            "accuracy": float(entity.accuracy_score(*both)),
        }


class ErrorRates(_InMemory):
    """Words and characters that are wrong, missing or too many, over those given; over all texts, 0 or more."""

    def _info(self) -> evaluate.MetricInfo:
        return _info_of_texts(type(self).__doc__)

    def _compute(self, predictions: list[str], references: list[str]) -> dict[str, float]:
        return {
            "wer": float(jiwer.wer(references, predictions)),
            "cer": float(jiwer.cer(references, predictions)),
        }


class TranslationMetrics(_InMemory):
    """chrF and BLEU of a whole set of texts by sacrebleu, from 0 to 100.

    chrF: Popović 2015 (character n-grams up to 6, no words); BLEU: Papineni et al. 2002, with the ``tokenize`` of
    sacrebleu that is given.
    """

    def _info(self) -> evaluate.MetricInfo:
        return _info_of_texts(type(self).__doc__)

    def _compute(self, predictions: list[str], references: list[str], tokenize: str = "13a") -> dict[str, float]:
        return {
            "chrf": float(sacrebleu.corpus_chrf(predictions, [references]).score),
            "bleu": float(sacrebleu.corpus_bleu(predictions, [references], tokenize=tokenize).score),
        }


class SummaryMetrics(_InMemory):
    """ROUGE-1, -2 and -L (Lin 2004): F1 of words, pairs of words and the longest common sequence; means, in [0, 1].

    By the package rouge-score, without stemming, with words of any script (see `Words`).
    """

    def _info(self) -> evaluate.MetricInfo:
        return _info_of_texts(type(self).__doc__)

    def _compute(self, predictions: list[str], references: list[str]) -> dict[str, float]:
        names = ("rougeL", "rouge1", "rouge2")
        scorer = RougeScorer(list(names), tokenizer=Words())
        found = [scorer.score(reference, said) for reference, said in zip(references, predictions, strict=True)]
        return {name: sum(each[name].fmeasure for each in found) / len(found) for name in names}


class RetrievalMetrics(_InMemory):
    """Of the ranks of right answers, means over questions, in [0, 1].

    mrr: one over the first right answer's rank; recall@k: share of the right ones among the first k; ndcg@10: their
    gain among the first ten, less by the logarithm of the rank, over the best there is (Järvelin & Kekäläinen 2002).
    """

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=type(self).__doc__,
            citation="",
            inputs_description="predictions: ranks from 1 of each question's right answers, ascending",
            features=datasets.Features({"predictions": datasets.List(datasets.Value("int64"))}),
        )

    def _compute(self, predictions: list[list[int]]) -> dict[str, float]:
        found = {f"recall@{k}": [sum(rank <= k for rank in one) / len(one) for one in predictions] for k in (1, 5, 10)}
        gains = [_gain(one) / _gain(range(1, len(one) + 1)) for one in predictions]
        reciprocal = [1 / one[0] for one in predictions]
        return {name: sum(each) / len(each) for name, each in {"mrr": reciprocal, **found, "ndcg@10": gains}.items()}


def _gain(ranks: Iterable[int], most: int = 10) -> float:
    return sum(1 / math.log2(rank + 1) for rank in ranks if rank <= most)


class RankingMetrics(_InMemory):
    """Of scores of what was shown at once, means over impressions, in [0, 1], as MIND (Wu et al. 2020) has them.

    auc: share of pairs of a clicked candidate and another that are in order; mrr: mean over the clicked of one over
    their rank; ndcg@k: gain of the clicked among the first k, less by the logarithm of the rank, over the best.
    Equal scores count as any order of them, on average. Impressions without both kinds of candidates are left out.
    """

    def _info(self) -> evaluate.MetricInfo:
        number, mark = datasets.Value("float64"), datasets.Value("int64")
        return evaluate.MetricInfo(
            description=type(self).__doc__,
            citation="",
            inputs_description="predictions: scores of each impression's candidates; references: 1 where clicked, or 0",
            features=datasets.Features({"predictions": datasets.List(number), "references": datasets.List(mark)}),
        )

    def _compute(self, predictions: list[list[float]], references: list[list[int]]) -> dict[str, float]:
        both = zip(map(np.asarray, predictions), map(np.asarray, references), strict=True)
        found = [_ranked(scores, clicks) for scores, clicks in both if 0 < clicks.sum() < len(clicks)]
        return {name: float(np.mean([one[name] for one in found])) for name in found[0]}


def _ranked(scores: np.ndarray, clicks: np.ndarray) -> dict[str, float]:
    gains = {f"ndcg@{k}": float(ndcg_score([clicks], [scores], k=k)) for k in (5, 10)}
    reciprocal = 1 / rankdata(-scores)[clicks == 1]
    return {"auc": float(roc_auc_score(clicks, scores)), "mrr": float(reciprocal.mean()), **gains}


class Words(Tokenizer):
    """Words of a text in lower case; Chinese characters and Japanese syllables, written without spaces, one by one.

    The package's own knows the letters a to z alone. On ASCII both are the same.
    """

    _PATTERN = re.compile(r"[\u3040-\u30ff\u3400-\u9fff]|[^\W_\u3040-\u30ff\u3400-\u9fff]+")

    def tokenize(self, text: str) -> list[str]:
        return self._PATTERN.findall(text.lower())


def _info_of_texts(description: str | None) -> evaluate.MetricInfo:
    text = datasets.Value("string")
    return evaluate.MetricInfo(
        description=description,
        citation="",
        inputs_description="predictions, references: texts, one per example",
        features=datasets.Features({"predictions": text, "references": text}),
    )


def logits_of(prediction: EvalPrediction) -> Any:
    """Some models return hidden states, too."""
    given = prediction.predictions
    return given[0] if isinstance(given, tuple) else given

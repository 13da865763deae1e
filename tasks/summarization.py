"""Summarization: what a text says, in fewer words."""

import re

from datasets import DatasetDict

from hf_efficient.tasks.metrics import SummaryMetrics
from hf_efficient.tasks.seq2seq import Seq2Seq, Seq2SeqData


class SummarizationData(Seq2SeqData):
    """Columns of a set of texts with summaries."""

    source: str = "document"
    """Column of the text."""

    target: str = "summary"
    """Column of its summary."""


class Summarization(Seq2Seq):
    """What a text says, in fewer words; judged by ROUGE."""

    name = "summarization"
    main_metric = "rougeL"
    data_settings = SummarizationData

    settings: SummarizationData

    def scores(self, said: list[str], given: list[str]) -> dict[str, float]:
        return SummaryMetrics().compute(predictions=said, references=given)

    def baseline(self, data: DatasetDict, split: str) -> tuple[str, dict[str, float]]:
        """The first sentence."""
        rows = data[split]
        leads = [lead(text) for text in rows[self.settings.source]]
        return "the first sentence", self.scores(leads, list(rows[self.settings.target]))


def lead(text: str) -> str:
    """The first sentence of ``text``: up to the first full stop, question or exclamation mark that ends a word."""
    return re.split(r"(?<=[.!?])\s+|(?<=[\u3002\uff01\uff1f])", text.strip(), maxsplit=1)[0]  # of Chinese, too

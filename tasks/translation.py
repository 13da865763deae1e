"""Translation: a text in another language."""

from typing import Literal

from datasets import DatasetDict

from hf_efficient.tasks.metrics import TranslationMetrics
from hf_efficient.tasks.seq2seq import Seq2Seq, Seq2SeqData


class TranslationData(Seq2SeqData):
    """Columns of a set of texts in two languages."""

    bleu_tokenize: Literal["13a", "intl", "zh", "char"] = "13a"
    """How BLEU splits texts into words: sacrebleu's names; `zh` where the target is Chinese."""


class Translation(Seq2Seq):
    """A text in another language, judged by chrF and BLEU."""

    name = "translation"
    main_metric = "chrf"
    data_settings = TranslationData

    settings: TranslationData

    def scores(self, said: list[str], given: list[str]) -> dict[str, float]:
        return TranslationMetrics().compute(predictions=said, references=given, tokenize=self.settings.bleu_tokenize)

    def baseline(self, data: DatasetDict, split: str) -> tuple[str, dict[str, float]]:
        """The source as it is: names and numbers are right in it."""
        rows = data[split]
        return "the source, copied", self.scores(list(rows[self.settings.source]), list(rows[self.settings.target]))

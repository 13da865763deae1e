"""What tasks from text to text share: encoder-decoders that are judged by what they generate."""

import json
import logging
from abc import abstractmethod
from collections.abc import Callable
from typing import Any

from datasets import Dataset, DatasetDict
from pydantic import Field
from transformers import DataCollatorForSeq2Seq, EvalPrediction, PreTrainedModel

from hf_efficient.arguments import EfficientSeq2SeqTrainingArguments
from hf_efficient.data import DataSettings
from hf_efficient.tasks.columns import TEXT, check_type
from hf_efficient.tasks.generating import generating_arguments, texts_of
from hf_efficient.tasks.text import TextTask
from hf_efficient.timing import GeneratingRuntime
from hf_efficient.trainer import EfficientSeq2SeqTrainer

logger = logging.getLogger(__name__)


class Seq2SeqData(DataSettings):
    """Columns of a set of pairs of texts. A field of a column is named with a dot: ``translation.de``."""

    source: str = "source"
    """Column of the text that the model reads."""

    target: str = "target"
    """Column of the text that it is to write."""

    prefix: str = ""
    """Put before each source, as T5 wants it: `summarize: `."""

    max_source_length: int = Field(default=128, ge=4)
    """Sources are cut after so many tokens, prefix and special ones included."""

    max_target_length: int = Field(default=128, ge=4)
    """Targets are cut after so many tokens, special ones included, and no more are generated."""

    num_beams: int = Field(default=1, ge=1)
    """Beams of the search while texts are generated; 1: the most probable token each time."""

    def columns(self) -> list[str]:
        return [self.source, self.target]


class Seq2Seq(TextTask):
    """Text to text. Metrics are of generated texts, and so is the time that is measured."""

    pipeline = ""
    auto_model = "AutoModelForSeq2SeqLM"
    data_settings = Seq2SeqData
    trainer_class = EfficientSeq2SeqTrainer
    arguments_class = EfficientSeq2SeqTrainingArguments
    length_settings = ("max_source_length", "max_target_length")

    settings: Seq2SeqData

    @abstractmethod
    def scores(self, said: list[str], given: list[str]) -> dict[str, float]:
        """Metrics of generated texts beside the targets, `main_metric` first."""

    def check(self, data: DatasetDict) -> None:
        for split, dataset in data.items():
            for column in self.settings.columns():
                check_type(dataset, column, TEXT, f"data.{split}: column '{column}' must hold text")
        super().check(data)

    def encode(self, split: Dataset) -> Dataset:
        """``input_ids`` and ``attention_mask`` of the source, ``labels``: ids of the target; cut and not padded."""
        tokenizer, settings = self.processor, self.settings
        has_target = settings.target in split.column_names

        def tokenize(batch: dict[str, list]) -> dict[str, list]:
            sources = [settings.prefix + text for text in batch[settings.source]]
            encoded = tokenizer(
                sources, truncation=True, max_length=settings.max_source_length, return_token_type_ids=False
            )
            if has_target:
                targets = tokenizer(
                    text_target=batch[settings.target], truncation=True, max_length=settings.max_target_length
                )
                encoded["labels"] = targets["input_ids"]
            return dict(encoded)

        made = self.map_batches(split, tokenize)
        for column, limit in (("input_ids", "max_source_length"), ("labels", "max_target_length")):
            length = getattr(settings, limit)
            full = sum(len(row) >= length for row in made[column]) if column in made.column_names else 0
            if full:
                logger.warning(
                    "%d of %d texts fill data.%s=%d and may have been cut; raise it", full, len(made), limit, length
                )
        return made

    def collator(self) -> Callable[[list[dict[str, Any]]], dict[str, Any]]:
        """Pads each batch to its longest row; labels with -100."""
        return DataCollatorForSeq2Seq(self.processor)

    def arguments(self) -> dict[str, Any]:
        """Evaluation generates; the token that starts the decoder counts as generated."""
        return generating_arguments(self.settings.max_target_length + 1, self.settings.num_beams)

    def trainer(self, **kwargs: Any) -> Any:
        made = super().trainer(**kwargs)
        if made.args.label_smoothing_factor:  # stock takes the labels away, from which models make decoder inputs
            made.data_collator.model = made.model
        return made

    def compute_metrics(self, prediction: EvalPrediction) -> dict[str, float]:
        """`scores` of token ids (examples, length), generated and given."""
        return self.scores(*texts_of(prediction, self.processor, self.name))

    def details(self, prediction: EvalPrediction) -> dict[str, str | bytes]:
        """``texts.jsonl``: what was generated for each row, beside the target."""
        rows = zip(*texts_of(prediction, self.processor, self.name), strict=True)
        lines = (json.dumps({"generated": said, "target": given}, ensure_ascii=False) for said, given in rows)
        return {"texts.jsonl": "".join(f"{line}\n" for line in lines)}

    def raw(self, example: dict[str, Any]) -> str:
        """The source, without the prefix."""
        return example[self.settings.source]

    def preprocess(self, inputs: list[Any]) -> dict[str, Any]:
        """With the prefix, tokenised, cut to ``max_source_length`` and padded to the longest."""
        texts, limit = [self.settings.prefix + text for text in inputs], self.settings.max_source_length
        options = {"truncation": True, "padding": True, "return_token_type_ids": False, "return_tensors": "pt"}
        return dict(self.processor(texts, max_length=limit, **options))

    def runtime(self, model: PreTrainedModel) -> GeneratingRuntime:
        return GeneratingRuntime(
            model, max_new_tokens=self.settings.max_target_length, num_beams=self.settings.num_beams
        )

"""Speech recognition: what is said in a recording, by connectionist temporal classification (CTC) or by generation."""

import json
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import numpy as np
from datasets import Dataset, DatasetDict, List, Value
from pydantic import Field
from transformers import (
    MODEL_FOR_CTC_MAPPING,
    AutoConfig,
    AutoFeatureExtractor,
    AutoModelForSpeechSeq2Seq,
    EvalPrediction,
    PretrainedConfig,
    PreTrainedModel,
    Wav2Vec2CTCTokenizer,
    Wav2Vec2Processor,
)

from hf_efficient.arguments import EfficientSeq2SeqTrainingArguments
from hf_efficient.errors import ConfigError, DataError
from hf_efficient.pretrained import has_file, load_pretrained, resolve_model
from hf_efficient.tasks.audio import IGNORED, AudioData, AudioTask, Labeller
from hf_efficient.tasks.columns import TEXT, check_type
from hf_efficient.tasks.generating import generating_arguments, texts_of
from hf_efficient.tasks.metrics import ErrorRates, logits_of
from hf_efficient.tasks.speech_generation import FAMILIES, SETTINGS, Writer, WritingCollator
from hf_efficient.timing import Runtime
from hf_efficient.trainer import EfficientSeq2SeqTrainer

BLANK, SPACE, UNKNOWN = "[PAD]", "|", "[UNK]"
"""Tokens of a vocabulary that is made from transcripts, beside their characters."""

_TOKENIZER_FILES = ("tokenizer_config.json", "vocab.json", "tokenizer.json")
_SHOWN = 10


class SpeechRecognitionData(AudioData):
    """Columns of a set of recordings with their transcripts."""

    text: str = "text"
    """Column of the transcript."""

    case: Literal["keep", "lower", "upper"] = "keep"
    """How transcripts are spelt; many pretrained models know capital letters only."""

    drop: str = ""
    """Characters that are left out of transcripts, such as punctuation that nobody hears."""

    max_seconds: float = 30.0

    language: str | None = None
    """What is spoken, e.g. `en`; for models that generate, and tell languages apart."""

    max_tokens: int | None = Field(default=None, ge=4)
    """Tokens of a transcript at most, special ones included, of models that generate; else as many as the model can."""

    num_beams: int = Field(default=1, ge=1)
    """Beams of the search while transcripts are generated; 1: the most probable token each time."""

    def columns(self) -> list[str]:
        return [self.audio, self.text]

    def transcript(self, text: str) -> str:
        """``text`` as it is learnt and judged: spelt alike, single spaces."""
        text = text.translate(dict.fromkeys(map(ord, self.drop)))
        text = {"keep": str, "lower": str.lower, "upper": str.upper}[self.case](text)
        return " ".join(text.split())


class SpeechRecognition(AudioTask):
    """What is said in a recording.

    Of CTC models the most probable token of each position counts (greedy decoding). Models of the Whisper kind are
    judged by what they generate, and timed while they do. Which it is, the model's config tells.
    """

    name = "speech-recognition"
    pipeline = "automatic-speech-recognition"
    auto_model = "AutoModelForCTC"
    auto_processor = "AutoProcessor"
    main_metric = "wer"
    greater_is_better = False
    data_settings = SpeechRecognitionData
    label_feature = List(Value("int64"))

    settings: SpeechRecognitionData

    _characters: tuple[str, ...] = ()
    _is_new_vocabulary = False
    _writer: Writer | None = None
    """Of models that generate; None for CTC."""

    def check(self, data: DatasetDict) -> None:
        settings, found = self.settings, set()
        for split, dataset in data.items():
            where = f"data.{split}"
            self.check_inputs(dataset, where)
            check_type(dataset, settings.text, TEXT, f"{where}: column '{settings.text}' must hold text")
            for number, text in enumerate(map(settings.transcript, dataset[settings.text]), start=1):
                if not text:
                    raise DataError(f"{where}: row {number}: data.drop leaves no transcript; delete the row")
                found |= set(text) if split == "train" else set()
        self._characters = tuple(sorted(found - {" "}))
        super().check(data)

    def load_processor(self, model: str, **kwargs: Any) -> Any:
        self._choose(model)
        return super().load_processor(model, **kwargs)

    def load_model(self, model: str, **kwargs: Any) -> PreTrainedModel:
        self._choose(model)
        loaded = super().load_model(model, **kwargs)
        if self._writer is not None:
            self._writer.prepare(loaded, model)
        return loaded

    def _choose(self, model: str) -> None:
        """Go by the kind of ``model``.

        Raises:
            ConfigError: one of no kind that is known here, or settings of another kind.
        """
        config = load_pretrained(AutoConfig, resolve_model(model))
        if config.model_type in FAMILIES:
            self._writer = Writer.of(model, config, self.settings)
            self.trainer_class, self.arguments_class = EfficientSeq2SeqTrainer, EfficientSeq2SeqTrainingArguments
        elif type(config) not in MODEL_FOR_CTC_MAPPING:
            raise ConfigError(
                f"speech-recognition takes models with a CTC head (wav2vec2, hubert, ...) and encoder-decoders of the "
                f"Whisper kind ({', '.join(FAMILIES)}); '{model}' is a '{config.model_type}' model"
            )
        elif odd := [name for name in SETTINGS if name in self.settings.model_fields_set]:
            raise ConfigError(f"data.{odd[0]} is for models that generate, and '{model}' has a CTC head; drop it")

    def auto_class(self) -> Any:
        return super().auto_class() if self._writer is None else AutoModelForSpeechSeq2Seq

    def make_processor(self, model: str, **kwargs: Any) -> Any:
        """Where a CTC ``model`` has no tokenizer, one is made of the characters of the training transcripts.

        Raises:
            ConfigError: there is neither.
        """
        source = resolve_model(model)
        has_tokenizer = any(has_file(source, name) for name in _TOKENIZER_FILES)
        self._is_new_vocabulary = not has_tokenizer and self._writer is None
        if has_tokenizer:
            prompt = {} if self._writer is None else self._writer.prompt
            return super().make_processor(model, **prompt, **kwargs)
        if self._writer is not None or not self._characters:
            raise ConfigError(f"model '{model}' has no tokenizer files; save its processor into the same folder")
        extractor = load_pretrained(AutoFeatureExtractor, source, **kwargs)
        return Wav2Vec2Processor(extractor, _tokenizer_of(self._characters))

    def fit_config(self, config: PretrainedConfig) -> None:
        super().fit_config(config)
        if self._is_new_vocabulary:
            config.vocab_size, config.pad_token_id = len(self._tokenizer), self._tokenizer.pad_token_id
        if self._writer is None:
            config.ctc_loss_reduction = "mean"  # the sum, which is usual, grows with the batch

    @property
    def _tokenizer(self) -> Any:
        return self.processor.tokenizer

    def labeller(self, split: Dataset) -> Labeller | None:
        """Tokens of the transcript; for CTC, then blanks up to as many positions as the model makes of the recording.

        The loss leaves blanks out; metrics tell by them where a recording ends and padding begins.
        """
        settings, tokenizer, strides, writer = self.settings, self._tokenizer, self._strides, self._writer
        if settings.text not in split.column_names:
            return None

        def label(text: str, row: int, samples: int) -> list[int]:
            if writer is not None:
                return writer.labels(settings.transcript(text), row, tokenizer)
            ids = _ids(settings.transcript(text), row, tokenizer)
            if strides is None:
                return ids
            positions, needed = strides.outputs(samples), len(ids) + sum(a == b for a, b in pairwise(ids))
            if needed > positions:
                raise DataError(
                    f"row {row + 1}: the transcript takes {needed} positions, and the recording gives {positions} (up "
                    "to data.max_seconds); correct one of them, raise data.max_seconds, or delete the row"
                )
            return ids + [tokenizer.pad_token_id] * (positions - len(ids))

        return lambda batch, rows, samples: [
            label(*one) for one in zip(batch[settings.text], rows, samples, strict=True)
        ]

    def collator(self) -> Callable[[list[dict[str, Any]]], dict[str, Any]]:
        made = super().collator()
        return made if self._writer is None else WritingCollator(self.extract.extractor, self._writer)

    def arguments(self) -> dict[str, Any]:
        if self._writer is None:
            return super().arguments()
        return generating_arguments(self._writer.most_tokens, self._writer.num_beams)

    def runtime(self, model: PreTrainedModel) -> Runtime:
        return super().runtime(model) if self._writer is None else self._writer.runtime(model)

    def baseline(self, data: DatasetDict, split: str) -> tuple[str, dict[str, float]]:
        """The most frequent transcript of train, always."""
        train, given = (
            [self.settings.transcript(text) for text in data[name][self.settings.text]] for name in ("train", split)
        )
        most = Counter(train).most_common(1)[0][0]
        return f"always '{most}'", ErrorRates().compute(predictions=[most] * len(given), references=given)

    def compute_metrics(self, prediction: EvalPrediction) -> dict[str, float]:
        """Word and character error rate.

        From labels (examples, positions) and logits (examples, positions, tokens) or generated ids (examples, length).
        """
        said, given = self._both(prediction)
        return ErrorRates().compute(predictions=said, references=given)

    def details(self, prediction: EvalPrediction) -> dict[str, str | bytes]:
        """``transcripts.tsv``: what was given and what was recognised, row by row."""
        said, given = self._both(prediction)
        lines = ["given\trecognised", *map("\t".join, zip(given, said, strict=True))]
        return {"transcripts.tsv": "\n".join(lines) + "\n"}

    def _both(self, prediction: EvalPrediction) -> tuple[list[str], list[str]]:
        """Transcripts said and transcripts given."""
        if self._writer is not None:
            said, given = texts_of(prediction, self._tokenizer, self.name)
            return list(map(_spaced, said)), list(map(_spaced, given))
        logits, labels = np.asarray(logits_of(prediction)), np.asarray(prediction.label_ids)
        # rows of batches of other lengths are padded with -100 throughout
        heard = (logits != IGNORED).any(-1) if self._strides is None else labels != IGNORED
        said = [ids[:count] for ids, count in zip(logits.argmax(-1), heard.sum(1), strict=True)]
        given = [ids[(ids != IGNORED) & (ids != self._tokenizer.pad_token_id)] for ids in labels]
        return (
            [_spaced(self._tokenizer.decode(ids.tolist())) for ids in said],
            [_spaced(self._tokenizer.decode(ids.tolist(), group_tokens=False)) for ids in given],
        )


def _tokenizer_of(characters: Iterable[str]) -> Wav2Vec2CTCTokenizer:
    """One token for each character. The blank is the first, as models expect it."""
    vocabulary = {token: index for index, token in enumerate([BLANK, SPACE, UNKNOWN, *characters])}
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "vocab.json"
        file.write_text(json.dumps(vocabulary), encoding="utf-8")
        return Wav2Vec2CTCTokenizer(
            str(file),
            unk_token=UNKNOWN,
            pad_token=BLANK,
            word_delimiter_token=SPACE,
            bos_token=None,
            eos_token=None,
        )


def _ids(text: str, row: int, tokenizer: Any) -> list[int]:
    """Tokens of a transcript.

    Raises:
        DataError: characters that have none.
    """
    ids = tokenizer(text, add_special_tokens=False).input_ids
    delimiter = getattr(tokenizer, "word_delimiter_token", None)
    if tokenizer.unk_token_id in ids or (delimiter is not None and delimiter in text):
        unknown = sorted(
            {
                one
                for one in set(text) - {" "}
                if one == delimiter or tokenizer.unk_token_id in tokenizer(one, add_special_tokens=False).input_ids
            }
        )
        raise DataError(
            f"row {row + 1}: the tokenizer has nothing for {' '.join(unknown[:_SHOWN])} in the transcript; list such "
            "characters in data.drop, set data.case, or correct the row"
        )
    return ids


def _spaced(text: str) -> str:
    return " ".join(text.split())

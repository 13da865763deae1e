"""Speech recognition by encoder-decoders that write the transcript token by token, as Whisper does."""

from dataclasses import dataclass
from typing import Any, Self

import torch
from transformers import GenerationConfig, PretrainedConfig, PreTrainedModel
from transformers.models.whisper.tokenization_whisper import TO_LANGUAGE_CODE

from hf_efficient.errors import ConfigError, DataError, unknown
from hf_efficient.pretrained import has_file, load_pretrained, resolve_model
from hf_efficient.tasks.audio import IGNORED, AudioCollator
from hf_efficient.timing import GeneratingRuntime

FAMILIES = ("whisper",)
"""`config.model_type` of models that write."""

SETTINGS = ("language", "max_tokens", "num_beams")
"""Of `SpeechRecognitionData`, that make no difference to others."""

_TRANSCRIBE = "transcribe"  # and not translate into English, which Whisper has learnt too


@dataclass(frozen=True)
class Writer:
    """How a model writes transcripts. It holds plain values, so `datasets` can cache what it makes.

    Attributes:
        start: id of the token that starts the decoder.
        padding: id of the token that stands for padding in the decoder's inputs.
        most_tokens: of a transcript, special ones included.
        num_beams: of the search.
        language: code of what is spoken, e.g. ``en``; None where the model does not tell languages apart.
    """

    start: int
    padding: int
    most_tokens: int
    num_beams: int
    language: str | None

    @classmethod
    def of(cls, model: str, config: PretrainedConfig, settings: Any) -> Self:
        """What ``model`` and the data's settings say.

        Args:
            settings: those of `SETTINGS`.

        Raises:
            ConfigError: settings that the model cannot follow.
        """
        positions = config.max_target_positions
        if (most := settings.max_tokens or positions) > positions:
            raise ConfigError(
                f"data.max_tokens is {most}, but model '{model}' writes at most {positions} tokens; "
                f"set data.max_tokens={positions}"
            )
        language = _language(model, settings.language, _generation(model, config))
        return cls(config.decoder_start_token_id, config.pad_token_id, most, settings.num_beams, language)

    @property
    def prompt(self) -> dict[str, str]:
        """What tokenizer and generation are to begin transcripts with, beside the token that starts the decoder."""
        return {"language": self.language, "task": _TRANSCRIBE} if self.language else {}

    def prepare(self, loaded: PreTrainedModel, model: str) -> None:
        """Let ``loaded``, which was made from ``model``, generate as that does, in the language of the data."""
        loaded.generation_config = _generation(model, loaded.config)
        for name, value in self.prompt.items():
            setattr(loaded.generation_config, name, value)

    def labels(self, text: str, row: int, tokenizer: Any) -> list[int]:
        """Tokens of a transcript as the decoder is to write them: after the one that starts it, up to the end.

        Raises:
            DataError: more than the model writes.
        """
        ids = tokenizer(text).input_ids
        ids = ids[1:] if ids[0] == self.start else ids
        if len(ids) > self.most_tokens:
            raise DataError(
                f"row {row + 1}: the transcript takes {len(ids)} tokens, and {self.most_tokens} are written at most "
                "(data.max_tokens, else what the model can); shorten it, or delete the row"
            )
        return ids

    def runtime(self, model: PreTrainedModel) -> GeneratingRuntime:
        return GeneratingRuntime(model, prompt_tokens=0, max_length=self.most_tokens, num_beams=self.num_beams)


class WritingCollator(AudioCollator):
    """Adds ``decoder_input_ids``: the labels, each a place later, after the token that starts the decoder.

    Whoever runs the model without its loss (a teacher, label smoothing, timing) then has them.
    """

    def __init__(self, extractor: Any, writer: Writer):
        super().__init__(extractor)
        self.writer = writer

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        batch = super().__call__(rows)
        if "labels" in batch:
            before = batch["labels"].roll(1, dims=1)
            before[:, 0] = self.writer.start
            batch["decoder_input_ids"] = before.masked_fill(before == IGNORED, self.writer.padding)
        return batch


def _generation(model: str, config: PretrainedConfig) -> GenerationConfig:
    """How ``model`` generates; random weights go by the same file."""
    source = resolve_model(model)
    if has_file(source, "generation_config.json"):
        return load_pretrained(GenerationConfig, source)
    return GenerationConfig.from_model_config(config)


def _language(model: str, given: str | None, generation: GenerationConfig) -> str | None:
    """Code of the language to write, e.g. ``en``; a model that was trained in one has it in its own settings.

    Raises:
        ConfigError: a model of several languages without one, a language that it does not know, or any language with a
            model that does not tell them apart.
    """
    known = [token.strip("<|>") for token in getattr(generation, "lang_to_id", None) or {}]
    if not known or not getattr(generation, "is_multilingual", True):
        if given is not None:
            raise ConfigError(
                f"data.language is '{given}', but model '{model}' does not tell languages apart (is_multilingual and "
                "lang_to_id in its generation_config.json); drop it"
            )
        return None
    own = getattr(generation, "language", None) if given is None else given
    if own is None:
        raise ConfigError(
            f"model '{model}' writes {len(known)} languages; set data.language to what is spoken, e.g. "
            f"data.language={known[0]}"
        )
    code = TO_LANGUAGE_CODE.get(own.strip("<|>").lower(), own.strip("<|>").lower())
    if code not in known:
        raise ConfigError(unknown("language", own, known))
    return code

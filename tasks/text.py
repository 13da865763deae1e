"""What tasks on text share: a tokenizer, and texts cut to a number of tokens."""

from typing import Any, ClassVar

from pydantic import Field
from transformers import PreTrainedModel

from hf_efficient.data import DataSettings
from hf_efficient.errors import ConfigError
from hf_efficient.task import Task


class TextData(DataSettings):
    """Settings of data that a tokenizer encodes."""

    max_length: int = Field(default=128, ge=4)
    """Texts are cut after so many tokens, special ones included."""


class TextTask(Task):
    """Loads tokenizer and model, and sees to it that both take texts as long as the settings say."""

    length_settings: ClassVar[tuple[str, ...]] = ("max_length",)
    """Settings that are numbers of tokens."""

    data_settings: ClassVar[type[DataSettings]] = TextData

    def load_processor(self, model: str, **kwargs: Any) -> Any:
        tokenizer = super().load_processor(model, **kwargs)
        if len(tokenizer) <= len(tokenizer.all_special_tokens):
            raise ConfigError(f"model '{model}' has no tokenizer files; save the tokenizer into the same folder")
        if tokenizer.pad_token is None:  # decoder models: padding is masked out, any token will do
            tokenizer.pad_token = tokenizer.eos_token
        self._check_length(tokenizer.model_max_length, model)
        return tokenizer

    def load_model(self, model: str, **kwargs: Any) -> PreTrainedModel:
        loaded = super().load_model(model, **kwargs)
        self._check_length(getattr(loaded.config, "max_position_embeddings", None), model)
        if loaded.config.pad_token_id is None and self.processor is not None:
            loaded.config.pad_token_id = self.processor.pad_token_id
        return loaded

    def _check_length(self, limit: int | None, model: str) -> None:
        for name in self.length_settings:
            if limit and 0 < limit < (length := getattr(self.settings, name)):
                raise ConfigError(
                    f"data.{name} is {length}, but model '{model}' takes at most {limit} tokens; "
                    f"set data.{name}={limit}"
                )

"""What tasks share whose encoder-decoders are judged by what they generate."""

from typing import Any

import numpy as np
from transformers import EvalPrediction

from hf_efficient.errors import ConfigError


def generating_arguments(most_tokens: int, num_beams: int) -> dict[str, Any]:
    """Fields of `EfficientSeq2SeqTrainingArguments` with which evaluation generates.

    In larger batches, since a step takes nearly as long for few texts as for many.

    Args:
        most_tokens: of a text, the one that starts the decoder counted in.
    """
    return {
        "per_device_eval_batch_size": 32,
        "predict_with_generate": True,
        "generation_max_length": most_tokens,
        "generation_num_beams": num_beams,
    }


def texts_of(prediction: EvalPrediction, tokenizer: Any, task: str) -> tuple[list[str], list[str]]:
    """What was generated, and what was to be: texts of token ids (texts, length) without special tokens.

    Args:
        task: its name, for the message.

    Raises:
        ConfigError: there are logits.
    """
    given: Any = prediction.predictions
    said = np.asarray(given[0] if isinstance(given, tuple) else given)
    if said.ndim != 2:
        raise ConfigError(f"{task} is judged by generated texts, got logits; set predict_with_generate=True")
    return _decoded(said, tokenizer), _decoded(np.asarray(prediction.label_ids), tokenizer)


def _decoded(ids: np.ndarray, tokenizer: Any) -> list[str]:
    """Texts of token ids (texts, length); -100 is padding."""
    filled = np.where(ids < 0, tokenizer.pad_token_id, ids)
    return [text.strip() for text in tokenizer.batch_decode(filled, skip_special_tokens=True)]

"""Tones of a tenth of a second, and tiny models that take them."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from transformers import (
    ASTConfig,
    ASTFeatureExtractor,
    ASTForAudioClassification,
    Wav2Vec2Config,
    Wav2Vec2FeatureExtractor,
    set_seed,
)

RATE = 8000
HERTZ = {"low": 300, "high": 1900, "middle": 900}
SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}


def tone(name: str, index: int = 0, rate: int = RATE) -> np.ndarray:
    """A little longer for each ``index``."""
    seconds = np.arange(round((0.1 + 0.004 * index) * rate)) / rate
    return (0.5 * np.sin(2 * np.pi * HERTZ[name] * seconds)).astype(np.float32)


def file_bytes(samples: np.ndarray, rate: int = RATE, format: str = "WAV") -> bytes:
    file = io.BytesIO()
    soundfile.write(file, samples, rate, format=format)
    return file.getvalue()


def wav2vec2_config(**changes: Any) -> Wav2Vec2Config:
    """20 positions in a tenth of a second."""
    convolutions = {"conv_dim": (16, 16), "conv_kernel": (10, 8), "conv_stride": (5, 8), "feat_extract_norm": "layer"}
    still = {f"{name}_dropout": 0.0 for name in ("hidden", "activation", "attention", "feat_proj", "final")}
    others = {"layerdrop": 0.0, "mask_time_prob": 0.0, "num_conv_pos_embeddings": 4, "num_conv_pos_embedding_groups": 2}
    return Wav2Vec2Config(**{**SMALL, **convolutions, **still, **others, "classifier_proj_size": 16, **changes})


def wav2vec2_extractor() -> Wav2Vec2FeatureExtractor:
    return Wav2Vec2FeatureExtractor(sampling_rate=RATE, return_attention_mask=True)


def tiny_wav2vec2(folder: Path, auto_class: Any, **changes: Any) -> str:
    """Write a model and its feature extractor, no tokenizer."""
    set_seed(0)
    auto_class.from_config(wav2vec2_config(**changes)).save_pretrained(folder)
    wav2vec2_extractor().save_pretrained(folder)
    return str(folder)


def tiny_ast(folder: Path) -> str:
    """Write a model that takes spectrograms of 0.2 s."""
    set_seed(0)
    sizes = {"max_length": 8, "num_mel_bins": 16}
    config = ASTConfig(patch_size=4, frequency_stride=4, time_stride=4, **sizes, **SMALL)
    ASTForAudioClassification(config).save_pretrained(folder)
    ASTFeatureExtractor(sampling_rate=RATE, mean=-2.0, std=2.0, **sizes).save_pretrained(folder)
    return str(folder)

"""Items as vectors, made once and kept with a fingerprint of the model that made them."""

import copy
import hashlib
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file

from hf_efficient.errors import ConfigError, ExportError, MissingDependencyError
from hf_efficient.files import atomic_path
from hf_efficient.predictor import Predictor
from hf_efficient.tasks.apps.encoder import Encoder

logger = logging.getLogger(__name__)

BATCH = 32
VECTORS = "vectors.safetensors"
_OF_MODEL = ("config.json", "*.safetensors", "tokenizer.json", "vocab.txt", "1_Pooling/config.json")

Embed = Callable[[Sequence[str]], np.ndarray]
"""From texts to vectors of length 1, shape (texts, width)."""


def fingerprint(folder: str | Path) -> str:
    """Of the model in ``folder``, by the bytes of its files."""
    digest = hashlib.sha256()
    for pattern in _OF_MODEL:
        for path in sorted(Path(folder).glob(pattern)):
            digest.update(path.name.encode())
            with path.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()[:32]


def export_encoder(predictor: Predictor, folder: Path) -> str:
    """Write the model to ``folder`` for ONNX Runtime, checked against PyTorch; name of what will run it.

    Where that cannot be had, a warning says why, and PyTorch it is.
    """
    try:
        Encoder.export(str(predictor.folder), folder, predictor.task.settings.max_length)
    except (ExportError, MissingDependencyError) as error:
        logger.warning("items are embedded by PyTorch: %s", error)
        return predictor.runtime.name
    return "ONNX Runtime"


def embedder(predictor: Predictor, folder: Path) -> Embed:
    """What embeds texts: the export in ``folder`` where there is one, else the model in PyTorch."""
    if folder.is_dir():
        return Encoder(folder)
    task: Any = copy.copy(predictor.task)
    task.settings = task.settings.model_copy(update={"question_prefix": ""})

    def embed(texts: Sequence[str]) -> np.ndarray:
        parts = [texts[start : start + BATCH] for start in range(0, len(texts), BATCH)]
        vectors = np.concatenate([task.logits(predictor.runtime, part) for part in parts])
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)

    return embed


def save_vectors(folder: Path, vectors: np.ndarray, made_by: str) -> None:
    with atomic_path(folder / VECTORS) as path:
        save_file({"vectors": np.ascontiguousarray(vectors, dtype=np.float32)}, path, {"made_by": made_by})


def load_vectors(folder: Path, made_by: str, count: int) -> np.ndarray:
    """The vectors in ``folder``.

    Args:
        made_by: fingerprint of the model that is to have made them.
        count: of items.

    Raises:
        ConfigError: another model made them, or they are of other items, or damaged.
    """
    from safetensors import SafetensorError, safe_open

    remedy = "run the recipe again"
    try:
        with safe_open(folder / VECTORS, "np") as file:
            given = (file.metadata() or {}).get("made_by")
        vectors = load_file(folder / VECTORS)["vectors"]
    except (OSError, SafetensorError, KeyError) as error:
        words = " ".join(str(error).split())[:120]
        raise ConfigError(f"the vectors in {folder} cannot be read ({words}); {remedy}") from error
    if given != made_by:
        raise ConfigError(f"the vectors in {folder} were made by another model than the one that serves; {remedy}")
    if len(vectors) != count:
        raise ConfigError(f"{folder} has {len(vectors)} vectors and {count} items; {remedy}")
    return vectors

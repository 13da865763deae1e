"""Texts as vectors, by a sentence encoder that was exported and checked."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hf_efficient.candidates import CANDIDATES
from hf_efficient.conversion import convert_plain
from hf_efficient.errors import ExportError
from hf_efficient.functional.batching import in_like_lengths
from hf_efficient.runtimes import load_runtime
from hf_efficient.tasks.sentence_similarity import SentenceSimilarity, SentenceSimilarityData

BATCH = 8
"""Texts of like length that are computed together: on a CPU more save nothing, and are padded more."""
ALIKE = 0.9999
"""Least cosine of an exported encoder's vectors with the model's."""

_CHECKED = (
    "Where is my order?",
    "I would like to change the address, because we move house on the first of next month.",
    "no",
    "The measurements of the shelf in the living room are eighty by thirty by two hundred centimetres; does it fit?",
)


class Encoder:
    """Vectors of length 1, one for each text.

    Args:
        folder: what `export` wrote.
        alone: whether no other model computes on the same cores (`ExportedRuntime`).
    """

    def __init__(self, folder: str | Path, *, alone: bool = True):
        self._task = _task(4)  # until its processor tells what it takes
        self._task.load_processor(str(folder))
        self._task.settings = _task(_limit(self._task.processor)).settings
        self._runtime = load_runtime(folder, alone=alone)

    @staticmethod
    def export(model: str, folder: str | Path, max_length: int = 256) -> None:
        """Write ``model`` (Hub id or folder of a sentence encoder) to ``folder``, for ONNX Runtime.

        Raises:
            ConfigError: no such model.
            ExportError: the export's vectors are not those of the model.
            MissingDependencyError: ONNX Runtime or sentence-transformers is not installed.
        """
        task = _task(max_length)
        processor = task.load_processor(model)
        loaded = task.load_model(model).eval()
        loaded.config.architectures = [type(loaded).__name__]
        batch = task.preprocess(list(_CHECKED))
        candidate = CANDIDATES["onnx", "none"]
        candidate.require()
        convert_plain(candidate, loaded, task.preprocess(list(_CHECKED[:3])), []).save_pretrained(folder)
        processor.model_max_length = max_length
        processor.save_pretrained(folder)
        with torch.inference_mode():
            own = loaded(**batch).logits
        served = torch.as_tensor(np.asarray(load_runtime(folder).predict(batch).logits))
        least = float(torch.cosine_similarity(own, served).min())
        if not least >= ALIKE:
            raise ExportError(f"the export of {model} gives other vectors than the model (cosine {least:.4f})")

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        """Vectors of ``texts``, float32, shape (texts, width)."""
        vectors = in_like_lengths(texts, BATCH, lambda some: self._task.logits(self._runtime, some))
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def _task(max_length: int = 256) -> SentenceSimilarity:
    return SentenceSimilarity(SentenceSimilarityData(train="none", max_length=max_length))


def _limit(processor: Any) -> int:
    return int(processor.model_max_length)

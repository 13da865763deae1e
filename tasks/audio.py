"""What tasks on recordings share: reading, resampling and cutting them; a feature extractor; padded batches."""

import io
import logging
import math
from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import soundfile
import torch
from datasets import Array2D, Audio, Dataset, Features, LargeList, List, Value
from pydantic import Field
from scipy.signal import resample_poly
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoConfig, PretrainedConfig

from hf_efficient.errors import ConfigError, DataError
from hf_efficient.pretrained import load_pretrained, resolve_model
from hf_efficient.task import Task
from hf_efficient.tasks.files import FileData, contents, file_named, holds_files, is_named

logger = logging.getLogger(__name__)

IGNORED = -100
"""Label of what lies beyond the end of a row."""

_AT_ONCE = 100  # recordings in memory at their full length
_WINDOW = 400  # samples of a spectrogram's first column, for models that take one

Labeller = Callable[[dict[str, list], list[int], list[int]], list[Any]]
"""Labels of some rows, given these, their numbers from 0, and the samples of their recordings."""


class AudioData(FileData):
    """Columns of a set of recordings."""

    audio: str = "audio"
    """Column of the recording: the bytes of a file (WAV, FLAC, Ogg or MP3), the path of one, seen from the data file's
    folder or from here, as `datasets` has it, or a list of samples."""

    sampling_rate: int | None = Field(default=None, ge=1)
    """Samples per second of lists of samples; files tell their own. All are resampled to what the model takes."""

    max_seconds: float = Field(default=10.0, ge=0.1)
    """Recordings are cut after so many seconds."""


@dataclass(frozen=True)
class Strides:
    """The convolutions of a model that takes samples: kernel size and stride of each, first to last."""

    steps: tuple[tuple[int, int], ...]

    @classmethod
    def of(cls, config: PretrainedConfig) -> "Strides | None":
        """None for a model that takes a spectrogram."""
        if not hasattr(config, "conv_kernel"):
            return None
        steps = list(zip(config.conv_kernel, config.conv_stride, strict=True))
        if getattr(config, "add_adapter", False):
            steps += [(1, config.adapter_stride)] * config.num_adapter_layers
        return cls(tuple(steps))

    def outputs(self, samples: int) -> int:
        """Positions that the model makes of so many samples."""
        for kernel, stride in self.steps:
            samples = (samples - kernel) // stride + 1
        return samples

    @property
    def least(self) -> int:
        """Samples that make one position."""
        samples = 1
        for kernel, stride in reversed(self.steps):
            samples = (samples - 1) * stride + kernel
        return samples


@dataclass(frozen=True)
class Reader:
    """Reads recordings as one channel of float32 samples, (samples,).

    Attributes:
        rate: samples per second of what it returns.
        given: the same of lists of samples.
        least: samples of the shortest recording.
        folders: where relative paths may start.
    """

    rate: int
    given: int | None
    least: int
    folders: tuple[Path, ...]

    def __call__(self, value: Any, row: int) -> np.ndarray:
        """The recording that a row's value holds or names.

        Args:
            row: its number, from 0.

        Raises:
            DataError: one that cannot be read, is empty or too short, or holds values that are no numbers.
        """
        remedy = "replace it or delete the row"
        try:
            samples, rate = self._samples(value)
        # of the system and of libsndfile; a list of something else
        except (OSError, soundfile.SoundFileError, ValueError, TypeError) as error:
            name = "" if _samples_in(value) else contents(value)[1]
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:140]
            shown = f" {name}" if name else ""
            raise DataError(f"row {row + 1}: cannot read the recording{shown} ({reason}); {remedy}") from error
        if not len(samples):
            raise DataError(f"row {row + 1}: the recording is empty; {remedy}")
        if not np.isfinite(samples).all():
            raise DataError(f"row {row + 1}: the recording holds NaN or infinite values; {remedy}")
        wave = _resampled(samples, rate, self.rate)
        if len(wave) < self.least:
            raise DataError(
                f"row {row + 1}: the recording lasts {len(wave) / self.rate:.3f} s, and the model takes "
                f"{self.least / self.rate:.3f} s or more; {remedy}"
            )
        return wave

    def _samples(self, value: Any) -> tuple[np.ndarray, int]:
        """Samples of one channel, and how many there are per second."""
        if _samples_in(value):
            rate = value["sampling_rate"] if isinstance(value, Mapping) else self.given
            samples = np.asarray(value["array"] if isinstance(value, Mapping) else value, dtype=np.float32)
            return _one_channel(samples.T if samples.ndim > 1 else samples), int(rate)
        content, _ = contents(value)
        if not isinstance(content, bytes):
            content = file_named(content, self.folders).read_bytes()
        if not content:
            return np.zeros(0), self.rate
        samples, rate = soundfile.read(io.BytesIO(content), dtype="float32")
        return _one_channel(samples), rate


def _samples_in(value: Any) -> bool:
    """Whether a row's value holds samples, and not a file."""
    return isinstance(value, (list, np.ndarray)) or (isinstance(value, Mapping) and "array" in value)


def _one_channel(samples: np.ndarray) -> np.ndarray:
    """The mean over channels of ``samples`` (samples,) or (samples, channels)."""
    return samples if samples.ndim == 1 else samples.mean(axis=1)


def _resampled(samples: np.ndarray, rate: int, wanted: int) -> np.ndarray:
    if rate == wanted:
        return samples.astype(np.float32)
    common = math.gcd(rate, wanted)
    return resample_poly(samples, wanted // common, rate // common).astype(np.float32)


@dataclass(frozen=True)
class Extract:
    """Makes model inputs of recordings: cuts them, and asks the feature extractor.

    Attributes:
        seconds: after which they are cut.
    """

    extractor: Any
    seconds: float

    @property
    def limit(self) -> int:
        """Samples after which recordings are cut."""
        return int(self.seconds * self.extractor.sampling_rate)

    @property
    def name(self) -> str:
        """What the model calls them: ``input_values`` or ``input_features``."""
        return self.extractor.model_input_names[0]

    def __call__(self, wave: np.ndarray) -> np.ndarray:
        """Float32 of shape (samples,) or, of a spectrogram, (positions, features); not padded."""
        made = self.extractor(wave[: self.limit], sampling_rate=self.extractor.sampling_rate)
        return np.asarray(made[self.name][0], dtype=np.float32)

    def hears_all(self) -> bool:
        """Whether the last tenth of what the cut leaves makes any difference: some take no more than so much.

        Whisper's says how much that is.
        """
        if getattr(self.extractor, "n_samples", self.limit) < self.limit:
            return False
        silent = np.zeros(self.limit, dtype=np.float32)
        loud = silent.copy()
        loud[-(self.limit // 10) :] = np.sin(np.arange(self.limit // 10))
        return not np.array_equal(self(silent), self(loud))


class AudioTask(Task):
    """Recordings are read, resampled, cut and turned into model inputs once."""

    auto_processor = "AutoFeatureExtractor"
    data_settings = AudioData

    settings: AudioData

    label_feature: ClassVar[Any] = Value("int64")
    """Type of the labels of a row."""

    _strides: Strides | None = None

    @abstractmethod
    def labeller(self, split: Dataset) -> Labeller | None:
        """What gives rows of ``split`` their labels; None where it has none. It refers to values only."""

    @property
    def extract(self) -> Extract:
        """The feature extractor, also where the processor has more than that."""
        return Extract(getattr(self.processor, "feature_extractor", self.processor), self.settings.max_seconds)

    @property
    def read(self) -> Reader:
        least = _WINDOW if self._strides is None else self._strides.least
        rate, folders = self.extract.extractor.sampling_rate, tuple(self.settings.folders())
        return Reader(rate, self.settings.sampling_rate, least, folders)

    def check_inputs(self, dataset: Dataset, where: str) -> None:
        """Refuse a column that holds no recordings.

        Raises:
            DataError: names ``where``, the column and its type.
        """
        column, feature = self.settings.audio, dataset.features[self.settings.audio]
        is_struct = isinstance(feature, Mapping) and "array" in feature
        is_list = isinstance(feature, (List, LargeList))
        if is_list and self.settings.sampling_rate is None:
            raise DataError(
                f"{where}: column '{column}' holds lists of samples, which do not tell how many make a second; set "
                "data.sampling_rate"
            )
        if not (is_list or is_struct or isinstance(feature, Audio) or holds_files(feature)):
            given = getattr(feature, "dtype", type(feature).__name__)
            raise DataError(
                f"{where}: column '{column}' must hold recordings, bytes, paths or lists of samples, got {given}; "
                f"name another column of {', '.join(dataset.column_names)}"
            )

    def load_processor(self, model: str, **kwargs: Any) -> Any:
        self._strides = Strides.of(load_pretrained(AutoConfig, resolve_model(model)))
        self.processor = self.make_processor(model, **kwargs)
        if not self.extract.hears_all():
            raise ConfigError(
                f"data.max_seconds is {self.settings.max_seconds:g}, but the feature extractor of '{model}' takes "
                "less; set it to what that takes, so that nothing is cut without being told"
            )
        return self.processor

    def make_processor(self, model: str, **kwargs: Any) -> Any:
        """What `load_processor` gives, before it is checked."""
        return super().load_processor(model, **kwargs)

    def encode(self, split: Dataset) -> Dataset:
        """What the feature extractor makes of each recording, cut to ``max_seconds`` and not padded; ``labels``."""
        extract, read, label, column = self.extract, self.read, self.labeller(split), self.settings.audio

        def make(batch: dict[str, list], rows: list[int]) -> dict[str, Any]:
            waves = [read(value, row) for value, row in zip(batch[column], rows, strict=True)]
            lengths = [len(wave) for wave in waves]
            made = {extract.name: [extract(wave) for wave in waves], "is_cut": [n > extract.limit for n in lengths]}
            if label is not None:
                made["labels"] = label(batch, rows, [min(length, extract.limit) for length in lengths])
            return made

        first, number = split[0][column], Value("float32")
        shape = extract(read(first, 0)).shape
        kind = List(number) if len(shape) == 1 else Array2D((None, shape[1]), "float32")
        features = {extract.name: kind, "is_cut": Value("bool"), "labels": self.label_feature}
        if label is None:
            del features["labels"]
        options = {"with_indices": True, "batch_size": _AT_ONCE, "features": Features(features)}
        if is_named(first):
            options["load_from_cache_file"] = False
        made = self.map_batches(split, make, in_processes=True, **options)
        if cut := sum(made["is_cut"]):
            logger.warning(
                "%d of %d recordings are longer than data.max_seconds=%g; what lies beyond is not heard: raise it",
                *(cut, len(made), self.settings.max_seconds),
            )
        made = made.remove_columns("is_cut")
        return made.with_format("numpy", columns=[extract.name], output_all_columns=True)

    def collator(self) -> Callable[[list[dict[str, Any]]], dict[str, Any]]:
        """Pads each batch to its longest recording."""
        return AudioCollator(self.extract.extractor)

    def raw(self, example: dict[str, Any]) -> np.ndarray:
        """The whole recording: samples at the rate of the feature extractor, float32 (samples,)."""
        return self.read(example[self.settings.audio], 0)

    def preprocess(self, inputs: list[Any]) -> dict[str, Any]:
        """Cut to ``max_seconds``, through the feature extractor, and padded to the longest."""
        return self.collator()([{self.extract.name: self.extract(wave)} for wave in inputs])


class AudioCollator:
    """Joins extracted rows into padded float32 tensors, an attention mask where the model wants one, and ``labels``.

    Labels that are lists are padded with `IGNORED`.
    """

    def __init__(self, extractor: Any):
        self.extractor = extractor

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        name = self.extractor.model_input_names[0]
        batch = dict(self.extractor.pad([{name: row[name]} for row in rows], padding=True, return_tensors="pt"))
        if "labels" in rows[0]:
            labels = [torch.as_tensor(row["labels"]) for row in rows]
            is_list = labels[0].dim() > 0
            batch["labels"] = pad_sequence(labels, True, IGNORED) if is_list else torch.stack(labels)
        return batch

"""Audio classification: one label per recording."""

from typing import Any

from datasets import Dataset

from hf_efficient.tasks.audio import AudioData, AudioTask, Labeller
from hf_efficient.tasks.classification import Classification
from hf_efficient.tasks.targets import LabelledData


class AudioClassificationData(AudioData, LabelledData):
    """Columns of a set of labelled recordings."""

    def columns(self) -> list[str]:
        return [self.audio, self.label]


class AudioClassification(AudioTask, Classification):
    """One label per recording."""

    name = "audio-classification"
    pipeline = "audio-classification"
    auto_model = "AutoModelForAudioClassification"
    data_settings = AudioClassificationData

    settings: AudioClassificationData

    def labeller(self, split: Dataset) -> Labeller | None:
        indices, label = self.indexer(split), self.settings.label
        if indices is None:
            return None

        def labels(batch: dict[str, list], rows: list[int], samples: list[int]) -> list[Any]:
            return indices(batch[label])

        return labels

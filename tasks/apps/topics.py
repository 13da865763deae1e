"""Topic and entity of a headline, as the monitor is told to find them."""

import hashlib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hf_efficient.app import AppSettings
from hf_efficient.errors import ConfigError
from hf_efficient.predictor import Predictor, newest_finished
from hf_efficient.pretrained import DEFAULT_MODEL


class TopicSettings(AppSettings):
    """How the topic of an item is found: by another run, or by what the topics are about."""

    run: str | None = None
    """Folder of a finished text-classification run that tells topics."""

    labels: dict[str, str | list[str]] | None = None
    """Topic -> what it is about, in a phrase or several: an item gets the topic with the nearest phrase, without any
    training."""

    encoder: str = DEFAULT_MODEL
    """Sentence encoder that compares items with phrases: Hub id or folder."""

    least: float = 0.0
    """Cosine with the nearest phrase below which an item is of no topic."""

    other: str = "other"
    """Name of what is of no topic."""


class EntitySettings(AppSettings):
    """How the entity of an item is found: by its name, or by another run. The first in the text counts."""

    names: list[str] | dict[str, list[str]] | None = None
    """Names as they are written, or name -> all ways to write it."""

    run: str | None = None
    """Folder of a finished token-classification run."""


class Topics:
    """Topics of texts.

    Args:
        prepared: folder of the exported encoder.

    Raises:
        ConfigError: no such run, or nothing prepared.
    """

    def __init__(self, settings: TopicSettings, prepared: Path):
        self.settings = settings
        self._predictor: Predictor | None = None
        self._encoder: Any = None
        if settings.run is not None and settings.labels is not None:
            raise ConfigError("app.topics: both run and labels are given; one of them tells topics, so drop the other")
        if settings.run is not None:
            self._predictor = _load(settings.run, "text-classification", "app.topics.run")
        elif settings.labels:
            self._embed(settings.labels, prepared)

    def _embed(self, labels: Mapping[str, str | list[str]], prepared: Path) -> None:
        from hf_efficient.tasks.apps.encoder import Encoder

        folder = encoder_folder(self.settings, prepared)
        if not folder.is_dir():
            export_encoder(self.settings, prepared)
        self._encoder = Encoder(folder, alone=False)
        phrases = [
            (name, phrase) for name, told in labels.items() for phrase in ([told] if isinstance(told, str) else told)
        ]
        if not all(phrase.strip() for _, phrase in phrases) or {name for name, _ in phrases} != set(labels):
            raise ConfigError("app.topics.labels: a topic without a phrase; say what it is about")
        self._names = [name for name, _ in phrases]
        self._phrases = self._encoder([phrase for _, phrase in phrases])

    def __call__(self, texts: Sequence[str]) -> list[str]:
        """The topic of each of ``texts``."""
        if self._predictor is not None:
            names = self._predictor.labels
            return [names[index] for index in self._predictor.logits(texts).argmax(-1)]
        if self._encoder is None:
            return [self.settings.other] * len(texts)
        cosines = self._encoder(texts) @ self._phrases.T
        near = zip(cosines.argmax(-1), cosines.max(-1), strict=True)
        return [self._names[index] if most >= self.settings.least else self.settings.other for index, most in near]


def export_encoder(settings: TopicSettings, folder: Path) -> None:
    """Write the encoder that ``settings`` need to ``folder``, exported and checked; nothing where they need none.

    Raises:
        ConfigError, ExportError, MissingDependencyError: it cannot be made.
    """
    if settings.labels:
        from hf_efficient.files import atomic_folder
        from hf_efficient.tasks.apps.encoder import Encoder

        with atomic_folder(encoder_folder(settings, folder)) as path:
            Encoder.export(settings.encoder, path)


def encoder_folder(settings: TopicSettings, prepared: Path) -> Path:
    """Where the exported encoder is, in what the app prepared: another one lies elsewhere."""
    return prepared / f"encoder-{hashlib.sha256(settings.encoder.encode()).hexdigest()[:8]}"


class Entities:
    """The first entity of each text.

    Raises:
        ConfigError: no such run, or names that are empty.
    """

    def __init__(self, settings: EntitySettings):
        self._predictor: Predictor | None = None
        self._pattern: re.Pattern[str] | None = None
        if settings.run is not None and settings.names is not None:
            raise ConfigError(
                "app.entities: both run and names are given; one of them tells entities, so drop the other"
            )
        if settings.run is not None:
            self._predictor = _load(settings.run, "token-classification", "app.entities.run")
        elif settings.names:
            given = settings.names
            self._name = (
                {way: name for name, ways in given.items() for way in [name, *ways]}
                if isinstance(given, dict)
                else {name: name for name in given}
            )
            if not all(way.strip() for way in self._name):
                raise ConfigError("app.entities.names: an empty name; drop it")
            ways = "|".join(map(re.escape, sorted(self._name, key=len, reverse=True)))
            self._pattern = re.compile(rf"(?<!\w)(?:{ways})(?!\w)")

    def __call__(self, texts: Sequence[str]) -> list[str | None]:
        """The entity of each of ``texts``; None where there is none."""
        if self._predictor is not None:
            found = [answer["entities"] for answer in self._predictor.answers(texts)]
            return [entities[0]["text"] if entities else None for entities in found]
        if self._pattern is None:
            return [None] * len(texts)
        matches = map(self._pattern.search, texts)
        return [self._name[match[0]] if match else None for match in matches]


def _load(run: str, task: str, where: str) -> Predictor:
    try:
        predictor = Predictor.load(newest_finished(run), alone=False)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from error
    if predictor.task.name != task:
        raise ConfigError(f"{where}: {run} is a run of {predictor.task.name}; name one of {task}")
    return predictor

"""Makes the sample: `python make.py` in this folder writes the three files anew, the same each time."""

import io

import numpy as np
import pyarrow.parquet as pq
import soundfile
from datasets import Audio, Dataset

LETTERS = {"a": 400, "b": 560, "c": 780, "d": 1090, "e": 1530, "f": 2140}
"""Hertz of each letter's tone."""
SPLITS = {"train": 240, "validation": 40, "test": 60}
RATE = 8000  # samples per second
TONE, REST, PAUSE = 0.055, 0.02, 0.08  # seconds of a letter, after a letter, and between words
STEP = 1024  # of loudness, out of 65,536: coarse, so that the files are small


def text(chance: np.random.Generator) -> str:
    """One or two words of one to three letters."""
    words = ["".join(chance.choice(list(LETTERS), chance.integers(1, 4))) for _ in range(chance.integers(1, 3))]
    return " ".join(words)


def spoken(letters: str, chance: np.random.Generator) -> np.ndarray:
    """The tones of ``letters`` one after the other, from -1 to 1: each a little off in pitch and length."""
    parts = [silence(chance.uniform(0.01, 0.03))]
    for letter in letters:
        if letter == " ":
            parts.append(silence(PAUSE))
            continue
        seconds = np.arange(int(chance.uniform(0.9, 1.1) * TONE * RATE)) / RATE
        fade = np.clip(np.minimum(seconds, seconds[-1] - seconds) / 0.008, 0, 1)
        hertz = LETTERS[letter] * chance.uniform(0.97, 1.03)
        parts += [fade * np.sin(2 * np.pi * (hertz * seconds + chance.random())), silence(REST)]
    return 0.5 * chance.uniform(0.6, 1) * np.concatenate(parts)


def silence(seconds: float) -> np.ndarray:
    return np.zeros(int(seconds * RATE))


def wav(samples: np.ndarray) -> bytes:
    """A WAV file of 16 bits."""
    file = io.BytesIO()
    soundfile.write(file, (np.round(samples * 32767 / STEP) * STEP).astype(np.int16), RATE, format="WAV")
    return file.getvalue()


if __name__ == "__main__":
    chance = np.random.default_rng(0)
    for split, count in SPLITS.items():
        texts = [text(chance) for _ in range(count)]
        sounds = [{"bytes": wav(spoken(letters, chance)), "path": None} for letters in texts]
        rows = Dataset.from_dict({"audio": sounds, "text": texts}).cast_column("audio", Audio())
        # `to_parquet` leaves files within it as they are; packed, they take a third
        table = rows.with_format("arrow")[:].replace_schema_metadata(rows.features.arrow_schema.metadata)
        pq.write_table(table, f"{split}.parquet", compression="zstd")

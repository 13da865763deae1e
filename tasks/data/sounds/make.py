"""Makes the sample: `python make.py` in this folder writes the three files anew, the same each time."""

import io

import numpy as np
import pyarrow.parquet as pq
import soundfile
from datasets import Audio, ClassLabel, Dataset

CLASSES = ("falling", "noise", "pulses", "rising", "steady")
SPLITS = {"train": 30, "validation": 8, "test": 12}
"""Rows of each class."""
RATE = 8000  # samples per second
STEP = 512  # of loudness, out of 65,536: coarse, so that the files are small


def pitch(kind: str, seconds: np.ndarray, chance: np.random.Generator) -> np.ndarray:
    """Hertz at each moment."""
    low, high = chance.uniform(250, 600), chance.uniform(1200, 2500)
    share = seconds / seconds[-1]
    if kind in ("rising", "falling"):
        return low * (high / low) ** (share if kind == "rising" else 1 - share)
    return np.full(len(seconds), chance.uniform(300, 2000))


def loudness(kind: str, seconds: np.ndarray, chance: np.random.Generator) -> np.ndarray:
    """From 0 to 1 at each moment: fading in and out; pulses come 12 to 20 times a second."""
    ends = np.minimum(seconds, seconds[-1] - seconds)
    fade = np.clip(ends / 0.02, 0, 1)
    return fade * (np.sin(2 * np.pi * chance.uniform(12, 20) * seconds) > 0) if kind == "pulses" else fade


def sound(kind: str, chance: np.random.Generator) -> np.ndarray:
    """Of 0.25 to 0.35 s, from -1 to 1, with a little noise in it."""
    seconds = np.arange(int(chance.uniform(0.25, 0.35) * RATE)) / RATE
    tone = np.sin(2 * np.pi * np.cumsum(pitch(kind, seconds, chance)) / RATE)
    hiss = chance.uniform(-1, 1, len(seconds))
    mixed = hiss if kind == "noise" else tone + 0.05 * hiss
    return 0.5 * chance.uniform(0.5, 1) * mixed * loudness(kind, seconds, chance)


def wav(samples: np.ndarray) -> bytes:
    """A WAV file of 16 bits."""
    file = io.BytesIO()
    soundfile.write(file, (np.round(samples * 32767 / STEP) * STEP).astype(np.int16), RATE, format="WAV")
    return file.getvalue()


if __name__ == "__main__":
    chance = np.random.default_rng(0)
    for split, count in SPLITS.items():
        labels = chance.permutation(np.repeat(np.arange(len(CLASSES)), count)).tolist()
        sounds = [{"bytes": wav(sound(CLASSES[label], chance)), "path": None} for label in labels]
        rows = Dataset.from_dict({"audio": sounds, "label": labels})
        rows = rows.cast_column("audio", Audio()).cast_column("label", ClassLabel(names=list(CLASSES)))
        # `to_parquet` leaves files within it as they are; packed, they take a third
        table = rows.with_format("arrow")[:].replace_schema_metadata(rows.features.arrow_schema.metadata)
        pq.write_table(table, f"{split}.parquet", compression="zstd")

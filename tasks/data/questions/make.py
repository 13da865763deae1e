"""Writes the sample: `python make.py` in this folder makes the three files anew, the same each time.

Messages of the sample `customer_service`, each with the beginning of the answer to its intent in place of the label.
"""

import csv
import json
import random
import re
from pathlib import Path

from datasets import Dataset

SOURCE = Path(__file__).parents[1] / "customer_service"
PER_INTENT = {"train": 20, "validation": 6, "test": 8}
"""Messages of each intent."""
SENTENCES = 2
"""Of each answer."""


def pairs(split: str, answers: dict[str, str]) -> list[dict[str, str]]:
    with (SOURCE / f"{split}.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    chance = random.Random(0)
    kept = []
    for intent in sorted(answers):
        kept += chance.sample([row for row in rows if row["label"] == intent], PER_INTENT[split])
    chance.shuffle(kept)
    return [{"question": row["text"], "answer": answers[row["label"]]} for row in kept]


if __name__ == "__main__":
    whole = json.loads((SOURCE / "answers.json").read_text(encoding="utf-8"))
    answers = {intent: " ".join(re.split(r"(?<=[.?!])\s", text)[:SENTENCES]) for intent, text in whole.items()}
    for split in PER_INTENT:
        Dataset.from_list(pairs(split, answers)).to_parquet(f"{split}.parquet")

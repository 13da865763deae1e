"""A shop of a few items, and the finished run that recommends them."""

import json
from pathlib import Path
from typing import Any

from datasets import DatasetDict
from transformers import BertConfig, BertModel, set_seed

from hf_efficient.tasks.apps.catalogue import shown_time
from hf_efficient.tasks.apps.recommendation import ItemRecommendation
from tests.runs import finished, loaded, made_app
from tests.tasks.conftest import tiny_tokenizer

DAY, START = 86400.0, 1_767_225_600.0  # the first of January 2026
KINDS = {"card": "my card is lost", "app": "the app is new", "money": "how do i pay money"}
SIZES = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}


def catalogue() -> list[dict[str, Any]]:
    """Eight items of each kind; the last one of each comes on the 30th day."""
    return [
        {
            "item": f"{kind}{number}",
            "text": f"{text} {'abcdefgh'[number]}",
            "category": kind,
            "price": 10.0 * (number + 1),
            "date": shown_time(START + (30 if number == 7 else -1) * DAY),
        }
        for kind, text in KINDS.items()
        for number in range(8)
    ]


def log() -> list[dict[str, str]]:
    """Each user takes one kind, a thing on every fourth day; ``card1`` is taken by all who take cards first of all."""
    rows = []
    for user in range(18):
        kind = list(KINDS)[user % 3]
        for step in range(6):
            number = (1 + step) if kind == "card" else (user // 3 + step) % 7
            time = START + (4 * step + user / 18) * DAY
            rows.append({"user": f"u{user}", "item": f"{kind}{number}", "time": shown_time(time)})
    return sorted(rows, key=lambda row: row["time"])


def write(folder: Path, items: list[dict[str, Any]] | None = None, taken: list[dict[str, str]] | None = None) -> Path:
    """``catalogue.jsonl`` and ``log.jsonl`` in ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, rows in (("catalogue", items or catalogue()), ("log", taken or log())):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def encoder(folder: Path) -> str:
    """A tiny encoder that nobody trained."""
    set_seed(0)
    tokenizer = tiny_tokenizer()
    BertModel(BertConfig(vocab_size=len(tokenizer), max_position_embeddings=32, **SIZES)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def run_folder(folder: Path, **app: Any) -> Path:
    """A finished run, of which nothing has been prepared."""
    data = {"train": "none.jsonl", "max_length": 16}
    start = Path(encoder(folder / "start"))
    task = loaded("sentence-similarity", start, data)
    sources = {"catalogue": str(folder), "log": str(folder)}
    block = {"name": "recommendation", "moment": "log", **sources, **app}
    finished(folder, task, task.load_model(str(start)), data, block)
    return folder


def prepared(folder: Path, **app: Any) -> ItemRecommendation:
    """The app of a run in ``folder``, prepared and not started."""
    write(folder)
    made = made_app(run_folder(folder, **app))
    assert isinstance(made, ItemRecommendation)
    made.prepared.mkdir()
    made.prepare(DatasetDict(), made.prepared)
    return made

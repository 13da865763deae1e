"""Folders of finished runs, made in a second: tiny models that have learnt what they are asked."""

import json
from pathlib import Path
from typing import Any

import torch
import yaml
from datasets import Dataset, DatasetDict
from transformers import BertForTokenClassification

from hf_efficient.app import App, parse_app
from hf_efficient.predictor import Predictor
from hf_efficient.recipe import Recipe
from hf_efficient.settings import parse
from hf_efficient.task import Task, get_task
from tests.tasks.conftest import tiny_checkpoint, tiny_tokenizer

LABELS = ["card", "pay"]
_ROWS = {"card": "my card is lost", "pay": "how do i pay"}
TEXTS = [f"{_ROWS[label]} {letter}" for letter in "abcdefghijklmnop" for label in LABELS]
"""Each is of the class whose turn it is in `LABELS`."""


def text_data() -> DatasetDict:
    """Messages about cards and about paying."""
    rows = Dataset.from_dict({"text": TEXTS, "label": LABELS * (len(TEXTS) // 2)})
    return DatasetDict({"train": rows.select(range(24)), "validation": rows.select(range(24, len(rows)))})


def text_run(folder: Path, app: dict[str, Any] | None = None, steps: int = 60, **data: Any) -> Path:
    """A finished run of text classification in ``folder``; it tells the classes of `text_data` apart.

    Args:
        app: block of its recipe, to be prepared.
        data: further settings of its data.
    """
    tiny_checkpoint(folder / "start", LABELS, hidden_size=32, intermediate_size=32)
    settings = {"train": "none.csv", "max_length": 24, **data}
    task = loaded("text-classification", folder / "start", settings)
    model = task.load_model(str(folder / "start")).train()
    optimizer = torch.optim.AdamW(model.parameters(), 5e-3)
    rows = text_data()["train"]
    batch = task.collator()(list(task.encode(rows)))
    for _ in range(steps):
        model(**batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    finished(folder, task, model, settings, app)
    if app is not None:
        prepare(folder, text_data())
    return folder


def entity_run(folder: Path) -> Path:
    """A finished run of token classification, in which ``card`` and ``app`` are things."""
    tags = ["O", "B-thing", "I-thing"]
    names = {"id2label": dict(enumerate(tags)), "label2id": {name: index for index, name in enumerate(tags)}}
    start = tiny_checkpoint(folder / "start", tags, hidden_size=32, intermediate_size=32)
    model = BertForTokenClassification.from_pretrained(start, **names).train()
    model.save_pretrained(start)
    tokenizer = tiny_tokenizer()
    texts = ["my card is lost", "the app is new", "how do i pay", "where is my card", "not a new app", "no money"]
    texts += [f"{one} {other} {one}" for one in texts for other in texts]  # every place in a window is learnt
    batch = tokenizer(texts, padding=True, truncation=True, max_length=16, return_tensors="pt")
    things = torch.isin(batch["input_ids"], torch.tensor(tokenizer.convert_tokens_to_ids(["card", "app"])))
    labels = torch.where(batch["attention_mask"] > 0, things.long(), -100)
    optimizer = torch.optim.AdamW(model.parameters(), 5e-3)
    for _ in range(80):
        model(**batch, labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    settings = {"train": "none.jsonl", "max_length": 16}
    finished(folder, loaded("token-classification", folder / "start", settings), model, settings, None)
    return folder


def loaded(task: str, model: Path, settings: dict[str, Any]) -> Task:
    cls = get_task(task)
    made = cls(parse(cls.data_settings, settings, "data"))
    made.load_processor(str(model))
    return made


def finished(folder: Path, task: Task, model: Any, data: dict[str, Any], app: dict[str, Any] | None) -> None:
    """Write what a run leaves."""
    model.eval().save_pretrained(folder / "final")
    task.processor.save_pretrained(folder / "final")
    recipe = Recipe(name="tiny", task=task.name, model="none", data=data, stages={"finetune": {}}, app=app)
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe.model_dump()))
    (folder / "run.json").write_text(json.dumps({"status": "finished"}))


def made_app(folder: Path) -> App:
    """The app of the run in ``folder``, not started."""
    recipe = Recipe.load(folder / "recipe.yaml")
    assert recipe.app is not None
    cls, settings = parse_app(recipe.app, recipe.task)
    return cls(settings, Predictor.load(folder), folder)


def prepare(folder: Path, data: DatasetDict) -> None:
    app = made_app(folder)
    app.prepared.mkdir()
    app.prepare(data, app.prepared)

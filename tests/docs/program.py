"""Runs the Python blocks of documents, each document's one after the other: ``python -m tests.docs.program FILE ...``.

In an empty folder, where each document gets one of its own; the last line of standard output is JSON: file -> traceback
of what failed in it, or nothing.

A block finds what a reader has by then: a fine-tuned model with its data, a finished run, and what earlier blocks left.
What would take long is small here: the model, the recipe `customer-service`, how long things are measured.
"""

import contextlib
import gc
import json
import shutil
import sys
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import optuna
import torch
import transformers
import yaml

import hf_efficient
import hf_efficient.recipe
import hf_efficient.search
from hf_efficient.measure import measure
from tests.docs.blocks import ROOT, blocks
from tests.runs import LABELS, loaded, text_data
from tests.tasks.conftest import tiny_checkpoint
from tests.test_run import measure_hastily, tiny_recipe

RUN = Path("runs/customer-service/20260101-120000")
SEARCH = {
    "space": {"stages.finetune.training.learning_rate": [1e-3, 5e-3]},
    "objectives": ["accuracy"],
    "rungs": [],
}


def main(files: list[str]) -> None:
    transformers.utils.logging.set_verbosity_error()
    import pytest

    given_files = Path("given").absolute()
    given_files.mkdir()
    failed = {}
    with pytest.MonkeyPatch.context() as made_small:
        with contextlib.chdir(given_files):
            _make_small(made_small)
            given = _given()
        for number, file in enumerate(files):
            shutil.copytree(given_files, str(number))
            gc.collect()
            gc.freeze()  # as in conftest.py
            with contextlib.chdir(str(number)):
                try:
                    _run(Path(file), given)
                except Exception:  # it is the document's, and told
                    failed[file] = traceback.format_exc()
    print(json.dumps(failed))


def _run(document: Path, given: Callable[[], dict[str, Any]]) -> None:
    kept: dict[str, Any] = {}
    for block in blocks(document, "python"):
        names = {**vars_of(hf_efficient), **_trainer(given()), **kept, **given()}
        code = block.text.replace("runs/.../", f"{RUN}/")
        with warnings.catch_warnings():
            warnings.simplefilter("error", hf_efficient.NoEffectWarning)
            exec(compile("\n" * block.line + code, str(block.file), "exec"), names)
        kept = names


def vars_of(package: Any) -> dict[str, Any]:
    return {name: getattr(package, name) for name in package.__all__}


def _make_small(patch_: Any) -> None:
    """The recipe that documents name, a run of it, and how long things are measured."""
    measure_hastily(patch_)
    for module in ("before_after", "export"):
        patch_.setattr(f"hf_efficient.{module}.measure", _hasty)
    patch_.setattr("hf_efficient.cutting.costs.LEAST_SECONDS", 0.05)
    patch_.setattr("hf_efficient.cutting.costs.ROUNDS", 5)
    patch_.setattr("hf_efficient.profiling.bounds.KINDS", {"torch": None})
    folder = Path("recipe").absolute()
    folder.mkdir()
    recipe = tiny_recipe(folder).read_text()
    small = yaml.safe_load(recipe) | {"search": SEARCH, "export": {"format": "onnx", "quantize": "none"}}
    read = hf_efficient.recipe._read

    def read_small(name: str | Path) -> tuple[str, str]:
        return (str(name), yaml.safe_dump(small)) if name == "customer-service" else read(name)

    patch_.setattr("hf_efficient.recipe._read", read_small)
    search = hf_efficient.search.search

    def search_little(*args: Any, trials: int, **more: Any) -> Any:
        return search(*args, trials=min(trials, 2), finish=False, **more)

    patch_.setattr("hf_efficient.search.search", search_little)
    from hf_efficient.run import run

    result = run("customer-service", runs="made")
    assert result is not None
    RUN.parent.mkdir(parents=True)
    shutil.move(result.folder, RUN)
    for name in ("catalogue.csv", "log.csv"):
        shutil.copy(ROOT / "tasks" / "data" / "purchases" / name, name)


def _hasty(*args: Any, **options: Any) -> Any:
    return measure(*args, **{**options, "seconds": 0, "repeats": 1, "warmup": 0})


def _trainer(given: dict[str, Any]) -> dict[str, Any]:
    """A trainer of the model, and its arguments, for documents that begin with them."""
    args = hf_efficient.EfficientTrainingArguments("trained", num_train_epochs=1, report_to="none", measure_seconds=0)
    trainer = hf_efficient.EfficientTrainer(
        model=given["model"],
        args=args,
        train_dataset=given["train"],
        eval_dataset=given["validation"],
        processing_class=given["tokenizer"],
        compute_metrics=given["compute_metrics"],
    )
    return {"args": args, "trainer": trainer}


def _data(split: str) -> Any:
    """Texts of several lengths."""
    rows = text_data()[split]
    return rows.map(lambda row, index: {"text": row["text"] + " now" * (index % 5)}, with_indices=True)


def _given() -> Callable[[], dict[str, Any]]:
    """A function from nothing to a fresh model, already fine-tuned, and the data that it was fine-tuned on."""
    folder = tiny_checkpoint(
        Path("start"), LABELS, num_hidden_layers=12, hidden_size=32, intermediate_size=128, num_attention_heads=4
    )
    task = loaded("text-classification", Path(folder), {"train": "none.csv", "max_length": 24})
    model = task.load_model(folder).train()
    train, validation = (task.encode(_data(split)) for split in ("train", "validation"))
    collate = task.collator()
    batch = collate(list(train))
    optimizer = torch.optim.AdamW(model.parameters(), 2e-3)
    for _ in range(100):
        model(**batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.eval().save_pretrained("fine-tuned")

    def given() -> dict[str, Any]:
        def made() -> Any:
            return transformers.AutoModelForSequenceClassification.from_pretrained("fine-tuned")

        return {
            "model": made(),
            "model_init": made,
            "optuna": optuna,
            "tokenizer": task.processor,
            "train": train,
            "validation": validation,
            "examples": list(validation),
            "collate": collate,
            "collator": collate,
            "compute_metrics": task.compute_metrics,
            "AutoModelForSequenceClassification": transformers.AutoModelForSequenceClassification,
        }

    return given


if __name__ == "__main__":
    with patch.dict("os.environ", {"TQDM_DISABLE": "1"}):
        main(sys.argv[1:])

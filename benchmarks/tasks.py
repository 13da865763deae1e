"""Every task on a real set, beside the stock Trainer: `python -m benchmarks.tasks`.

The first stage of each task's recipe, trained twice from the same weights with the same seeds, batches and epochs: by
what transformers or TRL train with (`Trainer`, `Seq2SeqTrainer`, `GRPOTrainer`), without any optimization, and by ours
with those that the recipe has; where it has none, ours is the same training, bit for bit, and stock's is told. Judged
on test data; no checkpoint is chosen. Beside them a trivial answer. Runs on an accelerator where there is one. Rows
that are trained from random weights on little data show mechanics only: that the task works end to end, nothing about
quality.

Sets: banking77, sentfin, crossner (trained on its test part, the largest, judged on its validation part),
clothing_small, scikit-learn's digits, bccd, fsdd, ntrex (English to German), scitldr, medquad_faq; behaviour simulated
from stated interests, and a toy reward, as bundled.
"""

import copy
import json
import shutil
import statistics
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image
from sklearn.datasets import load_digits
from transformers import PrinterCallback, Trainer, set_seed

from benchmarks.banking77 import folder_of_data
from benchmarks.harness import CACHE, Bench, main
from hf_efficient import optimization, trainer
from hf_efficient.before_after import plain_metrics
from hf_efficient.data import load
from hf_efficient.files import atomic_folder, atomic_path
from hf_efficient.optimizations import length_batching, precision
from hf_efficient.pretrained import resolve_model
from hf_efficient.recipe import Recipe, Stage, training_values
from hf_efficient.task import Task, get_task
from hf_efficient.trainer import EfficientMixin

SIDES = ("stock", "ours")
QUIET: dict[str, Any] = {
    "eval_strategy": "no",
    "eval_on_start": False,
    "save_strategy": "no",
    "logging_strategy": "no",
    "report_to": "none",
    "disable_tqdm": True,
    "dataloader_pin_memory": False,
    "per_device_eval_batch_size": 64,
}


@dataclass(frozen=True)
class Row:
    """A recipe on a real set.

    Attributes:
        settings: of its data, and of the training of its first stage.
        also: metrics that are shown beside the main one.
        model: in place of the recipe's.
        mechanics: nothing about quality is claimed.
    """

    recipe: str
    data: Callable[[], dict[str, Any]]
    training: dict[str, Any]
    also: tuple[str, ...] = ()
    model: Callable[[], str] | None = None
    mechanics: bool = False

    def load(self) -> Recipe:
        recipe = Recipe.load(self.recipe)
        recipe.data.update(self.data())
        first_stage(recipe).training.update(self.training)
        if self.model is not None:
            recipe.model = self.model()
        recipe.check()
        return recipe


def parts(name: str, ending: str, *parts: str, **settings: Any) -> Callable[[], dict[str, Any]]:
    """Settings of the data set ``name``: its files, train, test and where it is named validation, in this order."""

    def found() -> dict[str, Any]:
        folder = folder_of_data(name)
        files = {part: f"{folder / file}.{ending}" for part, file in zip(("train", "test", "validation"), parts)}  # noqa: B905
        return {**files, **settings}

    return found


def recordings(**settings: Any) -> Callable[[], dict[str, Any]]:
    """Spoken digits, unpacked beside the cache."""

    def found() -> dict[str, Any]:
        source, files = folder_of_data("fsdd"), {}
        for part in ("train", "test"):
            target = CACHE / "tasks" / "fsdd" / part
            if not target.is_dir():
                with atomic_folder(target) as folder, zipfile.ZipFile(source / f"{part}.zip") as packed:
                    packed.extractall(folder)
            files[part] = str(next(target.rglob("metadata.csv")))
        return {**files, "audio": "file_name", **settings}

    return found


def digits() -> dict[str, Any]:
    """scikit-learn's digits as images, 360 of 1,797 for the test."""
    found, files = load_digits(), {}
    order = np.random.default_rng(0).permutation(len(found.images))
    features = Features({"image": Image(), "label": ClassLabel(10)})
    for part, rows in (("train", order[360:]), ("test", order[:360])):
        target = CACHE / "tasks" / "digits" / f"{part}.parquet"
        if not target.is_file():
            pixels = (found.images[rows] * 255 / 16).round().astype(np.uint8)
            made = Dataset.from_dict({"image": list(pixels), "label": found.target[rows]}, features=features)
            target.parent.mkdir(parents=True, exist_ok=True)
            with atomic_path(target) as path:
                made.to_parquet(path)
        files[part] = str(target)
    return files


def detector() -> str:
    """The bundled detector with room for 40 objects, of which a picture of blood has up to 28."""
    source, target = Path(resolve_model("new:yolos-tiny")), CACHE / "tasks" / "yolos-40"
    if not target.is_dir():
        with atomic_folder(target) as folder:
            shutil.copytree(source, folder, dirs_exist_ok=True)
            config = json.loads((source / "config.json").read_text(encoding="utf-8"))
            (folder / "config.json").write_text(json.dumps({**config, "num_detection_tokens": 40}), encoding="utf-8")
    return f"new:{target}"


BATCH = {"per_device_train_batch_size": 32}
CLASSES = ("f1_macro", "calibration_error")
ROWS = {
    "banking77": Row(
        "customer-service", parts("banking77", "csv", "train", "test"), {**BATCH, "num_train_epochs": 3}, CLASSES
    ),
    "sentfin": Row(
        "customer-service",
        parts("sentfin", "csv", "train", "test", "validation"),
        {**BATCH, "num_train_epochs": 3},
        CLASSES,
    ),
    "crossner": Row(
        "entities",
        parts("crossner", "jsonl", "test", "validation", max_length=128),
        {**BATCH, "num_train_epochs": 8, "learning_rate": 5e-4},
        ("precision", "recall", "f1_macro"),
    ),
    "clothing_small": Row(
        "image-classification", parts("clothing_small", "parquet", "train", "test", "validation"), {}, CLASSES
    ),
    "digits": Row("image-classification", digits, {}, CLASSES),
    "bccd": Row(
        "object-detection",
        parts("bccd", "parquet", "train", "test", "validation"),
        {"num_train_epochs": 150},
        ("map_50",),
        detector,
        mechanics=True,
    ),
    "fsdd_words": Row("audio-classification", recordings(label="label"), {}, CLASSES),
    "fsdd_speech": Row("speech-recognition", recordings(text="label"), {"num_train_epochs": 35}, ("cer",)),
    "ntrex": Row(
        "translation",
        parts(
            *("ntrex", "jsonl", "train", "test", "validation"),
            source="translation.en",
            target="translation.de",
            max_source_length=128,
            max_target_length=128,
        ),
        {},
        ("bleu",),
        mechanics=True,
    ),
    "scitldr_summaries": Row(
        "summarization",
        parts("scitldr", "jsonl", "train", "test", "validation", max_source_length=256, max_target_length=96),
        {"num_train_epochs": 5},
        ("rouge1", "rouge2"),
        mechanics=True,
    ),
    "scitldr_text": Row(
        "text-generation",
        parts("scitldr", "jsonl", "train", "test", "validation", text="document"),
        {**BATCH, "num_train_epochs": 3},
        ("loss",),
        mechanics=True,
    ),
    "digits_generated": Row("image-generation", digits, {}, mechanics=True),
    "toy_reward": Row("reinforcement-learning", dict, {}, mechanics=True),
    "medquad_faq": Row(
        "sentence-similarity",
        parts("medquad_faq", "jsonl", "train", "test", "validation", max_length=128),
        {},
        ("recall@1", "recall@10", "ndcg@10"),
    ),
    "simulated_interests": Row("recommendation", dict, {}, ("mrr", "ndcg@5", "ndcg@10", "coverage", "diversity")),
}


def body(bench: Bench) -> None:
    for name, row in ROWS.items():
        found = {side: [cell(bench, name, seed, side) for seed in bench.seeds] for side in sides(row)}
        baseline = bench.cell({"row": name, "side": "trivial"}, lambda: trivial(row))  # noqa: B023
        claims(bench, name, row, found, baseline)


def sides(row: Row) -> tuple[str, ...]:
    """Where the first stage has no optimization, ours is stock's training, bit for bit, as tests show."""
    return SIDES if first_stage(row.load()).optimizations else SIDES[:1]


def first_stage(recipe: Recipe) -> Stage:
    return next(iter(recipe.stages.values()))


def cell(bench: Bench, name: str, seed: int, side: str) -> dict[str, Any]:
    settings = {"row": name, "seed": seed, "side": side}
    return bench.cell(settings, lambda: trained(bench, ROWS[name], seed, side), peer=side == "stock")


def claims(bench: Bench, name: str, row: Row, found: dict[str, list[Any]], baseline: dict[str, Any]) -> None:
    """Ours beside stock, the difference beside what seeds alone make of stock's, and both beside the trivial answer."""
    task = get_task(Recipe.load(row.recipe).task)
    main_metric, sign = task.main_metric, 1 if task.greater_is_better else -1
    better = "more is better" if task.greater_is_better else "less is better"
    marked = "; mechanics only" if row.mechanics else ""
    values = {side: [each["metrics"][main_metric] for each in cells] for side, cells in found.items()}
    for side, told in (("stock", "stock Trainer"), ("ours", "ours")):
        if side in values:
            bench.claim(f"{name}_{side}", values[side], f"{main_metric} on test data, {told} ({better}){marked}")
    if baseline:
        bench.claim(f"{name}_trivial", baseline["metrics"][main_metric], f"{main_metric}: {baseline['told']}")
    if "ours" in values:
        noise = max(values["stock"]) - min(values["stock"])
        apart = [sign * (ours - stock) for ours, stock in zip(values["ours"], values["stock"], strict=False)]
        unit = f"{main_metric}, ours better than stock; not below by more than stock's seeds are apart ({noise:.3g})"
        bench.claim(f"{name}_difference", apart, unit, f">= {-noise:.4g}")
    last = found.get("ours", found["stock"])
    shown = {metric: statistics.median(each["metrics"][metric] for each in last) for metric in row.also}
    if shown:
        bench.notes.append(f"{name}: " + ", ".join(f"{metric} {value:.3g}" for metric, value in shown.items()))


def with_stock_trainer(task: Task) -> Task:
    """``task``, trained by the class that ours extends."""
    known = (one for one in task.trainer_class.__mro__ if issubclass(one, Trainer))
    made = copy.copy(task)
    made.trainer_class = next(one for one in known if not issubclass(one, EfficientMixin))
    return made


def ready(row: Row) -> tuple[Recipe, Task, DatasetDict]:
    """The row's recipe, its task with the processor loaded, and its data."""
    recipe = row.load()
    task_class = get_task(recipe.task)
    settings = task_class.data_settings(**recipe.data)
    data, task = load(settings, seed=recipe.seed), task_class(settings)
    task.check(data)
    task.load_processor(recipe.model)
    return recipe, task, data


def trained(bench: Bench, row: Row, seed: int, side: str) -> dict[str, Any]:
    """Test metrics after the first stage of the row's recipe."""
    recipe, task, data = ready(row)
    stage = first_stage(recipe)
    if bench.quick:
        data = DatasetDict(
            {name: rows.shuffle(seed=0).select(range(min(48, len(rows)))) for name, rows in data.items()}
        )
    splits = task.encode_all(data)
    given = {**task.arguments(), **training_values(stage.training, "training", task.arguments_class), **QUIET}
    if bench.quick:
        given["max_steps"] = 2
    shared = {
        "train_dataset": splits["train"],
        "eval_dataset": splits["validation"],
        "processing_class": task.processor,
    }
    with TemporaryDirectory() as folder:
        optimizations = stage.optimizations if side == "ours" else {}
        own = {"output_dir": folder, "seed": seed, "measure_seconds": 0}
        arguments = task.arguments_class(optimizations=optimizations, **own, **given)
        set_seed(seed)
        by = task if side == "ours" else with_stock_trainer(task)
        made = by.trainer(model=task.load_model(recipe.model), args=arguments, **shared)
        made.remove_callback(PrinterCallback)
        output = made.train()
        plain = task.arguments_class(**own, **{**task.arguments(), **QUIET})
        judge = task.trainer(model=made.model.float(), args=plain, **shared)
        judge.remove_callback(PrinterCallback)
        said = judge.predict(splits["test"], metric_key_prefix="test")
    return {"metrics": plain_metrics(said.metrics or {}, "test"), "seconds": output.metrics["train_runtime"]}


def trivial(row: Row) -> dict[str, Any]:
    """What the task's trivial answer reaches on test data; empty where it has none."""
    _, task, data = ready(row)
    found = task.baseline(data, "test")
    return {} if found is None else {"told": found[0], "metrics": found[1]}


DEPENDS = (length_batching, optimization, precision, trainer)

if __name__ == "__main__":
    main("tasks", body, DEPENDS)

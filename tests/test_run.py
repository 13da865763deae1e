"""A run, end to end on real text: its folder, its result, and continuing after a kill."""

import functools
import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import DatasetDict
from huggingface_hub import ModelCard
from transformers import AutoModelForSequenceClassification, AutoTokenizer, TrainerCallback, pipeline

from hf_efficient import ConfigError, ExportError, MissingDependencyError, Recipe
from hf_efficient.data import load
from hf_efficient.measure import measure_speed
from hf_efficient.pretrained import class_of
from hf_efficient.recipe import bundled
from hf_efficient.run import run, unfinished
from tests.tasks.conftest import tiny_checkpoint
from tests.test_distributed import on_two_processes
from tests.test_parity import assert_same_tensors

RECIPE = """
task: text-classification
model: {model}
data: {{train: {folder}/train.csv, test: {folder}/test.csv, max_length: 16}}
stages:
  finetune:
    training: {{num_train_epochs: 3, learning_rate: 5.0e-3, per_device_train_batch_size: 8}}
  compress:
    training: {{num_train_epochs: 2, learning_rate: 5.0e-3, per_device_train_batch_size: 8}}
    optimizations: {{structured_pruning: {{keep_layers: [0]}}}}
"""


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    return tiny_recipe(tmp_path)


def tiny_recipe(tmp_path: Path) -> Path:
    """A recipe on a tiny model and 40 rows."""
    rows = [f"{'my card is lost' if index % 2 else 'how do i pay'} {index},{'ab'[index % 2]}" for index in range(48)]
    (tmp_path / "train.csv").write_text("\n".join(["text,label", *rows[:40]]))
    (tmp_path / "test.csv").write_text("\n".join(["text,label", *rows[40:]]))
    tiny_checkpoint(tmp_path / "model", num_hidden_layers=2, hidden_size=32, intermediate_size=32)
    file = tmp_path / "tiny.yaml"
    file.write_text(RECIPE.format(model=tmp_path / "model", folder=tmp_path))
    return file


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return dict(class_of(folder).from_pretrained(folder).state_dict())


def test_run_leaves_everything_in_one_folder(recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hf_efficient.outcome.SECONDS", 0.2)
    monkeypatch.setattr("hf_efficient.outcome.TURNS", 1)
    said: list[str] = []
    result = run(recipe, runs=tmp_path / "runs", say=said.append)
    assert result is not None
    assert said[0] == f"run {result.folder}"
    assert [line.split(":")[0] for line in said[1:3]] == ["stage finetune (1 of 2)", "stage compress (2 of 2)"]
    assert said[2].endswith(", ".join(Recipe.load(recipe).stages["compress"].optimizations))
    names = {str(path.relative_to(result.folder)) for path in result.folder.rglob("*") if path.is_file()}
    expected = {"recipe.yaml", "run.json", "metrics.json", "report.json", "report.md", "report.png", "training.png"}
    assert expected <= names
    assert {"final/config.json", "final/model.safetensors", "stages/finetune/final/config.json"} <= names
    assert not [name for name in names if "checkpoint-" in name or "tmp" in name or "training_args" in name]
    status = json.loads((result.folder / "run.json").read_text())
    assert (status["status"], status["seed"]) == ("finished", 42)
    assert {"torch", "transformers", "hf_efficient"} <= set(status["versions"])
    assert Recipe.load(result.folder / "recipe.yaml").stages.keys() == {"finetune", "compress"}
    check_numbers(result, tmp_path)
    check_card(result, tmp_path)
    classify = pipeline("text-classification", model=str(result.model), device="cpu")
    assert classify("my card is lost")[0]["label"] == "b"


def check_card(result: Any, tmp_path: Path) -> None:
    """The model's folder can be given away as it is."""
    found = ModelCard.load(result.model / "README.md").data
    (accuracy, *_) = found.eval_results or []
    assert (accuracy.metric_type, accuracy.metric_value, accuracy.dataset_split) == ("accuracy", 1.0, "test")
    assert (found.get("base_model"), found.get("datasets")) == (None, None)  # both are local here
    assert (result.model / "report.png").is_file()
    for file in result.model.iterdir():
        assert str(tmp_path).encode() not in file.read_bytes(), file.name


def check_numbers(result: Any, tmp_path: Path) -> None:
    """The report says what is so."""
    model = AutoModelForSequenceClassification.from_pretrained(result.model)
    assert model.config.num_hidden_layers == 1
    report = json.loads((result.folder / "report.json").read_text())
    assert report["after"]["parameters"] == sum(parameter.numel() for parameter in model.parameters())
    assert report["after"]["parameters"] < report["before"]["parameters"]
    assert report["after"]["bytes_on_disk"] == (result.model / "model.safetensors").stat().st_size
    assert report["after"]["latency_ms"]["p50"] > 0
    assert report["after"]["latency_with_preprocessing_ms"]["p50"] > 0
    assert report["after"]["peak_memory_mb"]["process"] > 0
    assert result.metrics["test"]["after"]["accuracy"] == 1.0
    assert report["metrics_after"] == result.metrics["test"]["after"]
    assert str(tmp_path) not in (result.folder / "report.md").read_text()


class Killed(TrainerCallback):
    """Dies in the second epoch of stage ``stage``."""

    def __init__(self, stage: str):
        self.stage = stage

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if Path(args.output_dir).name == self.stage and state.epoch > 1.2:
            raise KeyboardInterrupt


@pytest.mark.parametrize("stage", ["finetune", "compress"])
def test_resume_continues_the_newest_unfinished(
    recipe: Path, tmp_path: Path, stage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hf_efficient.outcome.measure", no_measurement)
    monkeypatch.setattr("hf_efficient.job.Job.finish", finish_without_measuring)
    whole = run(recipe, runs=tmp_path / "whole")
    monkeypatch.setattr("transformers.trainer.DEFAULT_CALLBACKS", [*default_callbacks(), Killed(stage)])
    with pytest.raises(KeyboardInterrupt):
        run(recipe, runs=tmp_path / "runs")
    monkeypatch.undo()
    monkeypatch.setattr("hf_efficient.job.Job.finish", finish_without_measuring)
    (folder,) = unfinished(tmp_path / "runs", "tiny")
    assert (folder / "stages" / "finetune" / "stage.json").is_file() == (stage == "compress")
    result = run(recipe, runs=tmp_path / "runs", resume=True)
    assert result == folder
    assert whole is not None
    assert_same_tensors(weights(whole / "stages/compress/final"), weights(folder / "stages/compress/final"))
    with pytest.raises(ConfigError, match="drop the overrides"):
        run(recipe, ["seed=1"], runs=tmp_path / "runs", resume=True)


def test_auto_passes_over_a_run_whose_recipe_cannot_be_read(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hf_efficient.job.Job.finish", finish_without_measuring)
    damaged = tmp_path / "runs" / "tiny" / "20260101-000000"
    damaged.mkdir(parents=True)
    (damaged / "run.json").write_text('{"status": "running"}')
    (damaged / "recipe.yaml").write_text("task: [")
    folder = run(recipe, runs=tmp_path / "runs", resume="auto")
    assert folder != damaged
    assert (damaged / "recipe.yaml").read_text() == "task: ["


def test_an_earlier_stage_teaches(recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hf_efficient.job.Job.finish", finish_without_measuring)
    text = recipe.read_text().replace("keep_layers: [0]}", "keep_layers: [0]}, distillation: {teacher: finetune}")
    recipe.write_text(text)
    folder: Any = run(recipe, runs=tmp_path / "runs")
    changes = json.loads((folder / "stages" / "compress" / "stage.json").read_text())["changes"]
    (told,) = [change for change in changes if change["name"] == "distillation"]
    assert told["teacher"] == ["finetune/final"]
    assert told["layer_map"] == [[0, 0, 1]]
    assert told["share_from_cache"] >= 0.5  # some questions come to the same tokens
    assert not list(folder.rglob("_example_cache"))


def default_callbacks() -> list[Any]:
    import transformers.trainer

    return transformers.trainer.DEFAULT_CALLBACKS


def no_measurement(*args: Any, **kwargs: Any) -> None:
    raise AssertionError("not to be measured here")


def finish_without_measuring(self: Any, folder: Path, *args: Any) -> Path:
    """Measuring takes fresh processes; what matters here are the stages."""
    return folder


def load_few(*args: Any, **kwargs: Any) -> DatasetDict:
    """From all over the training data, so that each class is there; of the rest the first."""

    def few(split: str, rows: Any) -> Any:
        return rows.select(range(0, len(rows), max(1, len(rows) // 250)) if split == "train" else range(16))

    return DatasetDict({split: few(split, rows) for split, rows in load(*args, **kwargs).items()})


def test_two_processes_train_together(recipe: Path, tmp_path: Path) -> None:
    on_two_processes("hf_efficient", "run", recipe, "--runs", tmp_path / "runs")
    (status,) = (tmp_path / "runs" / "tiny").glob("*/run.json")  # one run, not one for each process
    assert json.loads(status.read_text())["status"] == "finished"
    for name, epochs in (("finetune", 3), ("compress", 2)):
        stage = json.loads((status.parent / "stages" / name / "stage.json").read_text())
        assert max(entry["step"] for entry in stage["history"]) == epochs * 3  # 36 rows, 8 on each of two processes


def test_nothing_to_resume(recipe: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="nothing to resume"):
        run(recipe, runs=tmp_path / "runs", resume=True)
    assert not (tmp_path / "runs").exists()


def test_refusals_come_before_anything_is_written(recipe: Path, tmp_path: Path) -> None:
    for override in ("stages.compress.optimizations.structured_pruning.keep_layers=3", "data.test=none.csv"):
        with pytest.raises(ValueError, match=r"2 layers|none\.csv"):
            run(recipe, [override], runs=tmp_path / "runs")
    with pytest.raises(ConfigError, match="Recipe object"):
        run(Recipe.load(recipe), ["seed=1"])
    assert not (tmp_path / "runs").exists()


@pytest.mark.slow
@pytest.mark.parametrize("name", bundled())
def test_bundled_recipe_runs(name: str, tmp_path: Path, default_model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two steps of every stage, on few rows of its bundled sample."""
    monkeypatch.setattr("hf_efficient.job.Job.finish", finish_without_measuring)
    monkeypatch.setattr("hf_efficient.job.load", load_few)
    recipe = Recipe.load(name)
    stages = recipe.stages
    overrides = [
        f"stages.{stage}.training.{setting}"
        for stage in stages
        for setting in ("max_steps=2", "per_device_train_batch_size=8")
    ]
    if "max_history" in recipe.data:
        overrides += ["data.max_history=1", "data.negatives=1"]
    if "compress" in stages:  # two steps teach nothing that could be measured or passed on
        pruning = "{keep_layers: [0, 2], calibration_batches: 2}"
        overrides.append(f"stages.compress.optimizations={{structured_pruning: {pruning}}}")
    folder = run(name, overrides, runs=tmp_path)
    assert isinstance(folder, Path)
    assert weights(folder / f"stages/{list(stages)[-1]}/final")


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    measure_hastily(monkeypatch)


def measure_hastily(patch: pytest.MonkeyPatch) -> None:
    """Measure in no time: what matters here is what is kept."""
    patch.setattr("hf_efficient.outcome.SECONDS", 0.0)
    patch.setattr("hf_efficient.outcome.TURNS", 1)
    patch.setattr("hf_efficient.outcome.measure_speed", functools.partial(measure_speed, seconds=0, repeats=1))
    patch.setattr("hf_efficient.outcome.peak_memory_mb", lambda *args, **kwargs: None)


EXPORT = "export={format: onnx, quantize: none}"


def test_export_follows_the_last_stage(recipe: Path, tmp_path: Path, hasty: None) -> None:
    """A run that dies in the export trains nothing again, and one that dies after it exports nothing again."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("hf_efficient.outcome.export", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run(recipe, [EXPORT], runs=tmp_path / "runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("hf_efficient.job.Job.train", no_measurement)
        patch.setattr("hf_efficient.job.Report.save", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run(recipe, runs=tmp_path / "runs", resume=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("hf_efficient.outcome.export", no_measurement)
        result = run(recipe, runs=tmp_path / "runs", resume=True)
    assert result is not None
    exported = result.exported
    assert exported is not None
    assert exported.folder == result.folder / "exported"
    assert exported.measurement is not None
    assert exported.measurement.latency_with_preprocessing_ms is not None
    assert result.metrics["test"]["exported"]["accuracy"] == result.metrics["test"]["after"]["accuracy"]
    assert json.loads((result.folder / "metrics.json").read_text())["test"]["exported"]
    assert "Export (onnx, quantize none)" in (result.folder / "report.md").read_text()
    assert result.sample == "how do i pay 40"
    assert result.answer()[0]["label"] == "a"


def interrupted(*args: Any, **kwargs: Any) -> None:
    raise KeyboardInterrupt


def test_refused_export_leaves_a_finished_run(
    recipe: Path, tmp_path: Path, hasty: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: Any, **kwargs: Any) -> None:
        raise ExportError("it costs too much")

    monkeypatch.setattr("hf_efficient.outcome.export", refuse)
    with pytest.raises(ExportError, match="too much"):
        run(recipe, [EXPORT, "stages.compress.training.max_steps=1"], runs=tmp_path / "runs")
    folder = next((tmp_path / "runs" / "tiny").iterdir())
    assert json.loads((folder / "run.json").read_text())["status"] == "finished"
    assert "No export: it costs too much" in (folder / "report.md").read_text()
    assert weights(folder / "final")
    assert not (folder / "exported").exists()


def test_export_that_cannot_be_is_refused_first(recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(MissingDependencyError, match=r"hf-efficient\[onnx\]"):
        run(recipe, [EXPORT], runs=tmp_path / "runs")
    assert not (tmp_path / "runs").exists()


TRIM = """
task: text-classification
model: {model}
data: {{train: {folder}/train.csv, test: {folder}/test.csv, max_length: 16}}
stages:
  trim:
    training: {{num_train_epochs: 3, learning_rate: 5.0e-3, per_device_train_batch_size: 8}}
    optimizations: {{vocabulary_trimming: {{keep: [money]}}}}
  finetune:
    training: {{num_train_epochs: 1, learning_rate: 5.0e-3, per_device_train_batch_size: 8}}
"""


def test_a_trimmed_vocabulary_goes_through_all_that_follows(recipe: Path, tmp_path: Path, hasty: None) -> None:
    """Later stage, evaluation, measuring, export and the finished folder have the tokenizer of the trimmed model."""
    recipe.write_text(TRIM.format(model=tmp_path / "model", folder=tmp_path))
    (tmp_path / "test.csv").write_text("text,label\nmy app is lost,b\nhow do i pay money,a\n")  # "app" is dropped
    result = run(recipe, [EXPORT], runs=tmp_path / "runs")
    assert result is not None
    assert result.exported is not None
    parent = AutoTokenizer.from_pretrained(tmp_path / "model")
    folders = [result.folder / "stages" / name / "final" for name in ("trim", "finetune")]
    for folder in (*folders, result.model, result.exported.folder):
        tokenizer = AutoTokenizer.from_pretrained(folder)
        assert "money" in tokenizer.get_vocab()
        assert "app" not in tokenizer.get_vocab()
        assert len(tokenizer) < len(parent)
    assert weights(result.model)["bert.embeddings.word_embeddings.weight"].shape[0] == len(tokenizer)
    model = AutoModelForSequenceClassification.from_pretrained(result.model).eval()
    texts, labels = ["my app is lost", "how do i pay money"], torch.tensor([1, 0])
    with torch.no_grad():
        loss = model(**tokenizer(texts, padding=True, return_tensors="pt"), labels=labels).loss
    assert result.metrics["test"]["after"]["loss"] == pytest.approx(loss.item(), rel=1e-4)
    assert result.metrics["test"]["exported"]["accuracy"] == result.metrics["test"]["after"]["accuracy"]
    changes = json.loads((result.folder / "report.json").read_text())["changes"]
    assert changes[0]["vocabulary"] == len(tokenizer)


def test_resume_after_a_trimmed_stage(recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe.write_text(TRIM.format(model=tmp_path / "model", folder=tmp_path))
    monkeypatch.setattr("hf_efficient.job.Job.finish", finish_without_measuring)
    whole = run(recipe, runs=tmp_path / "whole")
    with monkeypatch.context() as patch:
        patch.setattr("transformers.trainer.DEFAULT_CALLBACKS", [*default_callbacks(), Killed("trim")])
        with pytest.raises(KeyboardInterrupt):
            run(recipe, runs=tmp_path / "runs")
    resumed = run(recipe, runs=tmp_path / "runs", resume=True)
    assert isinstance(whole, Path)
    assert isinstance(resumed, Path)
    for stage in ("trim", "finetune"):
        assert_same_tensors(weights(whole / f"stages/{stage}/final"), weights(resumed / f"stages/{stage}/final"))


def test_a_folder_that_was_never_made_is_cleared(recipe: Path, tmp_path: Path, hasty: None) -> None:
    """Its process died at it; one that is new may be another process's."""
    old, new = (tmp_path / "runs/tiny" / f".2026-11-28T00-00-0{second}.000.0123abcd.tmp" for second in (1, 2))
    for folder in (old, new):
        folder.mkdir(parents=True)
    os.utime(old, (1, 1))
    run(recipe, runs=tmp_path / "runs")
    assert not old.exists()
    assert new.exists()

"""Reinforcement learning: completions judged alike everywhere, and a reward that rises."""

import io
import json
import pickle
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset, DatasetDict
from PIL import Image
from transformers import EvalPrediction, TrainerCallback, pipeline

from hf_efficient import Recipe
from hf_efficient.data import load
from hf_efficient.errors import ConfigError, DataError, MissingDependencyError
from hf_efficient.measure import measure
from hf_efficient.recipe import training_values
from hf_efficient.run import run
from hf_efficient.task import get_task
from hf_efficient.tasks.reinforcement_learning import ReinforcementLearning, ReinforcementLearningData
from hf_efficient.tasks.rewards import TRUST, wanted_characters
from tests.tasks.conftest import END, task_trainer, tiny_gpt2

trl = pytest.importorskip("trl")

PROMPTS = ["my card is lost", "how do i pay", "where is the money", "a new card", "no", "do not pay the app now"]


@pytest.fixture
def checkpoint(tmp_path: Path) -> str:
    return tiny_gpt2(tmp_path / "model", layers=2)


def splits(**columns: list) -> DatasetDict:
    rows = Dataset.from_dict({"prompt": PROMPTS, "wanted": ["aeiou"] * len(PROMPTS), **columns})
    return DatasetDict({"train": rows, "validation": rows})


def task(**settings: Any) -> ReinforcementLearning:
    lengths = {"max_prompt_length": 12, "max_completion_length": 6}
    values = {"train": "unused", "reward": "wanted_characters", **lengths, **settings}
    return ReinforcementLearning(ReinforcementLearningData(**values))


def ready(model: str, data: DatasetDict | None = None, **settings: Any) -> ReinforcementLearning:
    built = task(**settings)
    built.check(data or splits())
    built.load_processor(model)
    return built


def trainer(
    built: ReinforcementLearning, model: str, folder: Path, data: DatasetDict | None = None, **settings: Any
) -> Any:
    few = {"per_device_eval_batch_size": 4, "num_generations": 4}
    options = {"save_strategy": "no", **built.arguments(), **few, **settings}
    return task_trainer(built, built.load_model(model), data or splits(), folder, **options)


# Data


def test_bad_data(checkpoint: str) -> None:
    with pytest.raises(DataError, match=r"data.train: reward '.*' asks for a column: unknown column 'wanted'"):
        task().check(DatasetDict({"train": splits()["train"].remove_columns("wanted")}))
    with pytest.raises(DataError, match=r"data.train: column 'prompt' must hold text, got int64"):
        task().check(splits(prompt=[1] * len(PROMPTS)))
    with pytest.raises(DataError, match=r"data.train: TRL means something else by a column 'images'; rename or drop"):
        task().check(splits(images=[1] * len(PROMPTS)))
    with pytest.raises(DataError, match=r"means something else by a column 'prompt'"):
        task(prompt="question").check(splits(question=PROMPTS))
    data = splits(prompt=[*PROMPTS[:2], "no " * 13, *PROMPTS[3:]])
    with pytest.raises(DataError, match=r"data.train: row 3: a prompt of 15 tokens, .*max_prompt_length=12; shorten"):
        ready(checkpoint, data).encode_all(data)


def test_column_of_another_name(checkpoint: str) -> None:
    data = DatasetDict({name: rows.rename_column("prompt", "question") for name, rows in splits().items()})
    built = ready(checkpoint, data, prompt="question")
    encoded = built.encode(data["train"])
    assert set(encoded.column_names) == {"prompt", "wanted"}
    assert list(encoded["prompt"]) == PROMPTS
    assert built.raw(data["train"][0]) == PROMPTS[0]
    assert built.baseline(data, "validation")[1] == ready(checkpoint).baseline(splits(), "validation")[1]


def test_length_that_the_model_cannot_take(checkpoint: str) -> None:
    with pytest.raises(ConfigError, match=r"max_completion_length come to 42, but model .* takes at most 32 tokens"):
        ready(checkpoint, max_completion_length=30)


def test_prompts_end_where_generation_begins(checkpoint: str) -> None:
    built = ready(checkpoint)
    rows = splits()["train"]
    batch = built.collator()(list(built.requests(rows)))
    assert batch["attention_mask"][:, -1].all()
    for given in (built.preprocess([built.raw(row) for row in rows]), built.collator()(list(built.encode(rows)))):
        assert given.keys() == batch.keys()
        assert all(torch.equal(given[name], batch[name]) for name in batch)
    timing = measure(
        built.runtime(built.load_model(checkpoint).eval()), list(built.requests(rows)), built.collator(), repeats=1,
        seconds=0, warmup=0, preprocess=built.preprocess, raw=[built.raw(row) for row in rows],
    )  # fmt: skip
    assert timing.new_tokens == 6


# Arguments


def test_without_trl(monkeypatch: pytest.MonkeyPatch) -> None:
    """The task is there; what needs TRL says so."""
    monkeypatch.setitem(sys.modules, "trl", None)
    assert get_task("reinforcement-learning") is ReinforcementLearning
    with pytest.raises(MissingDependencyError, match=r"reinforcement-learning needs .*hf-efficient\[trl\]"):
        Recipe.load("reinforcement-learning")


def test_arguments_are_trl_s_and_ours(tmp_path: Path) -> None:
    cls = ReinforcementLearning.arguments_class
    values = training_values({"beta": "4e-2", "num_generations": "4", "learning_rate": "1e-4"}, "x", cls)
    made = cls(str(tmp_path), report_to="none", use_cpu=True, optimizations='{"optimizer": {}}', **values)
    assert (made.beta, made.num_generations, made.optimizations) == (0.04, 4, {"optimizer": {}})
    assert not made.bf16
    assert not made.gradient_checkpointing
    assert pickle.loads(pickle.dumps(made)).to_dict() == made.to_dict()
    with pytest.raises(ConfigError, match=r"x: unknown key 'num_generation'; did you mean 'num_generations'"):
        training_values({"num_generation": 4}, "x", cls)


@pytest.mark.parametrize("name", ["length_batching", "compile", "distillation", "structured_pruning"])
def test_optimizations_that_do_not_fit(name: str, tmp_path: Path) -> None:
    cls = ReinforcementLearning.arguments_class
    with pytest.raises(ConfigError, match=rf"optimizations.{name} does not fit .*Allowed: activation_checkpointing"):
        cls(str(tmp_path), report_to="none", use_cpu=True, optimizations={name: {}})
    assert cls(str(tmp_path), report_to="none", use_cpu=True, optimizations={name: False})


def test_new_weights_are_nothing_to_stay_near(checkpoint: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"beta=0.1 keeps a model near what it was.*set beta=0"):
        trainer(ready(checkpoint), f"new:{checkpoint}", tmp_path / "out", beta=0.1)


# Evaluation


def test_judged_by_its_own_distribution(checkpoint: str, tmp_path: Path) -> None:
    """Each prompt once, in the data's order, the same each time, and nobody else's chance is touched."""
    built = ready(checkpoint)
    made = trainer(built, checkpoint, tmp_path / "out")
    rows = built.encode(splits()["validation"])
    said, again = made.predict(rows), made.predict(rows)
    before = torch.random.get_rng_state()
    made._generated(list(rows))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert np.array_equal(said.predictions, again.predictions)
    assert said.predictions.shape == (6, 6)
    assert len({tuple(row) for row in said.predictions.tolist()}) == 6, "drawn, each for itself"
    texts = [
        built.processor.decode([one for one in row if one >= 0], skip_special_tokens=True) for row in said.predictions
    ]
    rewards = wanted_characters(texts, ["aeiou"] * 6)
    assert said.label_ids == pytest.approx(rewards)
    assert said.metrics["test_reward"] == pytest.approx(np.mean(rewards))
    assert "test_loss" not in said.metrics
    lines = str(built.details(EvalPrediction(said.predictions, said.label_ids, rows))["rewards.jsonl"]).splitlines()
    assert [json.loads(line)["completion"] for line in lines] == texts
    assert [json.loads(line)["prompt"] for line in lines] == PROMPTS


def test_completions_end_where_the_text_does(checkpoint: str, tmp_path: Path) -> None:
    built = ready(checkpoint)
    made = trainer(built, checkpoint, tmp_path / "out")
    made._generated = lambda rows: torch.tensor([[5, END, 6, 7, 0, 0]] * len(rows))
    said = made.predict(built.encode(splits()["validation"]))
    assert said.predictions[0].tolist() == [5, END, -100, -100, -100, -100]
    assert said.metrics["test_completion_tokens"] == 2
    (line, *_) = str(built.details(EvalPrediction(said.predictions, said.label_ids))["rewards.jsonl"]).splitlines()
    assert json.loads(line) == {"prompt": None, "completion": "my", "reward": 0.0}


def test_baseline_is_random_tokens(checkpoint: str) -> None:
    built = ready(checkpoint, max_completion_length=20)
    many = DatasetDict({"test": Dataset.from_dict({"prompt": ["no"] * 400, "wanted": ["aeiou"] * 400})})
    name, found = built.baseline(many, "test")
    tokens = [built.processor.decode([one]).replace("##", "") for one in range(5, len(built.processor))]
    share = sum(c in "aeiou" for c in "".join(tokens)) / len("".join(tokens))
    assert name == "random tokens"
    assert found["reward"] == pytest.approx(share, abs=0.03)
    assert found["completion_tokens"] == 20


# Training


LESS_MEMORY = {"precision": {"dtype": "bf16"}, "optimizer": {}, "activation_checkpointing": {}}


@pytest.mark.parametrize("optimizations", [{}, LESS_MEMORY], ids=["none", "less memory"])
def test_the_reward_rises(checkpoint: str, tmp_path: Path, optimizations: dict[str, Any]) -> None:
    built = ready(checkpoint)
    made = trainer(
        built, checkpoint, tmp_path / "out", max_steps=60, learning_rate=1e-2, num_generations=8,
        per_device_train_batch_size=48, optimizations=optimizations,
    )  # fmt: skip
    made.train()
    rewards = [entry["reward"] for entry in made.state.log_history if "reward" in entry]
    assert np.mean(rewards[-5:]) > np.mean(rewards[:5]) + 0.1
    assert made.evaluate()["eval_reward"] > built.baseline(splits(), "validation")[1]["reward"] + 0.1
    assert [one.name for one in made.optimizations] == sorted(optimizations, key=lambda name: name != "precision")
    if optimizations.get("precision"):
        assert made.args.bf16
    made.save_model(str(tmp_path / "saved"))
    assert torch.equal(built.load_model(str(tmp_path / "saved")).lm_head.weight, made.model.lm_head.weight)
    write = pipeline(built.pipeline, model=str(tmp_path / "saved"), device="cpu")
    assert write(PROMPTS[0], max_new_tokens=4)[0]["generated_text"].startswith(PROMPTS[0])


def test_near_the_model_that_it_was(checkpoint: str, tmp_path: Path) -> None:
    made = trainer(ready(checkpoint), checkpoint, tmp_path / "out", max_steps=2, beta=0.1, learning_rate=1e-2)
    made.train()
    assert any(entry.get("kl", 0) > 0 for entry in made.state.log_history)


RECIPE = """
task: reinforcement-learning
model: {model}
data:
  {{train: {folder}/train.jsonl, test: {folder}/test.jsonl, reward: "{reward}", max_prompt_length: 12,
    max_completion_length: 6}}
stages:
  first: &stage
    training: {{max_steps: 4, num_generations: 4, per_device_train_batch_size: 16, learning_rate: 1.0e-3}}
    optimizations: {{precision: {{dtype: bf16}}}}
  second: *stage
"""


@pytest.fixture
def recipe(checkpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(TRUST, "1")
    for split, count in (("train", 40), ("test", 5)):
        lines = [json.dumps({"prompt": PROMPTS[index % 6], "weight": index}) for index in range(count)]
        (tmp_path / f"{split}.jsonl").write_text("\n".join(lines))
    (tmp_path / "own.py").write_text(
        "def score(completions, **columns):\n    return [len(text) for text in completions]"
    )
    file = tmp_path / "tiny.yaml"
    file.write_text(RECIPE.format(model=checkpoint, folder=tmp_path, reward=tmp_path / "own.py:score"))
    return file


def test_run(recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hf_efficient.outcome.SECONDS", 0.0)
    monkeypatch.setattr("hf_efficient.outcome.TURNS", 1)
    result = run(recipe, runs=tmp_path / "runs")
    assert result is not None
    found = result.metrics["test"]
    assert {"before", "after", "baseline"} == found.keys()
    assert all({"reward", "completion_tokens"} == one.keys() for one in found.values())
    assert result.report.metrics_after["reward"] == found["after"]["reward"]
    for side in ("before", "after"):
        lines = (result.folder / side / "rewards.jsonl").read_text().splitlines()
        assert len(lines) == 5
        assert np.mean([json.loads(line)["reward"] for line in lines]) == pytest.approx(found[side]["reward"], abs=1e-5)
    assert Image.open(result.folder / "rewards.png").size == (770, 440)
    assert "random tokens" in (result.folder / "report.md").read_text()
    history = json.loads((result.folder / "stages/first/stage.json").read_text())["history"]
    assert history[0]["step"] == 0
    assert "eval_reward" in history[0], "what the model was worth before training"


class Killed(TrainerCallback):
    """Dies in the third step of the second stage."""

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if Path(args.output_dir).name == "second" and state.global_step == 3:
            raise KeyboardInterrupt


def test_resumes(recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import transformers.trainer as stock

    monkeypatch.setattr("hf_efficient.job.Job.finish", lambda self, folder, *args: folder)
    steps = {f"{name}_strategy": "steps" for name in ("save", "eval")} | {"save_steps": 1, "eval_steps": 1}
    overrides = [
        f"stages.{stage}.training.{name}={value}" for stage in ("first", "second") for name, value in steps.items()
    ]
    with monkeypatch.context() as patch:
        patch.setattr("transformers.trainer.DEFAULT_CALLBACKS", [*stock.DEFAULT_CALLBACKS, Killed()])
        with pytest.raises(KeyboardInterrupt):
            run(recipe, overrides, runs=tmp_path / "runs")
    folder: Any = run(recipe, runs=tmp_path / "runs", resume=True)
    history = json.loads((folder / "stages/second/stage.json").read_text())["history"]
    assert [one["step"] for one in history if "reward" in one] == [1, 2, 3, 4]


def test_unfit_optimizations_are_refused_before_anything_is_written(recipe: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"stages.first.training: optimizations.length_batching does not fit"):
        run(recipe, ["stages.first.optimizations={length_batching: {}}"], runs=tmp_path / "runs")
    assert not (tmp_path / "runs").exists()


def test_picture_of_rewards() -> None:
    logs = [{"step": 0, "eval_reward": 0.1}, {"step": 5, "reward": 0.2}, {"step": 9, "train_loss": 1.0}]
    built = task()
    drawn = [built.training_details(history)["rewards.png"] for history in ({}, {"a": logs}, {"a": logs, "b": logs})]
    assert len(set(drawn)) == 3
    assert all(Image.open(io.BytesIO(one)).size == (770, 440) for one in drawn)  # type: ignore[arg-type]


def test_the_sample() -> None:
    data = load(ReinforcementLearningData(train="sample:characters", reward="wanted_characters"))
    assert {name: len(split) for name, split in data.items()} == {"train": 200, "validation": 60, "test": 100}
    prompts = [prompt for split in data.values() for prompt in split["prompt"]]
    assert len(set(prompts)) == len(prompts)
    built = task(max_prompt_length=48)
    built.check(data)
    built.load_processor("new:gpt2-tiny")
    built.encode_all(data)

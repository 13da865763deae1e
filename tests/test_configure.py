"""The constructor of a trainer: positional or named, with callbacks, tuned."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import Trainer, TrainerCallback, TrainingArguments

from hf_efficient import (
    ConfigError,
    EfficientTrainer,
    EfficientTrainingArguments,
    NoEffectWarning,
    StructuredPruning,
    autotune,
    efficient,
)
from hf_efficient.configure import Constructor
from hf_efficient.optimizations import precision
from hf_efficient.plan import OPTIMIZATIONS
from hf_efficient.tuning import CACHE_VARIABLE
from tests.test_parity import assert_same_tensors, build, train
from tests.tiny import KINDS, arguments


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))


def tuned(folder: Path, cls: type = EfficientTrainer, given: Any = None, **options: Any) -> Any:
    options = {"autotune": True, "measure_seconds": 0, "num_train_epochs": 300, **options}
    return build(cls, EfficientTrainingArguments, folder, given=given, **options)


def test_a_call_with_other_values() -> None:
    def init(self: Any, model: Any, args: Any = None, *, callbacks: Any = None, **kwargs: Any) -> None:
        """As Trainer's."""

    constructor = Constructor(init, ("self", "model", "args"), {"extra": 1})
    assert constructor.given == {"self": "self", "model": "model", "args": "args", "extra": 1, "kwargs": {"extra": 1}}
    positional, named = constructor.call({"args": "others", "callbacks": []})
    assert (positional, named) == (("self", "model"), {"extra": 1, "args": "others", "callbacks": []})


def test_real_trials_choose_and_the_training_is_that_of_the_choice(tmp_path: Path) -> None:
    trainer = tuned(tmp_path / "tuned")
    tuning = trainer.tuning
    assert tuning.source == "tried"
    assert tuning.rows[0].way == "as given"
    assert {one.name for one in trainer.optimizations} == set(tuning.optimizations)
    assert (tmp_path / "tuned" / "autotune.png").is_file()
    assert tuned(tmp_path / "again").tuning.source.startswith("the cache")
    same = tuned(tmp_path / "same", autotune=False, optimizations=tuning.optimizations or None, **tuning.args)
    for one in (trainer, same):
        one.args.max_steps = 4
    train(trainer, same)
    assert_same_tensors(dict(trainer.model.state_dict()), dict(same.model.state_dict()))


def test_what_the_last_trial_set_up_is_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Accelerate keeps the mixed precision of whoever asked first."""
    monkeypatch.setattr(precision, "matmul_speedup", lambda dtype, **_: 3.0)
    monkeypatch.setattr(autotune.Tuner, "_halve", lambda *args: None)  # takes nothing
    others = {name: False for name in OPTIMIZATIONS if name != "precision"}
    trainer = tuned(tmp_path, optimizations=others)
    assert trainer.tuning.rows[-1].way == "precision (dtype=bf16)"
    assert trainer.tuning.rows[-1].verdict == "tried"
    assert trainer.accelerator.mixed_precision == "no"


def test_a_resumed_training_keeps_the_choice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = tuned(tmp_path / "out", max_steps=4, save_steps=2)
    first.train()
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "elsewhere"))
    again = tuned(tmp_path / "out", max_steps=4, save_steps=2)
    assert again.tuning.source == "the checkpoints' folder"
    assert again.tuning.optimizations == first.tuning.optimizations
    again.train(resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-2"))
    assert_same_tensors(dict(first.model.state_dict()), dict(again.model.state_dict()))


class Own(EfficientTrainer):
    """With a loss that needs what its constructor set."""

    def __init__(self, *args: Any, factor: float, **kwargs: Any):
        self.factor = factor
        super().__init__(*args, **kwargs)

    def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, **kwargs: Any) -> Any:
        loss, outputs = super().compute_loss(model, inputs, return_outputs=True, **kwargs)
        return (loss * self.factor, outputs) if return_outputs else loss * self.factor


def test_trials_are_of_the_users_class(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    losses = []
    for factor in (1.0, 10.0):
        monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / f"cache {factor}"))
        tuning = tuned(tmp_path / str(factor), Own, {"factor": factor}, max_steps=6).tuning
        losses.append(tuning.rows[0].found["loss"])
    assert losses[1] == pytest.approx(10 * losses[0], rel=0.2)


def test_trials_do_not_call_the_users_callbacks(tmp_path: Path) -> None:
    class Seen(TrainerCallback):
        steps = 0

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            Seen.steps += 1

    tuned(tmp_path, given={"callbacks": [Seen]}, max_steps=6)
    assert Seen.steps == 0


def test_trials_leave_out_what_cuts_the_model(tmp_path: Path) -> None:
    cut = StructuredPruning(keep_layers=1)
    trainer = tuned(tmp_path, given={"callbacks": [cut]}, max_steps=6)
    assert cut in trainer.optimizations
    assert not cut.describe()
    assert not (tmp_path / "decisions").exists()


def test_a_model_init_is_tuned(tmp_path: Path) -> None:
    assert tuned(tmp_path, given={"model_init": lambda: KINDS["text"].model()}, max_steps=6).tuning.rows


def test_without_training_data_nothing_is_tried(tmp_path: Path) -> None:
    with pytest.warns(NoEffectWarning, match="autotune: there is no train_dataset"):
        assert tuned(tmp_path, given={"train_dataset": None}).tuning is None


def test_an_optimizer_of_the_user_is_refused(tmp_path: Path) -> None:
    model = KINDS["text"].model()
    given = {"model": model, "optimizers": (torch.optim.SGD(model.parameters(), 0.1), None)}
    with pytest.raises(ConfigError, match=r"autotune trains copies .* pass optimizer_cls_and_kwargs="):
        tuned(tmp_path, given=given)


def test_a_function_that_makes_the_optimizer_is_tuned(tmp_path: Path) -> None:
    made = []

    def make_optimizer(model: Any, args: Any) -> torch.optim.Optimizer:
        made.append(model)
        return torch.optim.SGD(model.parameters(), args.learning_rate)

    tuning = tuned(tmp_path, given={"optimizers": (make_optimizer, None)}, max_steps=6).tuning
    assert made
    assert "optimizer" not in tuning.optimizations


def test_arguments_of_stock_are_not_tuned(tmp_path: Path) -> None:
    trainer = efficient(Trainer)(KINDS["text"].model(), arguments(TrainingArguments, tmp_path))
    assert trainer.tuning is None

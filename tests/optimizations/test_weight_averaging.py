"""What is averaged, and who sees the average; what every optimization does is in `tests/test_contract.py`."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import Trainer, TrainerCallback, TrainingArguments, set_seed

from hf_efficient import ConfigError, EfficientTrainer, EfficientTrainingArguments, NoEffectWarning, WeightAveraging
from tests.test_parity import Stop, assert_same_tensors, build

Weights = dict[str, torch.Tensor]


class Recorder(TrainerCallback):
    """Weights of the model after each step, after each evaluation, and while each step computes."""

    def __init__(self) -> None:
        self.stepped: list[Weights] = []
        self.evaluated: dict[int, Weights] = {}
        self.trained: list[Weights] = []

    @staticmethod
    def _weights(model: Any) -> Weights:
        return {name: weight.detach().clone() for name, weight in model.named_parameters()}

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.trained.append(self._weights(kwargs["model"]))

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.stepped.append(self._weights(kwargs["model"]))

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.evaluated[state.global_step] = self._weights(kwargs["model"])


class SaveAfterThree(TrainerCallback):
    """Asks for a checkpoint when the optimizations have seen the end of the step, as a SIGTERM does."""

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 3:
            control.should_save = control.should_training_stop = True


def made(folder: Path, callbacks: Any = (), averaging: Any = None, **options: Any) -> Any:
    averaging = {"every": 1} if averaging is None else averaging
    options = {"optimizations": {"weight_averaging": averaging}, "measure_seconds": 0, **options}
    given = {"callbacks": list(callbacks)}
    return build(EfficientTrainer, EfficientTrainingArguments, folder, given=given, **options)


def trained(*args: Any, resume: str | None = None, **options: Any) -> Any:
    one = made(*args, **options)
    set_seed(0)
    one.train(resume_from_checkpoint=resume)
    return one


def stock_steps(folder: Path, **options: Any) -> list[Weights]:
    """Weights after each step of the stock Trainer."""
    recorder = Recorder()
    stock = build(Trainer, TrainingArguments, folder, given={"callbacks": [recorder]}, **options)
    set_seed(0)
    stock.train()
    return recorder.stepped


def averages(steps: list[Weights], eta: float) -> list[Weights]:
    """After each step, by how much each step counts: the i-th in proportion to (i + eta - 1)! / (i - 1)!"""
    found = []
    for last in range(1, len(steps) + 1):
        counts, count = [], 1.0
        for index in range(1, last + 1):
            counts.append(count)
            count *= (index + eta) / index
        found.append(
            {
                name: sum(each * step[name].double() for each, step in zip(counts, steps[:last], strict=True))
                / sum(counts)
                for name in steps[0]
            }
        )
    return found


def assert_close(found: Weights, wanted: Weights) -> None:
    for name, weight in wanted.items():
        torch.testing.assert_close(found[name].double(), weight, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("eta", [0.0, 8.0])
def test_the_average_is_evaluated_saved_and_kept_while_stock_weights_train(tmp_path: Path, eta: float) -> None:
    recorder = Recorder()
    settings = {"eval_strategy": "steps", "eval_steps": 2, "save_strategy": "steps", "save_steps": 4}
    ours = trained(tmp_path / "ours", [recorder], {"every": 1, "eta": eta}, **settings)
    steps = stock_steps(tmp_path / "stock", **settings)
    wanted = averages(steps, eta)
    for before, after in zip(steps, recorder.trained[1:], strict=False):
        assert_same_tensors(before, after)
    assert list(recorder.evaluated)[:2] == [2, 4]
    for step, weights in recorder.evaluated.items():
        assert_close(weights, wanted[step - 1])
    assert_close(load_file(tmp_path / "ours" / "checkpoint-4" / "model.safetensors"), wanted[3])
    assert_close(dict(ours.model.named_parameters()), wanted[-1])
    assert not torch.equal(ours.model.classifier.weight, steps[-1]["classifier.weight"])
    told = ours.optimizations[0].describe()
    assert told == {"averaged_times": len(steps), "steps_reached_back": round(len(steps) / (eta + 2), 1)}


def test_every_so_many_steps(tmp_path: Path) -> None:
    steps = stock_steps(tmp_path / "stock")
    ours = trained(tmp_path / "ours", averaging={"every": 3})
    assert_close(dict(ours.model.named_parameters()), averages(steps[2::3], 8.0)[-1])


def test_the_best_checkpoint_stays_the_result(tmp_path: Path) -> None:
    settings = {"eval_strategy": "epoch", "save_strategy": "epoch", "load_best_model_at_end": True}
    # its loss is least at the start
    ours = trained(tmp_path, metric_for_best_model="loss", greater_is_better=True, **settings)
    best = Path(ours.state.best_model_checkpoint)
    assert ours.state.best_global_step < ours.state.max_steps
    assert_same_tensors(dict(ours.model.named_parameters()), load_file(best / "model.safetensors"))


def test_a_checkpoint_of_the_weights_that_train_resumes_too(tmp_path: Path) -> None:
    undisturbed = trained(tmp_path / "undisturbed", save_strategy="no")
    trained(tmp_path / "stopped", [SaveAfterThree()])
    resumed = trained(tmp_path / "stopped", resume=str(tmp_path / "stopped" / "checkpoint-3"))
    assert_same_tensors(dict(undisturbed.model.state_dict()), dict(resumed.model.state_dict()))


def test_stopped_early_it_ends_with_the_average(tmp_path: Path) -> None:
    steps = stock_steps(tmp_path / "stock")
    ours = trained(tmp_path / "ours", [Stop()], save_strategy="no")
    assert_close(dict(ours.model.named_parameters()), averages(steps, 8.0)[ours.state.global_step - 1])


def test_too_short_a_training_says_so(tmp_path: Path) -> None:
    with pytest.warns(NoEffectWarning, match="every=5, and the training had 2 steps; lower every"):
        trained(tmp_path, averaging={}, max_steps=2)


@pytest.mark.parametrize("settings", [{"eta": -1.0}, {"eta": float("inf")}, {"eta": float("nan")}, {"every": 0}])
def test_bad_settings_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=f"weight_averaging.{next(iter(settings))} must be"):
        WeightAveraging(**settings)

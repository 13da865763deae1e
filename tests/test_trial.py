"""A trial: real steps of a trainer that leaves nothing behind."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch

from hf_efficient import ConfigError, EfficientTrainer, EfficientTrainingArguments
from hf_efficient.trial import OUT_OF_MEMORY, WARM_UP, WARM_UP_CPU, Trial, mean_loss_within, plain, run_trial, warm_up
from tests.test_parity import assert_same_tensors, build
from tests.tiny import arguments, text_model


def build_with(model: Any, folder: Path) -> Any:
    def made(args: Any) -> Any:
        usual = build(EfficientTrainer, EfficientTrainingArguments, folder)
        data = {"train_dataset": usual.train_dataset, "data_collator": usual.data_collator}
        return EfficientTrainer(copy.deepcopy(model), args, **data)

    return made


@pytest.fixture
def args(tmp_path: Path) -> Any:
    changes = {"save_strategy": "steps", "save_steps": 1, "num_train_epochs": 3}
    return arguments(EfficientTrainingArguments, tmp_path / "out", **changes)


@pytest.mark.parametrize("optimizations", [{}, {"length_batching": {}}, {"precision": {"dtype": "bf16"}}], ids=str)
def test_it_times_steps_and_leaves_nothing(tmp_path: Path, args: Any, optimizations: Any) -> None:
    args.optimizations = optimizations
    model = text_model()
    before = copy.deepcopy(model.state_dict())
    trial = run_trial(build_with(model, tmp_path), args, 3)
    assert trial.error == ""
    assert len(trial.step_seconds) == len(trial.losses) == 3
    assert trial.steps == 3 * 48 // args.per_device_train_batch_size
    assert sum(trial.shares.values()) == pytest.approx(1)
    assert trial.shares["forward"] > 0
    assert (trial.padding > 0.1) == ("length_batching" not in optimizations)
    assert 0 < trial.losses[0] < 2
    assert trial.memory_mb > 0
    assert_same_tensors(before, dict(model.state_dict()))
    assert not (tmp_path / "out").exists()
    assert args.save_steps == 1
    assert args.optimizations == optimizations


def test_parts_of_a_step_are_known_where_they_have_to_be_waited_for(
    tmp_path: Path, args: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On an accelerator few steps are timed by parts, and a trial has few."""
    monkeypatch.setattr("hf_efficient.accounting.is_asynchronous", lambda device: True)
    waited: list[Any] = []
    monkeypatch.setattr(torch.accelerator, "synchronize", waited.append)
    trial = run_trial(build_with(text_model(), tmp_path), args, 3)
    assert len(trial.step_seconds) == len(trial.losses) == 3
    assert sum(trial.shares.values()) == pytest.approx(1)
    assert trial.shares["forward"] > 0
    assert 3 + WARM_UP_CPU < len(waited) < 5 * (3 + WARM_UP_CPU)


def test_same_seed_same_losses(tmp_path: Path, args: Any) -> None:
    model = text_model()
    first, second = (run_trial(build_with(model, tmp_path), args, 3) for _ in range(2))
    assert first.losses == second.losses
    assert mean_loss_within(first, second)


def test_a_short_training_shows_what_it_has(tmp_path: Path, args: Any) -> None:
    args.num_train_epochs, args.max_steps = 1, WARM_UP_CPU
    trial = run_trial(build_with(text_model(), tmp_path), args, 4)
    assert len(trial.step_seconds) == trial.steps == WARM_UP_CPU


def test_what_is_compiled_warms_up_for_longer(args: Any) -> None:
    assert warm_up(args) == WARM_UP_CPU
    args.torch_compile = True
    assert warm_up(args) == WARM_UP


def test_accumulated_losses_are_of_whole_steps(tmp_path: Path, args: Any) -> None:
    args.gradient_accumulation_steps = 2
    assert len(run_trial(build_with(text_model(), tmp_path), args, 2).losses) == 2


def test_what_is_refused_is_told(args: Any) -> None:
    def refuse(args: Any) -> Any:
        raise ConfigError("not here")

    assert run_trial(refuse, args, 2).error == "not here"


@pytest.mark.parametrize("error", [torch.OutOfMemoryError, MemoryError])
def test_memory_that_runs_out_is_told(args: Any, error: type[Exception]) -> None:
    def fail(args: Any) -> Any:
        raise error

    assert run_trial(fail, args, 2).error == OUT_OF_MEMORY


def test_other_errors_pass(args: Any) -> None:
    def fail(args: Any) -> Any:
        raise KeyError("labels")

    with pytest.raises(KeyError, match="labels"):
        run_trial(fail, args, 2)


@pytest.mark.parametrize(
    ("losses", "within"),
    [([1.0, 1.0], True), ([1.04, 1.04], True), ([1.2, 1.2], False), ([0.5, 1.9], True), ([float("nan"), 1.0], False)],
)
def test_losses_are_compared_by_their_spread(losses: list[float], within: bool) -> None:
    assert mean_loss_within(Trial(losses=losses), Trial(losses=[1.0, 1.0])) is within


def test_losses_of_the_same_steps_are_compared() -> None:
    first, later = [3.2, 3.1, 3.1, 3.0], [2.1, 2.0, 1.9, 1.8]
    short, long = Trial(losses=first), Trial(losses=first + later)
    assert mean_loss_within(long, short)
    assert mean_loss_within(short, long)
    assert not mean_loss_within(Trial(losses=later + first), short)


def test_few_losses_tell_little_of_their_spread() -> None:
    """Losses of four steps each, off by 3.7 standard errors: chance does so in one of a hundred cases."""
    one, other = [2.6, 2.9, 2.8, 3.1], [3.15, 3.45, 3.35, 3.65]
    assert mean_loss_within(Trial(losses=one), Trial(losses=other))
    assert not mean_loss_within(Trial(losses=4 * one), Trial(losses=4 * other))


def test_seconds_and_their_error() -> None:
    trial = Trial([0.1, 0.2, 0.3], [1.0], steps=10)
    assert trial.seconds == pytest.approx(2.0)
    assert trial.error_of_seconds == pytest.approx(2 * 1.25 * 0.1 / 3**0.5 * 10)
    assert plain(trial)["step_ms"] == pytest.approx(200)
    assert plain(Trial(error="no")) == {"error": "no"}

"""What trainings are told to have done with their time."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import Trainer, TrainerCallback, TrainingArguments, set_seed

from hf_efficient import EfficientTrainer, EfficientTrainingArguments, Optimization, Order, accounting, energy
from hf_efficient.accounting import (
    DATA,
    EVALUATION,
    OPTIMIZER,
    PARTS,
    SAVING,
    SIZES,
    Accounting,
    account,
    as_metrics,
    peak,
    starved,
)
from hf_efficient.energy import EnergyMeter
from tests.clock import Clock, clock_of
from tests.test_parity import assert_same_tensors, build
from tests.tiny import text_examples


def accounted(folder: Path, **options: Any) -> Any:
    trainer = build(Trainer, TrainingArguments, folder, **options)
    set_seed(0)
    with account(trainer) as accounts:
        trainer.train()
    return trainer, accounts


def test_counts_what_went_through(tmp_path: Path) -> None:
    trainer, accounts = accounted(tmp_path)
    figures = accounts.figures()
    rows = [text_examples()[index]["input_ids"] for index in range(48)]
    assert accounts.examples == 2 * 48
    assert int(accounts.real) == 2 * sum(map(len, rows))
    assert 0 < figures["padding_share"] < 0.5
    assert figures["padding_share"] == pytest.approx(1 - int(accounts.real) / accounts.padded)
    assert figures["tokens_per_second"] / figures["examples_per_second"] == pytest.approx(int(accounts.real) / 96)
    assert set(figures["time"]) == set(PARTS)
    assert sum(figures["time"].values()) == pytest.approx(1, abs=1e-3)
    assert 0 < figures["mfu"] < 1
    assert figures["tflops"] / figures["mfu"] == pytest.approx(peak(trainer.args.device, torch.float32) / 1e12)
    assert "compute_loss" not in vars(trainer)
    assert accounts not in trainer.callback_handler.callbacks


def test_operations_are_those_of_the_matrices(tmp_path: Path) -> None:
    """Backward passes multiply twice for every multiplication of the forward pass, but for the first one's inputs."""
    _, accounts = accounted(tmp_path, kind="vision")
    layers, width, features, positions, patch = 3, 16, 32, 5, 48
    inside = 4 * width * width + 2 * width * features + 2 * positions * width  # and two products of attention
    forward = 2 * (positions * layers * inside + (positions - 1) * patch * width + width * 2)
    operations = accounts._operations(accounts.trainer.model)
    assert operations == pytest.approx(96 * 3 * forward, rel=0.05)


def test_operations_on_padding_are_of_no_use(tmp_path: Path) -> None:
    _, accounts = accounted(tmp_path)
    model = accounts.trainer.model
    useful, real, accounts.real = accounts._operations(model), int(accounts.real), torch.tensor(accounts.padded)
    assert useful / accounts._operations(model) == pytest.approx(real / accounts.padded)


def test_operations_are_counted_for_each_size_of_images(tmp_path: Path) -> None:
    trainer = build(Trainer, TrainingArguments, tmp_path, kind="vision")
    model, operations = trainer.model, {}
    for counts in ({8: 3}, {4: 3}, {8: 2, 4: 4}):
        accounts = Accounting(trainer)
        for side, batches in counts.items():
            images = {"pixel_values": torch.zeros(2, 3, side, side), "interpolate_pos_encoding": True}
            for _ in range(batches):
                accounts._count({**images, "labels": torch.zeros(2, dtype=torch.long)})
        operations[tuple(counts)] = accounts._operations(model)
    large, small = operations[8,] / 3, operations[4,] / 3
    assert large > 2 * small
    assert operations[8, 4] == pytest.approx(2 * large + 4 * small)


def test_batches_of_a_few_sizes_are_kept(tmp_path: Path) -> None:
    accounts = Accounting(build(Trainer, TrainingArguments, tmp_path, kind="vision"))
    for side in range(4, 4 + SIZES + 3):
        accounts._count({"pixel_values": torch.zeros(2, 3, side, side)})
    assert len(accounts.batches) == SIZES
    assert sum(examples for _, examples in accounts.batches.values()) == accounts.examples == 2 * (SIZES + 3)


@pytest.mark.parametrize("kind", ["text", "token", "vision"])
def test_computes_what_it_would_without(kind: str, tmp_path: Path) -> None:
    plain = build(Trainer, TrainingArguments, tmp_path / "plain", kind=kind)
    set_seed(0)
    plain.train()
    trainer, accounts = accounted(tmp_path / "accounted", kind=kind)
    accounts.figures()
    assert_same_tensors(dict(plain.model.state_dict()), dict(trainer.model.state_dict()))
    assert all(parameter.grad is None for parameter in trainer.model.parameters())


@pytest.fixture
def clock() -> Iterator[Clock]:
    yield from clock_of(accounting)


class Slow(TrainerCallback):
    """Makes one part of the training take time."""

    def __init__(self, clock: Clock, event: str):
        setattr(self, event, lambda *args, **kwargs: clock.sleep(0.02))


@pytest.mark.parametrize(("part", "times"), [(DATA, 12), (OPTIMIZER, 12), (EVALUATION, 2), (SAVING, 2)])
def test_finds_the_slow_part(part: str, times: int, clock: Clock, tmp_path: Path) -> None:
    strategy = "no" if part == DATA else "epoch"  # evaluations would wait for data too
    trainer = build(Trainer, TrainingArguments, tmp_path, eval_strategy=strategy, save_strategy=strategy)
    if part == DATA:
        collate = trainer.data_collator

        def slow_rows(rows: list[Any]) -> Any:
            clock.sleep(0.02)
            return collate(rows)

        trainer.data_collator = slow_rows
    else:
        events = {OPTIMIZER: "on_optimizer_step", EVALUATION: "on_evaluate", SAVING: "on_save"}
        trainer.add_callback(Slow(clock, events[part]))
    with account(trainer) as accounts:
        trainer.train()
    assert accounts.spent[part] == pytest.approx(times * 0.02)
    assert sum(accounts.spent.values()) == pytest.approx(times * 0.02)


class SlowLoss(Optimization):
    name = "slow_loss"
    order = Order.LOSS

    def __init__(self, clock: Clock):
        super().__init__()
        self.clock = clock

    def loss(self, loss: Any, inputs: Any, outputs: Any, scale: Any) -> Any:
        self.clock.sleep(0.02)
        return loss


def test_what_an_optimization_adds_to_the_loss_is_forward(tmp_path: Path, clock: Clock) -> None:
    given = {"callbacks": [SlowLoss(clock)]}
    trainer = build(EfficientTrainer, EfficientTrainingArguments, tmp_path, given=given, measure_seconds=0)
    trainer.train()
    assert trainer.accounts.examples == 96
    assert trainer.accounts.spent["forward"] == pytest.approx(12 * 0.02)


def test_gradient_accumulation(tmp_path: Path) -> None:
    _, accounts = accounted(tmp_path, gradient_accumulation_steps=3)
    assert accounts.examples == 96
    assert min(accounts.shares()[part] for part in ("forward", "backward", "optimizer")) > 0.01


def test_nothing_trained(tmp_path: Path) -> None:
    trainer = build(Trainer, TrainingArguments, tmp_path)
    with account(trainer) as accounts:
        pass
    assert accounts.shares() == accounts.figures() == {}


def test_a_model_whose_operations_cannot_be_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    _, accounts = accounted(tmp_path)
    accounts.batches[()][0].pop("labels")
    with caplog.at_level("WARNING", logger="hf_efficient.accounting"):
        assert "mfu" not in accounts.figures()
    assert "the model's operations could not be counted" in caplog.text


def test_report_and_metrics(tmp_path: Path) -> None:
    options = {"optimizations": {"pruning": {"sparsity": 0.5}}, "measure_seconds": 0.01, "dense_epochs": 1}
    trainer = build(EfficientTrainer, EfficientTrainingArguments, tmp_path, **options)
    output = trainer.train()
    assert 0 < output.metrics["train_mfu"] < 1
    assert output.metrics["train_share_waiting_for_data"] >= 0
    assert set(trainer.report.training) == {"dense", "main"}
    assert "main, time: " in str(trainer.report)
    trainer.report.save(tmp_path / "report")
    assert (tmp_path / "report" / "training.png").stat().st_size > 5000


def test_names_of_metrics() -> None:
    assert as_metrics({"mfu": 0.5, "time": {DATA: 0.25}}) == {"train_mfu": 0.5, "train_share_waiting_for_data": 0.25}


def test_a_starved_training_is_named() -> None:
    (note,) = starved({"first": {"time": {DATA: 0.234}}, "second": {"time": {DATA: 0.02}}, "third": {}})
    assert note.startswith("The training 'first' was waiting for data 23% of its time")


def test_energy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def package(name: str, microjoules: int) -> None:
        (tmp_path / name).mkdir(exist_ok=True)
        (tmp_path / name / "energy_uj").write_text(str(microjoules))
        (tmp_path / name / "max_energy_range_uj").write_text("10000000")

    monkeypatch.setattr(energy, "POWERCAP", tmp_path)
    assert EnergyMeter().joules() is None
    for name, value in (("intel-rapl:0", 1_000_000), ("intel-rapl:1", 9_000_000), ("intel-rapl:0:0", 0)):
        package(name, value)
    meter = EnergyMeter()
    package("intel-rapl:0", 3_000_000)
    package("intel-rapl:1", 500_000)  # it passed its greatest reading
    package("intel-rapl:0:0", 5_000_000)  # a part of the first
    assert meter.joules() == pytest.approx(2 + 1.5)

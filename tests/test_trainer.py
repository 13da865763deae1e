"""What EfficientMixin adds: hooks, phases, checkpoints, and refusals that say what to do."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import Trainer, TrainingArguments

from hf_efficient import (
    ConfigError,
    ConflictError,
    EfficientMixin,
    EfficientSeq2SeqTrainer,
    EfficientTrainer,
    EfficientTrainingArguments,
    Optimization,
    Order,
    StructuredPruning,
    efficient,
)
from hf_efficient.batches import BatchMixin
from hf_efficient.communication import CommunicationMixin
from hf_efficient.optimization import EFFICIENT_METHODS
from hf_efficient.saving import SavingMixin
from hf_efficient.splitting import SplittingMixin
from tests.test_parity import Own, build, train, without_clock
from tests.tiny import Examples

CUT = {"structured_pruning": {"keep_layers": 2, "calibration_batches": 2}}


@dataclass(eq=False, kw_only=True)
class Doubled(Optimization):
    """Adds the mean loss once more."""

    name = "doubled"
    order = Order.LOSS

    def loss(self, loss: Any, inputs: Any, outputs: Any, scale: Any) -> Any:
        return loss + scale * torch.nn.functional.cross_entropy(outputs.logits, inputs["labels"])


@dataclass(eq=False, kw_only=True)
class Traced(Optimization):
    """Writes down which of its methods run, and on what."""

    name = "traced"
    order = Order.STRUCTURE
    conflicts = frozenset({"doubled"})

    def __post_init__(self) -> None:
        self.trace: list[str] = []

    def check(self, context: Any) -> None:
        self.trace.append("check")

    def configure(self, args: Any) -> Any:
        self.trace.append("configure")
        return args

    def prepare_data(self, dataset: Any) -> Any:
        self.trace.append("prepare_data")
        return Examples(dataset.examples[:16])

    def prepare_model(self, model: Any, context: Any) -> Any:
        self.trace.append(f"prepare_model {context.folder.name}")
        return model

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        super().on_train_begin(args, state, control, **kwargs)
        self.trace.append(f"on_train_begin {state.max_steps} steps")

    def finalize(self, model: Any) -> Any:
        self.trace.append("finalize")
        torch.nn.init.constant_(model.classifier.bias, 7.0)
        return model


def trainer(folder: Path, given: Any = None, **changes: Any) -> Any:
    changes = {"measure_seconds": 0, **changes}
    return build(EfficientTrainer, EfficientTrainingArguments, folder, given=given, **changes)


class TestHooks:
    def test_run_in_the_documented_order(self, tmp_path: Path) -> None:
        traced = Traced()
        trainer(tmp_path / "out", {"callbacks": [traced]}).train()
        assert traced.trace == [
            "check",
            "configure",
            "prepare_data",
            "prepare_model out",
            "on_train_begin 4 steps",
            "finalize",
        ]

    def test_wait_for_the_dense_phase(self, tmp_path: Path) -> None:
        traced = Traced()
        trainer(tmp_path / "out", {"callbacks": [traced]}, dense_epochs=1).train()
        assert traced.trace.count("finalize") == 1
        assert [event for event in traced.trace if "on_train_begin" in event] == ["on_train_begin 4 steps"]

    def test_finalized_model_is_evaluated_and_saved(self, tmp_path: Path) -> None:
        one = trainer(tmp_path, {"callbacks": [Traced()]})
        one.train()
        assert "eval_loss" in one.state.log_history[-1]
        assert one.finished == tmp_path / "final"
        loaded = type(one.model).from_pretrained(one.finished)
        assert (loaded.classifier.bias == 7).all()

    def test_what_only_undoes_how_it_trained_is_not_evaluated(self, tmp_path: Path) -> None:
        one = trainer(tmp_path, optimizations={"attention": {"implementation": "eager"}})
        one.train()
        assert not any("eval_loss" in entry for entry in one.state.log_history)

    @pytest.mark.parametrize("accumulate", [1, 3])
    def test_loss_scale_follows_accumulation(self, tmp_path: Path, accumulate: int) -> None:
        """Adding the mean loss once more must double the gradient, however the batch is cut up."""
        plain = trainer(tmp_path / "plain", gradient_accumulation_steps=accumulate, max_steps=2, max_grad_norm=0.0)
        doubled = trainer(
            tmp_path / "doubled",
            {"callbacks": [Doubled]},
            gradient_accumulation_steps=accumulate,
            max_steps=2,
            max_grad_norm=0.0,
        )
        train(plain, doubled)
        ratio = doubled.state.log_history[0]["grad_norm"] / plain.state.log_history[0]["grad_norm"]
        assert ratio == pytest.approx(2, rel=1e-4)

    def test_evaluation_loss_is_not_changed(self, tmp_path: Path) -> None:
        plain, doubled = trainer(tmp_path / "a"), trainer(tmp_path / "b", {"callbacks": [Doubled]})
        assert without_clock(plain.evaluate()) == without_clock(doubled.evaluate())

    @pytest.mark.parametrize("style", ["subclass of ours", "efficient(subclass of stock)"])
    def test_users_subclass_keeps_its_effect(self, tmp_path: Path, style: str) -> None:
        """The user's loss (three times the model's) is used, and the optimization adds to it, once."""
        ours = style == "subclass of ours"
        cls: Any = type("Mine", (Own, EfficientTrainer), {}) if ours else efficient(type("Mine", (Own, Trainer), {}))
        options: dict[str, Any] = {"eval_strategy": "epoch", "measure_seconds": 0, "max_grad_norm": 0.0}
        logs = []
        for folder, callbacks in (("plain", []), ("doubled", [Doubled])):
            one = build(cls, EfficientTrainingArguments, tmp_path / folder, given={"callbacks": callbacks}, **options)
            train(one)
            logs.append(one.state.log_history[0])
        assert logs[1]["loss"] / logs[0]["loss"] == pytest.approx(4 / 3, rel=1e-4)
        assert set(one.trace) == {name for name in vars(Own) if not name.startswith("_") and name != "trace"}


class TestSettings:
    def test_from_arguments_and_callbacks_together(self, tmp_path: Path) -> None:
        one = trainer(tmp_path, {"callbacks": [Doubled()]}, optimizations=CUT)
        assert sorted(optimization.name for optimization in one.optimizations) == ["doubled", "structured_pruning"]

    def test_plain_training_arguments_with_callbacks(self, tmp_path: Path) -> None:
        given = {"callbacks": [StructuredPruning(keep_layers=[0, 2])]}
        one = build(EfficientTrainer, TrainingArguments, tmp_path, given=given)
        one.train()
        assert one.model.config.num_hidden_layers == 2

    def test_added_later(self, tmp_path: Path) -> None:
        one = trainer(tmp_path)
        one.add_callback(StructuredPruning(keep_layers=[0, 2]))
        one.train()
        assert one.model.config.num_hidden_layers == 2

    def test_added_too_late(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match="callbacks="):
            trainer(tmp_path).add_callback(Traced())

    def test_removed_again(self, tmp_path: Path) -> None:
        one = trainer(tmp_path, optimizations=CUT)
        one.remove_callback(StructuredPruning)
        one.train()
        assert one.model.config.num_hidden_layers == 3

    def test_twice(self, tmp_path: Path) -> None:
        with pytest.raises(ConflictError, match="structured_pruning is given twice"):
            trainer(tmp_path, {"callbacks": [StructuredPruning(keep_layers=2)]}, optimizations=CUT)

    def test_conflict(self, tmp_path: Path) -> None:
        with pytest.raises(ConflictError, match="traced and doubled cannot run together"):
            trainer(tmp_path, {"callbacks": [Doubled, Traced]})

    def test_unknown_name_and_key(self) -> None:
        with pytest.raises(ConfigError, match="did you mean 'structured_pruning'"):
            EfficientTrainingArguments("out", optimizations={"structered_pruning": {}})
        with pytest.raises(
            ConfigError, match=r"structured_pruning: unknown key 'keep_layer'; did you mean 'keep_layers'"
        ):
            EfficientTrainingArguments("out", optimizations={"structured_pruning": {"keep_layer": 2}})

    def test_instances_do_not_go_into_arguments(self) -> None:
        with pytest.raises(ConfigError, match="callbacks="):
            EfficientTrainingArguments("out", optimizations={"structured_pruning": StructuredPruning()})

    @pytest.mark.parametrize("field", ["dense_epochs", "measure_seconds"])
    def test_negative(self, field: str) -> None:
        with pytest.raises(ConfigError, match=field):
            EfficientTrainingArguments("out", **{field: -1})

    def test_not_a_mapping(self) -> None:
        with pytest.raises(ConfigError, match="mapping"):
            EfficientTrainingArguments("out", optimizations="precision")


class TestSharding:
    @pytest.mark.skipif(torch.accelerator.is_available(), reason="Accelerate shards there")
    def test_on_cpus_is_refused(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Stock falls back to whole copies without a word; `accelerate launch --use_fsdp` asks in this way."""
        monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
        with pytest.raises(ConfigError, match=r"would, without a word, train a whole copy .* drop fsdp"):
            trainer(tmp_path, optimizations=CUT)
        assert not build(EfficientTrainer, EfficientTrainingArguments, tmp_path).is_fsdp_enabled


class TestStockTrainer:
    def test_refuses_what_it_cannot_run(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match="EfficientTrainer"):
            build(Trainer, TrainingArguments, tmp_path, given={"callbacks": [Traced()]})

    def test_refuses_when_added_later(self, tmp_path: Path) -> None:
        one = build(Trainer, TrainingArguments, tmp_path)
        one.add_callback(Doubled())
        with pytest.raises(ConfigError, match="EfficientTrainer"):
            one.train()

    def test_runs_what_only_uses_stock_events(self, tmp_path: Path) -> None:
        @dataclass(eq=False, kw_only=True)
        class Counting(Optimization):
            name = "counting"
            order = Order.DATA
            steps = 0

            def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
                self.steps += 1

        counting = Counting()
        build(Trainer, TrainingArguments, tmp_path, given={"callbacks": [counting]}).train()
        assert counting.steps == 12

    def test_has_all_hooks_listed(self) -> None:
        own = {name for name in vars(Optimization) if not name.startswith(("_", "on_"))}
        told = {
            "describe",
            "attach",
            "proposals",
            "cheaper",
            "conflicts",
            "decides_by_training",
            "milder",
            "needs_first_weights",
            "needs_original",
            "stage_settings",
            "whole_weights",
            "gathers_weights",
        }
        passive = {"check", "reset", "state_dict", "load_state_dict", *told}
        assert set(EFFICIENT_METHODS) == own - passive


class TestEfficient:
    def test_puts_the_mixin_in_front(self) -> None:
        class Mine(Trainer):
            """My trainer."""

        cls = efficient(Mine)
        assert (cls.__mro__[1], cls.__mro__[6]) == (EfficientMixin, Mine)
        assert set(cls.__mro__[2:6]) == {SavingMixin, CommunicationMixin, SplittingMixin, BatchMixin}
        assert cls.__name__ == "EfficientMine"
        assert efficient(Mine) is cls
        assert efficient(cls) is cls
        assert efficient(EfficientSeq2SeqTrainer) is EfficientSeq2SeqTrainer

    def test_refuses_other_classes(self) -> None:
        with pytest.raises(ConfigError, match=r"transformers\.Trainer"):
            efficient(dict)

"""Phases: dense fine-tuning first, the optimizations after; resuming skips what is finished."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForSequenceClassification, Trainer, TrainerCallback, TrainingArguments

from hf_efficient import ConfigError, Optimization, Order
from tests.test_contract import StopMain
from tests.test_parity import assert_same_tensors, build, train
from tests.test_trainer import CUT, trainer
from tests.tiny import text_model


class TestDensePhase:
    def test_two_phases(self, tmp_path: Path) -> None:
        one = trainer(tmp_path, optimizations=CUT, dense_epochs=6)
        output = one.train()
        assert output.metrics["dense_epoch"] == 6
        assert output.metrics["epoch"] == 2
        assert one.args.output_dir == str(tmp_path)
        assert one.args.num_train_epochs == 2
        dense = type(one.model).from_pretrained(tmp_path / "dense" / "final")
        assert dense.config.num_hidden_layers == 3
        assert json.loads((tmp_path / "decisions" / "structured_pruning.json").read_text())["shape"]

    @pytest.mark.parametrize("where", ["dense/checkpoint-4", "dense/checkpoint-36", "checkpoint-8", "newest"])
    def test_resumes_in_the_interrupted_phase(self, tmp_path: Path, where: str) -> None:
        options = {"optimizations": CUT, "dense_epochs": 6, "seed": 3}
        whole = trainer(tmp_path / "whole", **options)
        train(whole)
        resumed = trainer(tmp_path / "whole", **options)
        path = True if where == "newest" else str(tmp_path / "whole" / where)
        train(resumed, resume_from_checkpoint=path)
        assert_same_tensors(dict(whole.model.state_dict()), dict(resumed.model.state_dict()))

    def test_resumes_between_the_phases(self, tmp_path: Path) -> None:
        """Killed after the layers were chosen and before the first checkpoint of the main phase."""

        class Killed(TrainerCallback):
            def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
                if not args.output_dir.endswith("dense"):
                    raise KeyboardInterrupt

        options = {"optimizations": CUT, "dense_epochs": 6}
        whole = trainer(tmp_path / "whole", **options)
        train(whole)
        with pytest.raises(KeyboardInterrupt):
            train(trainer(tmp_path / "killed", {"callbacks": [Killed]}, **options))
        decision = tmp_path / "killed" / "decisions" / "structured_pruning.json"
        chosen = decision.read_text()
        resumed = trainer(tmp_path / "killed", **options)
        train(resumed, resume_from_checkpoint=True)
        assert decision.read_text() == chosen
        assert_same_tensors(dict(whole.model.state_dict()), dict(resumed.model.state_dict()))

    def test_with_model_init(self, tmp_path: Path) -> None:
        plain = trainer(tmp_path / "plain", optimizations=CUT, dense_epochs=6)
        fresh = trainer(tmp_path / "init", {"model_init": lambda: text_model()}, optimizations=CUT, dense_epochs=6)
        for _ in range(2):  # a second train() starts from a new model again
            fresh.train()
            assert fresh.model.config.num_hidden_layers == 2
            assert fresh.model_init is not None
        plain.train()
        assert plain.model.state_dict().keys() == fresh.model.state_dict().keys()

    def test_hyperparameter_search_with_optimizations(self, tmp_path: Path) -> None:
        optuna = pytest.importorskip("optuna")
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        one = trainer(
            tmp_path, {"model_init": lambda: text_model()}, optimizations=CUT, dense_epochs=6, eval_strategy="epoch"
        )
        best = one.hyperparameter_search(
            lambda trial: {"learning_rate": trial.suggest_float("learning_rate", 4e-3, 6e-3)}, n_trials=2
        )
        assert best.run_id in ("0", "1")
        for number in (0, 1):
            dense, cut = (
                AutoModelForSequenceClassification.from_pretrained(folder / f"run-{number}" / "final")
                for folder in (tmp_path / "dense", tmp_path)
            )
            assert (dense.config.num_hidden_layers, cut.config.num_hidden_layers) == (3, 2)

    def test_best_model_of_each_phase(self, tmp_path: Path) -> None:
        options = {"eval_strategy": "epoch", "save_strategy": "epoch", "load_best_model_at_end": True}
        one = trainer(tmp_path, optimizations=CUT, dense_epochs=6, **options)
        one.train()
        best = min(log["eval_loss"] for log in one.state.log_history if "eval_loss" in log)
        assert one.evaluate()["eval_loss"] == pytest.approx(best)

    def test_bf16_leaves_a_plain_model(self, tmp_path: Path) -> None:
        one = trainer(tmp_path, optimizations={**CUT, "precision": {"dtype": "bf16"}}, dense_epochs=6)
        one.train()
        assert one.model.dtype == torch.float32
        assert "forward" not in vars(one.model)

    def test_needs_something_to_do_afterwards(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match="num_train_epochs"):
            trainer(tmp_path, dense_epochs=1).train()

    def test_cannot_restart_a_given_optimizer(self, tmp_path: Path) -> None:
        model = text_model()
        given = {"model": model, "optimizers": (torch.optim.SGD(model.parameters(), lr=0.1), None)}
        with pytest.raises(ConfigError, match="optimizer_cls_and_kwargs"):
            trainer(tmp_path, given, optimizations=CUT, dense_epochs=1).train()


class TestResume:
    def test_without_the_optimization_is_refused(self, tmp_path: Path) -> None:
        train(trainer(tmp_path, {"callbacks": [StopMain]}, optimizations=CUT, dense_epochs=6))
        with pytest.raises(ConfigError, match="structured_pruning"):
            trainer(tmp_path).train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))

    def test_of_a_stock_checkpoint_with_a_cut_is_refused(self, tmp_path: Path) -> None:
        build(Trainer, TrainingArguments, tmp_path).train()
        with pytest.raises(ConfigError, match="from_pretrained"):
            trainer(tmp_path, optimizations=CUT).train(resume_from_checkpoint=True)

    def test_of_a_checkpoint_of_other_optimizations_is_refused(self, tmp_path: Path) -> None:
        precision = {"precision": {"dtype": "bf16"}}
        trainer(tmp_path, optimizations=precision).train()
        with pytest.raises(ConfigError, match="was written without structured_pruning"):
            trainer(tmp_path, optimizations={**precision, **CUT}).train(resume_from_checkpoint=True)

    def test_without_any_checkpoint(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match=r"no whole checkpoint .* with 'auto'"):
            trainer(tmp_path, optimizations=CUT).train(resume_from_checkpoint=True)

    def test_after_reload_of_the_cut_model(self, tmp_path: Path) -> None:
        """The model given on resume may be the cut one already."""
        whole = trainer(tmp_path, optimizations=CUT, dense_epochs=6)
        train(whole)
        model = type(whole.model).from_pretrained(tmp_path / "checkpoint-8")
        resumed = trainer(tmp_path, {"model": model}, optimizations=CUT, dense_epochs=6)
        train(resumed, resume_from_checkpoint=str(tmp_path / "checkpoint-8"))
        assert_same_tensors(dict(whole.model.state_dict()), dict(resumed.model.state_dict()))


def test_unfit_optimizer_is_refused(tmp_path: Path) -> None:
    @dataclass(eq=False, kw_only=True)
    class Regrown(Optimization):
        name = "regrown"
        order = Order.STRUCTURE

        def prepare_model(self, model: Any, context: Any) -> Any:
            model.classifier = torch.nn.Linear(16, 2)
            return model

    model = text_model()
    given = {
        "model": model,
        "optimizers": (torch.optim.SGD(model.parameters(), lr=0.1), None),
        "callbacks": [Regrown()],
    }
    with pytest.raises(ConfigError, match=r"classifier\.weight.*optimizer_cls_and_kwargs"):
        trainer(tmp_path, given).train()

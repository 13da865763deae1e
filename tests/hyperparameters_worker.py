"""The search that `tests/test_hyperparameters.py` runs on two processes: one trial of it is pruned, another fails."""

import json
import os
import sys
from pathlib import Path
from typing import Any

import optuna
import transformers
from transformers import TrainerCallback

from hf_efficient import EfficientTrainer, EfficientTrainingArguments
from tests.test_parity import build
from tests.tiny import text_model

PRUNED, FAILED, LAST = 0, 1, 3


class Prune(optuna.pruners.BasePruner):
    """Prunes the first trial, and ends the search with the last, whatever `n_trials` says."""

    def prune(self, study: optuna.Study, trial: optuna.trial.FrozenTrial) -> bool:
        if trial.number == LAST:
            study.stop()
        return trial.number == PRUNED


class Events(TrainerCallback):
    """Writes down what each trial is told; makes one fail."""

    def __init__(self) -> None:
        self.trials: list[dict[str, Any]] = []

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        layers = model.config.num_hidden_layers
        self.trials.append({"name": state.trial_name, "parameters": dict(state.trial_params), "layers": layers})

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.trial_name == f"trial-{FAILED}":
            raise ZeroDivisionError

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.trials[-1]["end"] = state.global_step


def model_init(trial: Any) -> Any:
    return text_model(num_hidden_layers=1 if trial is None else trial.suggest_int("layers", 1, 3))


def run(folder: Path, rank: int) -> None:
    events = Events()
    trainer = build(
        EfficientTrainer,
        EfficientTrainingArguments,
        folder / "out",
        given={"model_init": model_init, "callbacks": [events]},
        eval_strategy="epoch",
        save_strategy="epoch",
    )
    best = trainer.hyperparameter_search(
        lambda trial: {"learning_rate": trial.suggest_float("learning_rate", 1e-4, 1e-2, log=True)},
        n_trials=50,
        backend="optuna",
        hp_name=lambda trial: f"trial-{trial.number}",
        sampler=optuna.samplers.RandomSampler(seed=0),
        pruner=Prune(),
        catch=(ZeroDivisionError,),
    )
    result = {"best": [best.run_id, best.objective, best.hyperparameters], "trials": events.trials}
    (folder / f"rank{rank}.json").write_text(json.dumps(result))


if __name__ == "__main__":
    transformers.logging.set_verbosity_error()
    run(Path(sys.argv[1]), int(os.environ["RANK"]))

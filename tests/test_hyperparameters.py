"""Searches: equal to stock, one trial leaves nothing to the next, and two processes leave a pruned trial together."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import Trainer, TrainerCallback, TrainingArguments

from hf_efficient import ConfigError, EfficientTrainer, EfficientTrainingArguments, Optimization, Order
from tests.test_distributed import on_two_processes
from tests.test_parity import build
from tests.tiny import text_model

optuna = pytest.importorskip("optuna")
optuna.logging.set_verbosity(optuna.logging.ERROR)

WORKER_TIMEOUT_S = 300
"""Of two processes that start, on a busy machine."""
SHORT = {"num_train_epochs": 1, "eval_strategy": "steps", "eval_steps": 3, "save_strategy": "no"}

CUT = {"structured_pruning": {"keep_layers": 2, "repair": False}}


def trainer(folder: Path, given: Any = None, **changes: Any) -> Any:
    given = {"model_init": lambda: text_model(), **(given or {})}
    options = {**SHORT, "measure_seconds": 0, **changes}
    return build(EfficientTrainer, EfficientTrainingArguments, folder, given=given, **options)


def learning_rate(trial: Any) -> dict[str, Any]:
    return {"learning_rate": trial.suggest_float("learning_rate", 1e-4, 1e-2, log=True)}


def listed(**values: list[Any]) -> Callable[[Any], dict[str, Any]]:
    """A space in which trial n has the nth of ``values``, or none of it where that is None."""
    return lambda trial: {
        key.replace("__", "."): list_[trial.number] for key, list_ in values.items() if list_[trial.number] is not None
    }


class Pruner(optuna.pruners.BasePruner):
    """Prunes the trials of these numbers, at the first evaluation from step ``after`` on."""

    def __init__(self, *numbers: int, after: int = 0):
        self.numbers, self.after = numbers, after

    def prune(self, study: Any, trial: Any) -> bool:
        return trial.number in self.numbers and trial.last_step >= self.after


class Watch(TrainerCallback):
    """Writes down what trainings are told, and fails in that of ``fails``."""

    def __init__(self, fails: int | None = None) -> None:
        self.events: list[Any] = []
        self.args: list[Any] = []
        self.optimizers: list[Any] = []
        self.fails = fails

    def on_train_begin(self, args: Any, state: Any, control: Any, optimizer: Any = None, **kwargs: Any) -> None:
        self.events.append("begin")
        self.args.append({"weight_decay": args.weight_decay, "steps": state.max_steps})
        self.optimizers.append((type(optimizer.optimizer), optimizer.param_groups[0]["lr"]))

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if len(self.args) - 1 == self.fails:
            raise ZeroDivisionError

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.events.append(state.global_step)


def model_of_trial(trial: Any) -> Any:
    return text_model(num_hidden_layers=1 if trial is None else trial.suggest_int("layers", 1, 3))


def space(trial: Any) -> dict[str, Any]:
    """Also of what stock sets too late for the trial's own model, and of what is no training argument."""
    return {
        **learning_rate(trial),
        "seed": trial.suggest_int("seed", 1, 40),
        "per_device_train_batch_size": trial.suggest_categorical("per_device_train_batch_size", [8, 16]),
        "for_the_model": trial.suggest_float("for_the_model", 0, 1),
    }


def objectives(metrics: dict[str, float]) -> list[float]:
    return [metrics["eval_loss"], -metrics["eval_loss"]]


@pytest.mark.parametrize("several", [False, True], ids=["one objective", "two objectives"])
def test_equals_stock(tmp_path: Path, several: bool) -> None:
    options = {"compute_objective": objectives, "direction": ["minimize", "maximize"]} if several else {}
    results = []
    for cls, args in ((Trainer, TrainingArguments), (EfficientTrainer, EfficientTrainingArguments)):
        storage = optuna.storages.InMemoryStorage()
        one = build(cls, args, tmp_path / cls.__name__, given={"model_init": model_of_trial}, **SHORT)
        best = one.hyperparameter_search(
            space,
            n_trials=4,
            backend="optuna",
            sampler=optuna.samplers.TPESampler(seed=0, n_startup_trials=2),
            pruner=Pruner(1),
            storage=storage,
            study_name="study",
            **options,
        )
        trials = optuna.load_study(study_name="study", storage=storage).trials
        results.append((best, [(t.state.name, t.values, t.params, t.intermediate_values) for t in trials]))
    assert results[0] == results[1]
    assert [state for state, *_ in results[0][1]].count("PRUNED") == (0 if several else 1)


def test_two_processes_leave_a_pruned_trial_together(tmp_path: Path) -> None:
    """Stock (transformers 5.24) does not get through this search. The other process fails in `model_init`, whose
    suggestion the trial that it was sent does not hold. With a `model_init` that asks for none, it hangs: only the main
    process leaves the pruned trial, and waits for the other to take the next one, while that waits for gradients of the
    pruned one. Without pruning, the other fails at the end, since it expects `n_trials` trials."""
    on_two_processes("tests.hyperparameters_worker", tmp_path, timeout_s=WORKER_TIMEOUT_S)
    main, other = (json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in (0, 1))
    assert main == other
    trials = main["trials"]
    assert [trial["name"] for trial in trials] == [f"trial-{number}" for number in range(4)]
    assert [trial["end"] for trial in trials] == [3, 1, 6, 6]
    assert [trial["parameters"]["layers"] for trial in trials] == [trial["layers"] for trial in trials]
    assert len({trial["parameters"]["learning_rate"] for trial in trials}) == 4
    number = main["best"][0]
    assert number in ("2", "3")
    assert [path.name for path in (tmp_path / "out").iterdir()] == [f"trial-{number}"]


class TestTrials:
    def test_callbacks_hear_the_end_of_each(self, tmp_path: Path) -> None:
        watch = Watch(fails=1)
        one = trainer(tmp_path, {"callbacks": [watch]})
        best = one.hyperparameter_search(learning_rate, n_trials=3, pruner=Pruner(0), catch=ZeroDivisionError)
        assert best.run_id == "2"
        assert watch.events == ["begin", 3, "begin", 1, "begin", 6]
        assert not one.is_in_train
        assert one.hp_search_backend is None

    def test_the_last_one_pruned_leaves_no_model(self, tmp_path: Path) -> None:
        one = trainer(tmp_path)
        one.hyperparameter_search(learning_rate, n_trials=2, pruner=Pruner(1))
        assert (one.model, one.model_wrapped, one.optimizer, one.is_in_train) == (None, None, None, False)
        one.train()
        assert one.state.global_step == 6

    def test_start_without_what_an_earlier_one_set(self, tmp_path: Path) -> None:
        watch = Watch()
        one = trainer(tmp_path, {"callbacks": [watch]}, weight_decay=0.01)
        one.hyperparameter_search(listed(weight_decay=[0.5, None], learning_rate=[1e-3, 1e-3]), n_trials=2)
        assert [args["weight_decay"] for args in watch.args] == [0.5, 0.01]

    def test_only_the_best_keeps_its_checkpoints(self, tmp_path: Path) -> None:
        earlier = tmp_path / "run-1" / "checkpoint-9"
        earlier.mkdir(parents=True)  # of another search: it stays
        one = trainer(tmp_path, save_strategy="steps", save_steps=3, load_best_model_at_end=True)
        best = one.hyperparameter_search(listed(learning_rate=[5e-3, 5e-3, 0.0]), n_trials=3, pruner=Pruner(0, after=6))
        assert best.run_id == "1"
        left = {str(path.relative_to(tmp_path)) for path in tmp_path.glob("*/*")}
        assert left == {"run-1/checkpoint-3", "run-1/checkpoint-6", "run-1/checkpoint-9"}
        assert one.state.best_model_checkpoint is None

    def test_of_one_name_do_not_lose_the_best_one(self, tmp_path: Path) -> None:
        one = trainer(tmp_path, save_strategy="steps", save_steps=6)
        one.hyperparameter_search(listed(learning_rate=[5e-3, 0.0]), n_trials=2, hp_name=lambda trial: "same")
        assert (tmp_path / "same" / "checkpoint-6").is_dir()


class TestOptimizers:
    def test_class_gets_the_learning_rate(self, tmp_path: Path) -> None:
        """Stock trains each trial with the class's own: it finds that the learning rate has no influence."""
        watch = Watch()
        given = {"callbacks": [watch], "optimizer_cls_and_kwargs": (torch.optim.SGD, {"lr": 0.5})}
        one = trainer(tmp_path, given, lr_scheduler_type="constant")
        one.hyperparameter_search(listed(learning_rate=[0.1, None, 0.2]), n_trials=3)
        assert watch.optimizers == [(torch.optim.SGD, 0.1), (torch.optim.SGD, 0.5), (torch.optim.SGD, 0.2)]
        assert one.optimizer_cls_and_kwargs == (torch.optim.SGD, {"lr": 0.5})

    def test_functions_make_them_for_each_trial(self, tmp_path: Path) -> None:
        """Stock refuses `optimizers=` beside `model_init`, and never calls the method that it says to override."""
        made = []

        def make_optimizer(model: Any, args: Any) -> torch.optim.Optimizer:
            made.append(model)
            return torch.optim.SGD(model.parameters(), lr=args.learning_rate)

        def make_scheduler(optimizer: Any, args: Any, steps: int) -> Any:
            return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 if step == 0 else steps)

        watch = Watch()
        one = trainer(tmp_path, {"callbacks": [watch], "optimizers": (make_optimizer, make_scheduler)})
        one.hyperparameter_search(listed(learning_rate=[0.1, 0.01]), n_trials=2)
        assert watch.optimizers == [(torch.optim.SGD, 0.1), (torch.optim.SGD, 0.01)]
        assert len({id(model) for model in made}) == 2
        assert one.state.log_history[1]["learning_rate"] == pytest.approx(0.06)

    def test_function_makes_a_schedule_for_each_training(self, tmp_path: Path) -> None:
        lengths = []

        def make_scheduler(optimizer: Any, args: Any, steps: int) -> Any:
            lengths.append(steps)
            return torch.optim.lr_scheduler.ConstantLR(optimizer)

        one = build(EfficientTrainer, TrainingArguments, tmp_path, given={"optimizers": (None, make_scheduler)})
        for epochs in (1, 2):
            one.args.num_train_epochs = epochs
            one.train()
        assert lengths == [6, 12]

    def test_functions_make_them_for_the_changed_model(self, tmp_path: Path) -> None:
        given = {"optimizers": (lambda model, args: torch.optim.Adam(model.parameters(), lr=5e-3), None)}
        one = trainer(tmp_path, given, optimizations=CUT, dense_epochs=6)
        one.train()
        held = {id(parameter) for group in one.optimizer.param_groups for parameter in group["params"]}
        assert held == {id(parameter) for parameter in one.model.parameters()}

    def test_object_beside_model_init_is_refused(self, tmp_path: Path) -> None:
        given = {"optimizers": (torch.optim.SGD(text_model().parameters(), lr=0.1), None)}
        with pytest.raises(ConfigError, match=r"SGD belongs to one model.*make_optimizer\(model, args\)"):
            trainer(tmp_path, given)


@dataclass(eq=False, kw_only=True)
class Blank(Optimization):
    """Leaves a model that cannot tell two classes apart."""

    name = "blank"
    order = Order.QUANTIZATION

    def finalize(self, model: Any) -> Any:
        torch.nn.init.zeros_(model.classifier.weight)
        torch.nn.init.zeros_(model.classifier.bias)
        return model


class TestOptimizations:
    def test_settings_are_hyperparameters(self, tmp_path: Path) -> None:
        watch = Watch()
        one = trainer(tmp_path, {"callbacks": [watch]}, optimizations=CUT, dense_epochs=6)
        values = {
            "optimizations__structured_pruning__keep_layers": [1, None, 1],
            "num_train_epochs": [2, 1, 1],
            "dense_epochs": [7, 8, None],
        }
        one.hyperparameter_search(listed(**values), n_trials=3)
        shapes = [json.loads((tmp_path / f"run-{n}" / "final" / "config.json").read_text()) for n in range(3)]
        assert [shape["num_hidden_layers"] for shape in shapes] == [1, 2, 1]
        # the dense phase and the one after it, of each trial
        assert [args["steps"] for args in watch.args] == [42, 12, 48, 6, 36, 6]

    def test_seed_of_a_trial_makes_its_model(self, tmp_path: Path) -> None:
        seeds = []
        one = trainer(tmp_path, {"model_init": lambda: seeds.append(torch.initial_seed()) or text_model()})
        one.add_callback(Blank())
        seeds.clear()
        one.hyperparameter_search(listed(seed=[11, 22]), n_trials=2)
        assert seeds == [11, 22]

    def test_objective_is_the_finished_models(self, tmp_path: Path) -> None:
        one = trainer(tmp_path, {"callbacks": [Blank]})
        best = one.hyperparameter_search(learning_rate, n_trials=1)
        assert best.objective == pytest.approx(torch.tensor(2.0).log().item(), abs=1e-5)


REFUSED: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "unknown name": (
        "unknown hyperparameter 'learning_rat'; did you mean 'learning_rate'.*model_init",
        {},
        {"hp_space": listed(learning_rat=[1e-3])},
    ),
    "unknown optimization": (
        "unknown optimization 'structured_prunin'; did you mean 'structured_pruning'",
        {"optimizations": CUT},
        {"hp_space": listed(optimizations__structured_prunin__keep_layers=[1])},
    ),
    "unknown setting": (
        "optimizations.structured_pruning: unknown key 'keep_layer'; did you mean 'keep_layers'",
        {"optimizations": CUT},
        {"hp_space": listed(optimizations__structured_pruning__keep_layer=[1])},
    ),
    "set up once": (
        "optimizations.precision cannot change between trials",
        {"optimizations": {"precision": {"dtype": "bf16"}}},
        {"hp_space": listed(optimizations__precision__dtype=["fp32"])},
    ),
    "no mapping": ("hp_space must return a mapping", {}, {"hp_space": lambda trial: None}),
    "several jobs": ("n_jobs=2.*storage=", {}, {"n_jobs": 2}),
    "nothing finished": ("no trial of the search finished", {}, {"hp_space": learning_rate, "pruner": Pruner(0)}),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(tmp_path: Path, case: str) -> None:
    message, arguments, options = REFUSED[case]
    one = trainer(tmp_path, **arguments)
    with pytest.raises(ConfigError, match=message):
        one.hyperparameter_search(n_trials=1, **options)
    assert one.hp_search_backend is None


def test_other_backends_are_stock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Trainer, "hyperparameter_search", lambda self, *given, **options: (given, options))
    given, options = trainer(tmp_path).hyperparameter_search(learning_rate, n_trials=5, backend="ray", n_jobs=2)
    assert given == (learning_rate, None, 5, "minimize", "ray", None)
    assert options == {"n_jobs": 2}


def test_needs_model_init(tmp_path: Path) -> None:
    one = build(EfficientTrainer, EfficientTrainingArguments, tmp_path)
    with pytest.raises(ConfigError, match="model_init="):
        one.hyperparameter_search(learning_rate)
    assert one.hp_search_backend is None

"""`Trainer.hyperparameter_search` by Optuna: stock's results, from trials that leave nothing behind.

Where stock (transformers 5.24) goes wrong: processes of a distributed training hear of each trial, leave a pruned or
failed one together and end together; a trial starts without what an earlier one set; a trial that ends early is told to
the callbacks; of all checkpoints those of the best trial stay.
"""

import contextlib
import shutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import optuna
import torch
from accelerate.utils.memory import release_memory
from transformers import TrainerCallback
from transformers.trainer_utils import (
    PREFIX_CHECKPOINT_DIR,
    BestRun,
    HPSearchBackend,
    default_compute_objective,
    default_hp_space_optuna,
    number_of_arguments,
)

from hf_efficient.errors import ConfigError, unknown
from hf_efficient.optimization import Optimization, from_main, overrides
from hf_efficient.plan import Plan
from hf_efficient.settings import parse
from hf_efficient.shared_trial import SharedTrial

PREFIX = "optimizations."
"""Of a hyperparameter that is a setting of an optimization, as ``optimizations.pruning.sparsity``."""


def search(
    trainer: Any,
    space: Callable[[Any], Mapping[str, Any]] | None,
    compute_objective: Callable[[dict[str, float]], Any] | None,
    n_trials: int,
    direction: str | list[str],
    hp_name: Callable[[Any], str] | None,
    options: dict[str, Any],
) -> BestRun | list[BestRun]:
    """What stock `hyperparameter_search` returns with Optuna, on every process.

    As with stock, ``trainer`` has no model afterwards, and the arguments of the last trial.

    Args:
        options: of `optuna.create_study`; and `timeout`, `catch`, `gc_after_trial` of `Study.optimize`.

    Raises:
        ConfigError: no `model_init`, several jobs, a hyperparameter that does not exist, or no trial that finished.
    """
    if trainer.model_init is None:
        raise ConfigError(
            "hyperparameter_search starts each trial from a new model: give the trainer model_init=, a function that "
            "returns one, and no model="
        )
    if (jobs := options.pop("n_jobs", 1)) != 1:
        raise ConfigError(
            f"n_jobs={jobs}: trials share this trainer, so they run one after the other; for trials at the same time "
            "start this search in several programs with one storage=, one study_name= and load_if_exists=True"
        )
    trainer.hp_search_backend, trainer.hp_name = HPSearchBackend.OPTUNA, hp_name
    trainer.hp_space = own_space = Space(trainer, space or default_hp_space_optuna)
    trainer.compute_objective = compute_objective or default_compute_objective
    trials = _Trials(trainer, options.pop("catch", ()))
    trainer.add_callback(trials)
    try:
        if trainer.args.process_index == 0:
            return _lead(trials, n_trials, direction, options)
        return _follow(trials)
    finally:
        trainer.remove_callback(trials)
        own_space.close()
        trainer.hp_search_backend = None


@dataclass(frozen=True)
class _Message:
    """From the main process to the others.

    Attributes:
        best: numbers of the best trials so far.
        number: of the trial that begins; None at the end of the search.
        objectives: of the study.
        result: at the end, what the search returns; None where no trial finished.
    """

    best: set[int]
    number: int | None = None
    objectives: int = 1
    result: Any = None


def _lead(trials: "_Trials", n_trials: int, direction: str | list[str], options: dict[str, Any]) -> Any:
    """The search on the main process, which keeps the study."""
    args = trials.trainer.args
    running = {name: options.pop(name) for name in ("timeout", "gc_after_trial") if name in options}
    options["directions" if isinstance(direction, list) else "direction"] = direction
    study = optuna.create_study(**options)
    objectives = len(study.directions)

    def objective(trial: optuna.Trial) -> Any:
        best = {one.number for one in _best(study)}
        from_main(_Message(best, trial.number, objectives), args)
        trials.keep(best)
        return trials.run(trial if args.world_size == 1 else SharedTrial(trial, trial.number, objectives, args))

    study.optimize(objective, n_trials=n_trials, catch=trials.catch, **running)
    best = _best(study)
    runs = [BestRun(str(one.number), one.values if objectives > 1 else one.values[0], one.params) for one in best]
    return _end(trials, from_main(_Message({one.number for one in best}, result=_result(runs, objectives)), args))


def _follow(trials: "_Trials") -> Any:
    """The search on any other process.

    A trial that fails with what is not in `catch` ends the search here as it does on the main process.
    """
    args = trials.trainer.args
    while (message := from_main(None, args)).number is not None:
        trials.keep(message.best)
        with contextlib.suppress(optuna.TrialPruned, *trials.catch):
            trials.run(SharedTrial(None, message.number, message.objectives, args))
    return _end(trials, message)


def _end(trials: "_Trials", message: _Message) -> Any:
    trials.keep(message.best)
    if message.result is None:
        raise ConfigError(
            "no trial of the search finished: all were pruned or failed; let the pruner wait (n_startup_trials, "
            "n_warmup_steps), or look into the first failure without catch="
        )
    return message.result


def _best(study: optuna.Study) -> list[optuna.trial.FrozenTrial]:
    if len(study.directions) > 1:
        return study.best_trials
    try:
        return [study.best_trial]
    except ValueError:  # none has finished yet
        return []


def _result(runs: list[BestRun], objectives: int) -> BestRun | list[BestRun] | None:
    if not runs:
        return None
    return runs if objectives > 1 else runs[0]


class _Trials(TrainerCallback):
    """Runs one trial after the other, and knows what they wrote."""

    def __init__(self, trainer: Any, catch: Any):
        self.trainer = trainer
        self.catch: tuple[type[Exception], ...] = tuple(catch) if isinstance(catch, Iterable) else (catch,)
        self._trial: Any = None
        self._began = False
        self._written: dict[int, set[Path]] = {}

    def run(self, trial: Any) -> Any:
        """The objective of one trial; afterwards the trainer holds neither model nor optimizer."""
        trainer = self.trainer
        self._trial, self._began, trainer.objective = trial, False, None
        try:
            trainer.train(trial=trial)
            if trainer.objective is None:
                trainer.objective = trainer.compute_objective(trainer.evaluate())
            return trainer.objective
        except self.catch:
            if self._began:  # stock tells callbacks of a pruned trial's end, not of a failed one's
                trainer.control = trainer.callback_handler.on_train_end(trainer.args, trainer.state, trainer.control)
            raise
        finally:
            trainer.is_in_train = False
            trainer.optimizer, trainer.lr_scheduler = None, None
            trainer.model_wrapped, trainer.model = release_memory(trainer.model_wrapped, trainer.model)
            trainer.accelerator.clear()

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._began = True

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._began = False

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        folder = Path(self.trainer._get_output_dir(self._trial))
        written = self._written.setdefault(self._trial.number, set())
        written.add(folder / f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}")

    def keep(self, best: set[int]) -> None:
        """Remove the checkpoints of all trials of this search but the ``best``; folders that get empty go too."""
        kept: set[Path] = set().union(*(self._written.get(number, ()) for number in best))
        for number in self._written.keys() - best:
            for checkpoint in self._written.pop(number) - kept:  # `hp_name` may give two trials one folder
                if self.trainer.args.should_save:
                    shutil.rmtree(checkpoint, ignore_errors=True)
                    with contextlib.suppress(OSError):
                        checkpoint.parent.rmdir()
                if self.trainer.state.best_model_checkpoint == str(checkpoint):
                    self.trainer.state.best_model_checkpoint = None


class Space:
    """The user's search space as stock takes it: a trial to the training arguments that it sets.

    On the way it checks names, passes on what are no training arguments, and undoes what an earlier trial set and this
    one does not.
    """

    def __init__(self, trainer: Any, space: Callable[[Any], Mapping[str, Any]]):
        self._trainer, self._space = trainer, space
        self._optimizations = {one.name: one for one in trainer.optimizations}
        self._optimizer = trainer.optimizer_cls_and_kwargs
        self._before: dict[str, Any] = {}

    def __call__(self, trial: Any) -> dict[str, Any]:
        chosen = self._space(trial)
        if not isinstance(chosen, Mapping):
            raise ConfigError(f"hp_space must return a mapping of training arguments to values, got {chosen!r}")
        settings = {key.removeprefix(PREFIX): value for key, value in chosen.items() if key.startswith(PREFIX)}
        plain = {key: value for key, value in chosen.items() if not key.startswith(PREFIX)}
        args = self._trainer.args
        self._check(plain, args)
        for key in self._before.keys() - plain.keys():
            setattr(args, key, self._before[key])
        for key in plain:
            self._before.setdefault(key, getattr(args, key, None))
        self._set_learning_rate(plain)
        self._set_optimizations(settings)
        return plain

    def close(self) -> None:
        """Give the trainer back what it had."""
        self._trainer.hp_space = self._space
        self._trainer.optimizer_cls_and_kwargs = self._optimizer

    def _check(self, plain: dict[str, Any], args: Any) -> None:
        if number_of_arguments(self._trainer.model_init):
            return  # what is no training argument may be for the model; stock warns
        for key in plain:
            if not hasattr(args, key):
                known = [*(field.name for field in fields(args)), *self._settings()]
                raise ConfigError(
                    f"hp_space: {unknown('hyperparameter', key, known)}. For one of the model, let model_init take the "
                    "trial"
                )

    def _settings(self) -> list[str]:
        return [f"{PREFIX}{name}.{field.name}" for name, one in self._optimizations.items() for field in fields(one)]

    def _set_learning_rate(self, plain: dict[str, Any]) -> None:
        """Stock's own optimizers take it from the arguments; to one from the user's class it would be lost."""
        if self._optimizer is None:
            return
        cls, settings = self._optimizer
        if "learning_rate" in plain and isinstance(cls, type) and issubclass(cls, torch.optim.Optimizer):
            settings = {**settings, "lr": plain["learning_rate"]}
        self._trainer.optimizer_cls_and_kwargs = cls, settings

    def _set_optimizations(self, settings: dict[str, Any]) -> None:
        wanted: dict[str, dict[str, Any]] = {}
        for key, value in settings.items():
            name, _, setting = key.partition(".")
            if name not in self._optimizations:
                raise ConfigError(f"hp_space: {unknown('optimization', name, self._optimizations)}; list it to search")
            wanted.setdefault(name, {})[setting] = value
        callbacks = self._trainer.callback_handler.callbacks
        for index, callback in enumerate(callbacks):
            if isinstance(callback, Optimization):
                given = self._optimizations[callback.name]
                callbacks[index] = _with(given, wanted[callback.name]) if callback.name in wanted else given
        if wanted:
            Plan(self._trainer.optimizations).check(self._trainer.context())


def _with(given: Optimization, settings: dict[str, Any]) -> Optimization:
    """Another instance with other ``settings``."""
    if overrides(given, "configure"):
        raise ConfigError(
            f"hp_space: {given.name} is set up once, before Accelerate is, so {PREFIX}{given.name} cannot change "
            "between trials; compare its settings in separate searches"
        )
    before = {field.name: getattr(given, field.name) for field in fields(given) if field.init}  # type: ignore[arg-type]
    made = parse(type(given), {**before, **settings}, f"{PREFIX}{given.name}")
    made.attach()
    return made

"""What the constructor of a trainer gets, after optimizations and autotune have seen it."""

import copy
import functools
import inspect
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from torch import nn
from transformers import Trainer, TrainerCallback
from transformers.trainer_utils import has_length

from hf_efficient.batches import lengths_of
from hf_efficient.errors import ConfigError, NoEffectWarning
from hf_efficient.gradient_guard import GradientGuard
from hf_efficient.optimization import Context, Optimization, Order
from hf_efficient.plan import Plan, build_optimizations

if TYPE_CHECKING:
    from transformers import TrainingArguments

    from hf_efficient.tuning import Tuning


class Constructor:
    """The arguments of one call of a Trainer class's ``init``, by name."""

    def __init__(self, init: Any, args: tuple, kwargs: dict[str, Any]):
        self._bound = inspect.signature(init).bind(*args, **kwargs)
        parameters = self._bound.signature.parameters.values()
        extra = next((p.name for p in parameters if p.kind is p.VAR_KEYWORD), None)
        given = self._bound.arguments
        self.given: dict[str, Any] = {**given.get(extra, {}), **given} if extra else dict(given)

    def call(self, changes: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        """Positional and keyword arguments of the same call with other values of ``changes``."""
        bound = copy.copy(self._bound)
        bound.arguments = {name: value for name, value in bound.arguments.items() if name not in changes}
        return bound.args, {**bound.kwargs, **changes}


def configure(
    trainer: Trainer, again: Callable[..., None], init: Any, args: tuple, kwargs: dict
) -> "tuple[tuple, dict, Tuning | None]":
    """Constructor arguments as optimizations change them, untouched where there are none; and what autotune found.

    Args:
        trainer: that is being made.
        again: the constructor that asks for this, to make another trainer with.
        init: stock's, which is going to be called with the arguments.
    """
    constructor = Constructor(init, args, kwargs)
    given = constructor.given
    training_args = given.get("args")
    changes = _keep_functions(trainer, given)
    callbacks = [_instance(callback) for callback in given.get("callbacks") or []]
    ours = [callback for callback in callbacks if isinstance(callback, Optimization)]
    tuning = None
    if getattr(training_args, "autotune", False):
        training_args, tuning = _tuned(trainer, again, constructor, ours)
        changes["args"] = training_args
    optimizations = build_optimizations(getattr(training_args, "optimizations", None))
    plan = Plan([*optimizations, *ours])
    from_args: list[TrainerCallback] = [*optimizations]
    if most := getattr(training_args, "max_skipped_steps", None):
        from_args.append(GradientGuard(most))
        changes["callbacks"] = [*callbacks, *from_args]
    if not plan:
        return (*(constructor.call(changes) if changes else (args, kwargs)), tuning)
    if training_args is None:
        raise ConfigError(
            f"{next(iter(plan)).name} needs training arguments: pass args=EfficientTrainingArguments(...)"
        )
    if _has_optimizer(given):
        for optimization in plan.overriding("choose_optimizer"):
            raise ConfigError(
                f"{optimization.name} chooses the optimizer, but optimizers= or optimizer_cls_and_kwargs= gives one; "
                "drop either"
            )
    model = given.get("model")
    model = model if isinstance(model, nn.Module) else None
    plan.check(Context(args=training_args, model=model, processor=given.get("processing_class")))
    changes |= {"args": plan.configure(training_args), "callbacks": [*callbacks, *from_args]}
    for optimization in plan:
        optimization.attach()
    return (*constructor.call(changes), tuning)


def _keep_functions(trainer: Any, given: dict[str, Any]) -> dict[str, Any]:
    """Leave functions in ``optimizers=`` with ``trainer``; what the constructor, which takes objects, gets instead."""
    both = tuple(given.get("optimizers") or (None, None))
    objects = tuple(None if callable(one) else one for one in both)
    for one in objects:
        if one is not None and given.get("model_init") is not None:
            raise ConfigError(
                f"optimizers=: {type(one).__name__} belongs to one model, and model_init makes another for each "
                "training; give functions instead, (make_optimizer, make_scheduler), called as make_optimizer(model, "
                "args) and make_scheduler(optimizer, args, steps)"
            )
    if objects == both:
        return {}
    trainer.optimizer_factory, trainer.scheduler_factory = (one if callable(one) else None for one in both)
    return {"optimizers": objects}


def _has_optimizer(given: dict[str, Any]) -> bool:
    return (given.get("optimizers") or (None,))[0] is not None or given.get("optimizer_cls_and_kwargs") is not None


def _optimizer_object(given: dict[str, Any]) -> Any:
    given_optimizer = (given.get("optimizers") or (None,))[0]
    return None if callable(given_optimizer) else given_optimizer


def _instance(callback: Any) -> Any:
    is_class = isinstance(callback, type) and issubclass(callback, Optimization)
    return callback() if is_class else callback


def _tuned(
    trainer: Trainer, again: Callable[..., None], constructor: Constructor, ours: list[Optimization]
) -> "tuple[TrainingArguments, Tuning | None]":
    from hf_efficient.autotune import Training, tuned

    given = constructor.given
    args, dataset = given["args"], given.get("train_dataset")
    if dataset is None:
        warnings.warn("autotune: there is no train_dataset to try anything on", NoEffectWarning, 2)
        return args, None
    if _optimizer_object(given) is not None:
        raise ConfigError(
            "autotune trains copies of the model, which an object in optimizers= cannot go with; pass "
            "optimizer_cls_and_kwargs="
        )
    sized = has_length(dataset)
    model = given["model"] if isinstance(given.get("model"), nn.Module) else given["model_init"]()
    listed = {**(getattr(args, "optimizations", None) or {}), **{one.name: vars(one) for one in ours}}
    if given.get("optimizer_cls_and_kwargs") is not None:
        listed["optimizer"] = given["optimizer_cls_and_kwargs"]
    elif _has_optimizer(given):
        factory = given["optimizers"][0]
        listed["optimizer"] = getattr(factory, "__qualname__", type(factory).__name__)  # no address: new in every run
    training = Training(
        trainer_class=type(trainer),
        args=args,
        model=model,
        examples=len(dataset) if sized else None,
        lengths=lengths_of(dataset) if sized else None,
        listed=listed,
    )
    return tuned(functools.partial(_trial_trainer, trainer, again, constructor, ours), training)


def _trial_trainer(
    trainer: Trainer,
    again: Callable[..., None],
    constructor: Constructor,
    ours: list[Optimization],
    args: "TrainingArguments",
) -> Trainer:
    """Another trainer of the class of ``trainer``, as far as that is made: with a model of its own."""
    made = object.__new__(type(trainer))
    vars(made).update(vars(trainer))  # what a subclass had set before it called ours
    early = [one for one in ours if one.order < Order.STRUCTURE]  # as autotune leaves later ones out of the arguments
    changes: dict[str, Any] = {"args": args, "callbacks": copy.deepcopy(early)}
    if isinstance(constructor.given.get("model"), nn.Module):
        changes["model"] = copy.deepcopy(constructor.given["model"])
    positional, named = constructor.call(changes)
    again(made, *positional, **named)
    return made

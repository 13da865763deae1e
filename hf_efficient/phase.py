"""Phases of a training: dense fine-tuning, then the phase in which optimizations change the model.

A phase is one stock `train()` with its own folder, optimizer and schedule. Shapes change only at its start or end, so
resuming means: skip finished phases, resume in the one that was interrupted. Recipe stages are trainings of one phase.
"""

import contextlib
import copy
import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn
from transformers import enable_full_determinism, set_seed
from transformers.trainer_utils import TrainOutput

from hf_efficient.accounting import account, as_metrics, training_figures
from hf_efficient.checkpoint import load_state, load_weights
from hf_efficient.collation import map_batches, set_processor, states_of_model, unmap_batches
from hf_efficient.errors import ConfigError
from hf_efficient.files import atomic_folder, remove_leftovers
from hf_efficient.hub import remove_local_names
from hf_efficient.optimization import Order
from hf_efficient.plan import Plan
from hf_efficient.resumption import AUTO, check_whole, newest_whole

if TYPE_CHECKING:
    from transformers import TrainingArguments

DENSE, MAIN = "dense", "main"
FINAL = "final"


@dataclass
class Phase:
    """One stock `train()`.

    Attributes:
        name: `dense` or `main`.
        args: training arguments of this phase.
        plan: the optimizations that take part in it.
        folder: where its checkpoints and `final/` go: the output folder, or the trial's in it.
    """

    name: str
    args: "TrainingArguments"
    plan: Plan
    folder: Path


@dataclass
class _Start:
    """Where a training begins: the phase, and the checkpoint to resume it from, if any."""

    phase: str
    checkpoint: str | None = None
    resuming: bool = False


def train_phases(
    trainer: Any, plan: Plan, stock_train: Callable[..., TrainOutput], resume: str | bool | None, trial: Any
) -> TrainOutput:
    """Run the phases that ``trainer.args`` asks for; what `EfficientMixin.train` does when anything of ours is on.

    Returns:
        the main phase's output; metrics of a dense phase that ran before it carry the prefix ``dense_``.
    """
    # report, plots and card are only loaded by trainings that use them
    from hf_efficient.before_after import BeforeAfter
    from hf_efficient.finished import write_final_card

    dense, main = _phases(trainer, plan, trial)
    if resume and trainer.args.should_save:
        remove_leftovers(trainer.args.output_dir)
    trainer.accelerator.wait_for_everyone()
    start = _starting_point(dense, main, resume)
    kept = states_of_model(trainer) if trainer.model_init is None else {}
    plan.reset()
    plan.load_state_dict(kept)
    model_init, trainer.model_init = trainer.model_init, None  # stock train() would start each phase from a new model
    try:
        if model_init is not None:
            _new_model(trainer, model_init, trial)
        dense_output, training = None, {}
        if dense is not None and start.phase == DENSE:
            with _active(trainer, dense):
                dense_output, training[DENSE] = _run(trainer, dense, start, stock_train)
            save_final(trainer, dense.folder)
            _forget_optimizer(trainer)
            start = _Start(MAIN)
        elif dense is not None and (start.checkpoint is None or any(one.needs_first_weights() for one in plan)):
            load_weights(trainer.model, dense.folder / FINAL)
        comparison = BeforeAfter(trainer)
        if dense is not None:
            set_seed(trainer.args.seed)  # the same start whether the dense phase just ended or was loaded
        with _active(trainer, main):
            output, training[MAIN] = _run(trainer, main, start, stock_train)
            _finish(trainer, plan)
            save_final(trainer, main.folder, plan)
            trainer.finished = main.folder / FINAL
            trainer.report = comparison.report(plan, training)
            _log(trainer, output)
            write_final_card(trainer)
    finally:
        trainer.model_init = model_init
    _push(trainer)
    if dense_output is not None:
        output.metrics.update({f"dense_{name}": value for name, value in dense_output.metrics.items()})
    return output


def _log(trainer: Any, output: TrainOutput) -> None:
    """Tell trackers (`report_to`) what stock has not told them: what the training did, and the report's figures."""
    if trainer.args.report_to:
        logged = {name for entry in trainer.state.log_history for name in entry}
        told = {name: value for name, value in output.metrics.items() if name not in logged}
        trainer.log({**told, **(trainer.report.figures() if trainer.report else {})})


def _phases(trainer: Any, plan: Plan, trial: Any) -> tuple[Phase | None, Phase]:
    output = Path(trainer.args.output_dir)
    trial_folder = Path(trainer._get_output_dir(trial)).relative_to(output)
    main = Phase(MAIN, trainer.args, plan, output / trial_folder)
    epochs = getattr(trainer.args, "dense_epochs", 0)
    if not epochs:
        return None, main
    later = [optimization for optimization in plan if optimization.order >= Order.STRUCTURE]
    if not later:
        raise ConfigError(
            f"dense_epochs={epochs} trains before optimizations that change the model, but none is listed; "
            "drop dense_epochs (num_train_epochs alone sets the length) or add one"
        )
    if trainer.optimizer is not None and trainer.model_init is None and not trainer._created_lr_scheduler:
        raise ConfigError(
            "dense_epochs starts a new optimizer and schedule after the dense phase, which an object in optimizers= "
            "cannot give; pass optimizer_cls_and_kwargs= instead"
        )
    args = copy.copy(trainer.args)
    args.output_dir = str(output / DENSE)
    args.num_train_epochs, args.max_steps = epochs, -1
    args.push_to_hub = False  # the Hub gets the finished model
    return Phase(DENSE, args, plan.before(Order.STRUCTURE), output / DENSE / trial_folder), main


def _starting_point(dense: Phase | None, main: Phase, resume: str | bool | None) -> _Start:
    first = main if dense is None else dense
    if not resume:
        return _Start(first.name)
    if isinstance(resume, str) and resume != AUTO:
        check_whole(resume)
        state = load_state(resume)
        return _Start(state["phase"] if state else MAIN, resume, True)
    if checkpoint := newest_whole(main.folder):
        return _Start(MAIN, checkpoint, True)
    if dense is not None:
        if (dense.folder / FINAL).is_dir():
            return _Start(MAIN, None, True)
        if checkpoint := newest_whole(dense.folder):
            return _Start(DENSE, checkpoint, True)
    if resume == AUTO:
        return _Start(first.name)
    raise ConfigError(
        f"nothing to resume: no whole checkpoint in {main.folder}; start from the beginning without "
        f"resume_from_checkpoint, or with '{AUTO}', which resumes where it can"
    )


def _new_model(trainer: Any, model_init: Callable[..., nn.Module], trial: Any) -> None:
    """What stock `train()` does at its start when there is a `model_init`."""
    unmap_batches(trainer)
    enable_full_determinism(trainer.args.seed) if trainer.args.full_determinism else set_seed(trainer.args.seed)
    trainer.model_init = model_init
    trainer.model = trainer.call_model_init(trial)
    trainer.model_init = None
    if trainer.place_model_on_device:
        trainer._move_model_to_device(trainer.model, trainer.args.device)
    trainer.model_wrapped = trainer.model
    _forget_optimizer(trainer)


def _forget_optimizer(trainer: Any) -> None:
    trainer.optimizer, trainer.lr_scheduler = None, None


@contextlib.contextmanager
def _active(trainer: Any, phase: Phase) -> Iterator[None]:
    """The trainer as ``phase`` needs it: arguments, data, callbacks, loss; all put back afterwards."""
    args, dataset, handler = trainer.args, trainer.train_dataset, trainer.callback_handler
    waiting = [optimization for optimization in trainer.optimizations if optimization not in list(phase.plan)]
    for optimization in waiting:
        handler.remove_callback(optimization)
    trainer.args, trainer.phase = phase.args, phase
    if phase.plan.overriding("loss") or phase.plan.overriding("batch_sampler"):
        trainer.compute_loss = functools.partial(trainer.loss_with_optimizations, trainer.compute_loss)
    try:
        if phase.plan.overriding("prepare_data"):
            trainer.train_dataset = phase.plan.prepare_data(dataset)
        yield
    finally:
        trainer.args, trainer.train_dataset, trainer.phase = args, dataset, None
        vars(trainer).pop("compute_loss", None)
        for optimization in waiting:
            handler.add_callback(optimization)


def _run(
    trainer: Any, phase: Phase, start: _Start, stock_train: Callable[..., TrainOutput]
) -> tuple[TrainOutput, dict[str, Any]]:
    """What `train()` returned, with what the training did with its time in its metrics; and figures for the report."""
    if start.checkpoint is not None:
        _restore(phase.plan, start.checkpoint)
    map_batches(trainer, phase.plan)
    context = trainer.context(phase.folder, resuming=start.resuming)
    processor = context.processor
    trainer.model = phase.plan.prepare_model(_unwrapped(trainer), context)
    if context.processor is not processor:
        set_processor(trainer, context.processor)
    trainer.model_wrapped = trainer.model
    _check_optimizer(trainer)
    with account(trainer) as accounts:
        output = stock_train(resume_from_checkpoint=start.checkpoint)
        trainer.finish_saving()  # a finished model tells that nothing of this phase is missing
    figures = accounts.figures(measure=getattr(trainer.args, "measure_seconds", 2.0) > 0)
    output.metrics.update(as_metrics(figures))
    return output, training_figures(output, figures)


def _restore(plan: Plan, checkpoint: str) -> None:
    states = (load_state(checkpoint) or {"optimizations": {}})["optimizations"]
    for optimization in (*plan.overriding("prepare_model"), *plan.overriding("choose_optimizer")):
        if optimization.name not in states:
            raise ConfigError(
                f"{checkpoint} was written without {optimization.name}, so it cannot be resumed with it; start a new "
                "training from its weights instead (model=AutoModel...from_pretrained(checkpoint))"
            )
    plan.load_state_dict(states)


def _check_optimizer(trainer: Any) -> None:
    """An optimizer made by the user before the cut must still hold every parameter."""
    if trainer.optimizer is None:
        return
    held = {id(parameter) for group in trainer.optimizer.param_groups for parameter in group["params"]}
    lost = [n for n, p in trainer.model.named_parameters() if p.requires_grad and id(p) not in held]
    if lost:
        raise ConfigError(
            f"the optimizer given in optimizers= does not hold '{lost[0]}' (and {len(lost) - 1} more parameters) of "
            "the changed model; pass optimizer_cls_and_kwargs= so that it is built after the change"
        )


def _unwrapped(trainer: Any) -> nn.Module:
    """The plain model: Accelerate's mixed-precision wrapper around `forward` taken off, and its mark that says so.

    A model that keeps the mark, be it from an evaluation, is trained as it is: not in mixed precision, not compiled,
    and not synchronized with the other processes.

    `unwrap_model(keep_fp32_wrapper=False)` would take the family's own decorators of `forward` off with it.
    """
    model = trainer.model
    vars(model).pop("_is_accelerate_prepared", None)
    original = vars(model).pop("_original_forward", None)
    if original is not None:
        del model.forward
        if model.forward != original:  # the instance had a forward of its own before
            model.forward = original
    return model


def _finish(trainer: Any, plan: Plan) -> None:
    trainer.model = plan.finalize(_unwrapped(trainer))
    trainer.model_wrapped = trainer.model
    changing = [one for one in plan.overriding("finalize") if one.order > Order.PRECISION]  # others compute the same
    if changing and trainer.eval_dataset is not None:
        metrics = trainer.evaluate()
        if trainer.hp_search_backend is not None:  # a search compares finished models
            trainer.objective = trainer.compute_objective(metrics)


def save_final(trainer: Any, folder: Path, plan: Plan | None = None) -> None:
    """The phase's finished model in `<folder>/final`, all of it or nothing, and fit to be given away.

    Args:
        plan: the optimizations that may pack its files.
    """
    target = folder / FINAL
    writing = atomic_folder(target) if trainer.args.should_save else contextlib.nullcontext(target)
    with writing as path:  # every process takes part: sharded weights have to be gathered
        trainer.save_model(str(path), _internal_call=True)
        if trainer.args.should_save:
            (plan or Plan()).pack(path)
            remove_local_names(path)
    trainer.accelerator.wait_for_everyone()


def _push(trainer: Any) -> None:
    """One last push: those that stock training made came before `finalize`."""
    if trainer.args.push_to_hub:
        trainer.push_to_hub(commit_message="Finished model")

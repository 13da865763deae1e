"""EfficientTrainer: `transformers.Trainer` that runs optimizations; with none listed it is stock, bit for bit.

The mixin changes five seams of Trainer and nothing else: `__init__` (optimizations see the arguments before Accelerate
does), `train` (phases), `add_callback`, and the two ends of a checkpoint. Hooks that no optimization overrides are
never called.
"""

import copy
import functools
import inspect
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import datasets
import torch
from torch import nn
from transformers import EvalPrediction, PreTrainedModel, Seq2SeqTrainer, Trainer, TrainerCallback
from transformers.trainer_utils import TrainOutput, has_length

from hf_efficient.checkpoint import load_state, load_weights, save_state
from hf_efficient.errors import ConfigError
from hf_efficient.optimization import Context, Optimization, overrides
from hf_efficient.phase import MAIN, Phase, train_phases
from hf_efficient.plan import Plan, build_optimizations

EXPORT_EXAMPLES = 2000
"""Examples of the evaluation data, drawn by the seed, on which an export is checked at most."""

if TYPE_CHECKING:
    from hf_efficient.export import ExportResult
    from hf_efficient.report import Report

    _Base = Trainer
else:
    _Base = object


class EfficientMixin(_Base):
    """What makes a Trainer class efficient; `efficient(TrainerClass)` puts it in front of any of them."""

    report: "Report | None" = None
    """Before and after, measured; filled by `train` when optimizations ran."""

    phase: Phase | None = None
    """The phase that `train` is in."""

    _counts_items: bool | None = None

    finished: Path | None = None
    """Folder of the finished model, once `train` has run optimizations."""

    def __init__(self, *args: Any, **kwargs: Any):
        args, kwargs = _configure(super().__init__, args, kwargs)
        super().__init__(*args, **kwargs)

    @property
    def optimizations(self) -> list[Optimization]:
        """The optimizations of this trainer, from the arguments and from callbacks."""
        return [callback for callback in self.callback_handler.callbacks if isinstance(callback, Optimization)]

    def add_callback(self, callback: type[TrainerCallback] | TrainerCallback) -> None:
        if isinstance(callback, type) and issubclass(callback, Optimization):
            callback = callback()
        if isinstance(callback, Optimization):
            if overrides(callback, "configure"):
                raise ConfigError(
                    f"{callback.name} must be known before Accelerate is set up: pass it in callbacks= or in "
                    "args.optimizations, not through add_callback()"
                )
            Plan([*self.optimizations, callback]).check(self.context())
            callback.attach()
        super().add_callback(callback)

    def train(
        self,
        resume_from_checkpoint: str | bool | None = None,
        trial: Any = None,
        ignore_keys_for_eval: list[str] | None = None,
    ) -> TrainOutput:
        """Stock `train`, in two phases when `args.dense_epochs` is set: plain fine-tuning, then the optimizations.

        The dense phase keeps its checkpoints in `<output_dir>/dense`, the finished model goes to `<output_dir>/final`.
        `resume_from_checkpoint` skips a finished phase and resumes in the one that was interrupted.
        """
        stock = functools.partial(super().train, trial=trial, ignore_keys_for_eval=ignore_keys_for_eval)
        plan = Plan(self.optimizations)
        if not plan and not getattr(self.args, "dense_epochs", 0):
            return stock(resume_from_checkpoint=resume_from_checkpoint)
        return train_phases(self, plan, stock, resume_from_checkpoint, trial)

    def push_to_hub(
        self,
        commit_message: str | None = "End of training",
        blocking: bool = True,
        token: str | None = None,
        revision: str | None = None,
        private: bool | None = None,
        **kwargs: Any,
    ) -> Any:
        """Stock `push_to_hub`; after optimizations ran, of the finished model's folder alone."""
        args = self.args
        if self.finished is not None:  # output_dir also holds the dense phase and the decisions
            kwargs.setdefault("model_name", Path(args.hub_model_id or str(args.output_dir)).name)
            self.args = copy.copy(args)
            self.args.output_dir = str(self.finished)
        try:
            return super().push_to_hub(commit_message, blocking, token, revision, private, **kwargs)
        finally:
            self.args = args

    def export(
        self,
        format: str = "onnx",
        quantize: str = "none",
        folder: str | Path | None = None,
        max_drop: float = 0.01,
    ) -> "ExportResult | None":
        """The model as a folder that another runtime serves, checked on ``eval_dataset`` (`hf_efficient.export`).

        What may drop by quantization is ``args.metric_for_best_model`` where `compute_metrics` gives it, else its first
        metric; without `compute_metrics`, predictions that change are counted.

        Args:
            folder: `<output_dir>/exported` when None.

        Returns:
            the result; None on processes other than the main one.

        Raises:
            ConfigError: no such format, a model that is not exported, or no evaluation data.
            ExportError: the export does not compute what the model does; nothing was written.
        """
        from hf_efficient.export import export

        result = None
        if self.is_world_process_zero():
            dataset = self.eval_dataset
            dataset = next(iter(dataset.values()), None) if isinstance(dataset, dict) else dataset
            best = (self.args.metric_for_best_model or "loss").removeprefix("eval_")
            result = export(
                cast(nn.Module, self.model),
                folder or Path(str(self.args.output_dir)) / "exported",
                format=format,
                quantize=quantize,
                examples=self.examples(dataset, EXPORT_EXAMPLES),
                collate=self.collate,
                metrics=self._export_metrics(),
                main_metric=None if best == "loss" else best,
                greater_is_better=best == "loss" or self.args.greater_is_better is not False,
                max_drop=max_drop,
                processor=self.processing_class,
                seconds=getattr(self.args, "measure_seconds", 0),
            )
        self.accelerator.wait_for_everyone()
        return result

    def _export_metrics(self) -> Any:
        """`compute_metrics` as it can be called on logits and labels alone; None where it cannot."""
        given, prepare = self.compute_metrics, self.preprocess_logits_for_metrics
        if given is None or self.args.batch_eval_metrics or self.args.include_for_metrics:
            return None
        if prepare is None:
            return given

        def metrics(prediction: EvalPrediction) -> dict[str, float]:
            tensors = (torch.as_tensor(value) for value in (prediction.predictions, prediction.label_ids))
            return given(EvalPrediction(prepare(*tensors).numpy(), prediction.label_ids))  # type: ignore[arg-type]

        return metrics

    def context(self, folder: str | Path | None = None, resuming: bool = False) -> Context:
        """What optimizations may know about this training."""
        return Context(
            args=self.args,
            model=self.model,
            folder=Path(folder or str(self.args.output_dir)),
            resuming=resuming,
            calibration=self._calibration_batches,
        )

    def examples(self, dataset: Any, count: int) -> list[Any]:
        """Up to ``count`` examples of ``dataset``, drawn by the seed, without columns that the model cannot take."""
        if dataset is None:
            return []
        if isinstance(dataset, datasets.Dataset):
            dataset = self._remove_unused_columns(dataset)
        if not has_length(dataset):
            return [example for _, example in zip(range(count), dataset, strict=False)]
        generator = torch.Generator().manual_seed(self.args.seed)
        order = torch.randperm(len(dataset), generator=generator)[:count].tolist()
        return [dataset[index] for index in order]  # type: ignore[index]

    def collate(self, examples: Sequence[Any]) -> dict[str, torch.Tensor]:
        """A batch of ``examples`` as training builds it, on the CPU."""
        return self._get_collator_with_removed_columns(self.data_collator)(examples)

    def _calibration_batches(self, batches: int) -> list[Mapping[str, torch.Tensor]]:
        size = self._train_batch_size
        examples = self.examples(self.train_dataset, batches * size)
        if not examples:
            raise ConfigError("calibration needs training data, but train_dataset is empty or missing")
        starts = range(0, len(examples), size)
        return [self._prepare_inputs(self.collate(examples[start : start + size])) for start in starts]

    def loss_with_optimizations(
        self,
        stock_loss: Any,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        """Stands in for `compute_loss` during a phase whose optimizations change the loss.

        It wraps whatever `compute_loss` the class has, so a subclass's own loss keeps its effect and is extended once.
        """
        if self.phase is None or not model.training:  # evaluation loss stays comparable
            return stock_loss(model, inputs, return_outputs=return_outputs, num_items_in_batch=num_items_in_batch)
        given = dict(inputs)  # stock pops the labels under label smoothing
        scale = self._loss_scale(stock_loss, model, given, num_items_in_batch)
        loss, outputs = stock_loss(model, inputs, return_outputs=True, num_items_in_batch=num_items_in_batch)
        loss = self.phase.plan.loss(loss, given, outputs, scale)
        return (loss, outputs) if return_outputs else loss

    def _loss_scale(
        self, stock_loss: Any, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: torch.Tensor | int | None
    ) -> Any:
        """From a mean over the micro-batch to the units of stock's loss (`Optimization.loss`)."""
        if num_items_in_batch is None or "labels" not in inputs:
            return 1.0
        if self._counts_items is None:
            self._counts_items = self._loss_counts_items(stock_loss, model, inputs, num_items_in_batch)
        scale: Any = 1.0
        if self._counts_items:
            labels = inputs["labels"][..., 1:] if self._loss_shifts_labels else inputs["labels"]
            scale = labels.ne(-100).sum() / num_items_in_batch
        # Stock multiplies by the number of processes last, because DDP averages; a user's own loss does not
        averaged = self.args.average_tokens_across_devices and type(self).compute_loss is Trainer.compute_loss
        return scale * self.accelerator.num_processes if averaged else scale

    @torch.no_grad()
    def _loss_counts_items(self, stock_loss: Any, model: nn.Module, inputs: dict[str, Any], items: Any) -> bool:
        """Whether the loss divides by the number of items of the whole accumulated batch.

        Nothing declares it: several models take `num_items_in_batch` and return the micro-batch's mean all the same. So
        try: only a loss that counts halves when there are twice as many.
        """
        model.eval()  # no dropout, so no random numbers are used up
        once, twice = (stock_loss(model, dict(inputs), num_items_in_batch=items * times) for times in (1, 2))
        model.train()
        return not torch.isclose(once, twice)

    def _report_to_hp_search(self, trial: Any, step: int, metrics: dict[str, float]) -> None:
        if self.phase is None or self.phase.name == MAIN:  # the dense phase counts the same steps
            super()._report_to_hp_search(trial, step, metrics)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        super()._save_optimizer_and_scheduler(output_dir)
        if self.phase is None:
            return
        states = self.phase.plan.state_dict()  # on every process: a state may have to be gathered
        if self.args.should_save:
            save_state(output_dir, self.phase.name, states)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        state = load_state(resume_from_checkpoint) or {"optimizations": {}}
        running = {optimization.name for optimization in self.optimizations}
        missing = [name for name, kept in state["optimizations"].items() if kept and name not in running]
        if missing:
            raise ConfigError(
                f"{resume_from_checkpoint} was written while training with {', '.join(missing)}; list the same "
                "optimizations to resume from it"
            )
        if self._loads_plainly():
            load_weights(cast(PreTrainedModel, self.model), resume_from_checkpoint)
        else:
            super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _load_best_model(self) -> None:
        if self._loads_plainly() and self.state.best_model_checkpoint is not None:
            load_weights(cast(PreTrainedModel, self.model), self.state.best_model_checkpoint)
        else:
            super()._load_best_model()

    def _loads_plainly(self) -> bool:
        """Whether a checkpoint's weights go through `from_pretrained`, which knows how families rename their tensors.

        Stock (5.24) reads the file's names as they are: a ViT, whose names differ on disk, keeps its random weights on
        resume with a logged warning only (transformers issue 43701). Trainings with optimizations must not.
        """
        sharded = self.is_fsdp_enabled or self.is_deepspeed_enabled
        return self.phase is not None and not sharded and isinstance(self.model, PreTrainedModel)


def _configure(init: Any, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
    """The constructor arguments of a Trainer after its optimizations have seen them; untouched where there are none."""
    bound = inspect.signature(init).bind(*args, **kwargs)
    extra = next((p.name for p in bound.signature.parameters.values() if p.kind is p.VAR_KEYWORD), None)
    given = {**bound.arguments.get(extra, {}), **bound.arguments} if extra else bound.arguments
    training_args = given.get("args")
    callbacks = [_instance(callback) for callback in given.get("callbacks") or []]
    from_args = build_optimizations(getattr(training_args, "optimizations", None))
    plan = Plan([*from_args, *(callback for callback in callbacks if isinstance(callback, Optimization))])
    if not plan:
        return args, kwargs
    if training_args is None:
        raise ConfigError(
            f"{next(iter(plan)).name} needs training arguments: pass args=EfficientTrainingArguments(...)"
        )
    model = given.get("model")
    plan.check(Context(args=training_args, model=model if isinstance(model, nn.Module) else None))
    changed = {"args": plan.configure(training_args), "callbacks": [*callbacks, *from_args]}
    for optimization in plan:
        optimization.attach()
    for name in changed:
        bound.arguments.pop(name, None)
    return bound.args, {**bound.kwargs, **changed}


def _instance(callback: Any) -> Any:
    is_class = isinstance(callback, type) and issubclass(callback, Optimization)
    return callback() if is_class else callback


@functools.cache
def efficient(trainer_class: type) -> type:
    """The class itself with `EfficientMixin` in front, e.g. ``efficient(trl.SFTTrainer)``.

    Its arguments class may have no `optimizations` field: pass instances in ``callbacks=`` then.
    """
    if issubclass(trainer_class, EfficientMixin):
        return trainer_class
    if not issubclass(trainer_class, Trainer):
        raise ConfigError(f"efficient() takes a subclass of transformers.Trainer, got {trainer_class!r}")
    body = {"__doc__": trainer_class.__doc__, "__module__": trainer_class.__module__}
    return type(f"Efficient{trainer_class.__name__}", (EfficientMixin, trainer_class), body)


class EfficientTrainer(EfficientMixin, Trainer):
    """Drop-in for `transformers.Trainer`: same signature, stock behaviour wherever no optimization is listed."""

    __signature__ = inspect.signature(Trainer)


class EfficientSeq2SeqTrainer(EfficientMixin, Seq2SeqTrainer):
    """Drop-in for `transformers.Seq2SeqTrainer`."""

    __signature__ = inspect.signature(Seq2SeqTrainer)

"""EfficientTrainer: `transformers.Trainer` that runs optimizations; with none listed it is stock, bit for bit.

The mixin changes these seams of Trainer and nothing else: `__init__` (optimizations see the arguments before Accelerate
does), `train` (phases), `add_callback`, samplers, loss and steps (`hf_efficient.batches`, `hf_efficient.splitting`),
what processes send each other (`hf_efficient.communication`), the two ends of a checkpoint (`hf_efficient.saving`),
`create_optimizer` and `create_scheduler`, `hyperparameter_search`, and what goes to the Hub. Hooks that no optimization
overrides are never called.
"""

import functools
import inspect
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import datasets
import torch
from torch import nn
from transformers import PreTrainedModel, Seq2SeqTrainer, Trainer, TrainerCallback
from transformers.hyperparameter_search import default_hp_search_backend
from transformers.trainer_utils import BestRun, HPSearchBackend, TrainOutput, has_length

from hf_efficient.batches import BatchMixin
from hf_efficient.collation import processor_of
from hf_efficient.communication import CommunicationMixin
from hf_efficient.configure import configure
from hf_efficient.errors import ConfigError
from hf_efficient.functional.batching import by_length
from hf_efficient.optimization import Context, Optimization, Served, overrides
from hf_efficient.phase import MAIN, train_phases
from hf_efficient.plan import Plan
from hf_efficient.preemption import preemptible
from hf_efficient.resumption import AUTO, newest_whole
from hf_efficient.runtimes import require_packages
from hf_efficient.saving import SavingMixin
from hf_efficient.splitting import SplittingMixin

if TYPE_CHECKING:
    from hf_efficient.accounting import Accounting
    from hf_efficient.export import ExportResult
    from hf_efficient.report import Report
    from hf_efficient.tuning import Tuning

    _Base = Trainer
else:
    _Base = object

TIMED_EXAMPLES = 128
"""Training examples on which optimizations time a model."""


class EfficientMixin(SavingMixin, CommunicationMixin, SplittingMixin, BatchMixin, _Base):
    """What makes a Trainer class efficient; `efficient(TrainerClass)` puts it in front of any of them."""

    report: "Report | None" = None
    """Before and after, measured; filled by `train` when optimizations ran."""

    finished: Path | None = None
    """Folder of the finished model, once `train` has run optimizations."""

    accounts: "Accounting | None" = None
    """What the last `train` that ran optimizations did with its time."""

    tuning: "Tuning | None" = None
    """What `args.autotune` found."""

    optimizer_factory: Callable[[nn.Module, Any], torch.optim.Optimizer] | None = None
    scheduler_factory: Callable[[torch.optim.Optimizer, Any, int], Any] | None = None
    """Functions given in ``optimizers=``: unlike objects they fit every model that `model_init` returns."""

    def __init__(self, *args: Any, **kwargs: Any):
        args, kwargs, self.tuning = configure(self, EfficientMixin.__init__, super().__init__, args, kwargs)
        super().__init__(*args, **kwargs)
        if self.optimizations and _asks_for_fsdp(self.args) and not self.is_fsdp_enabled:
            raise ConfigError(
                "fsdp is asked for, but Accelerate shards on accelerators alone and would, without a word, train a "
                "whole copy on each process here; drop fsdp"
            )
        self.set_up_communication(self.optimizations)
        if getattr(self.args, "split_on_out_of_memory", False) and self.args.world_size > 1:
            raise ConfigError(
                f"split_on_out_of_memory works on one process, but here are {self.args.world_size}, which would take "
                "other parts; take a smaller per_device_train_batch_size and as much more "
                "gradient_accumulation_steps"
            )

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
        `resume_from_checkpoint` skips a finished phase and resumes in the one that was interrupted; True takes the
        newest whole checkpoint, and ``"auto"`` starts from the beginning where there is none.

        Raises:
            Preempted: SIGTERM came while optimizations trained; what to resume from is saved.
        """
        stock = functools.partial(super().train, trial=trial, ignore_keys_for_eval=ignore_keys_for_eval)
        try:
            if not self.optimizations and not getattr(self.args, "dense_epochs", 0):
                if resume_from_checkpoint in (True, AUTO):  # stock would take a damaged one
                    found = newest_whole(self._get_output_dir(trial))
                    resume_from_checkpoint = found or resume_from_checkpoint is True
                return stock(resume_from_checkpoint=resume_from_checkpoint)
            self._hp_search_setup(trial)  # before the model is made and phases are planned
            with preemptible(self):
                return train_phases(self, Plan(self.optimizations), stock, resume_from_checkpoint, trial)
        finally:
            self.finish_saving()

    def hyperparameter_search(
        self,
        hp_space: Callable[[Any], dict[str, Any]] | None = None,
        compute_objective: Callable[[dict[str, float]], float] | None = None,
        n_trials: int = 20,
        direction: str | list[str] = "minimize",
        backend: str | HPSearchBackend | None = None,
        hp_name: Callable[[Any], str] | None = None,
        **kwargs: Any,
    ) -> BestRun | list[BestRun]:
        """Stock `hyperparameter_search`; with Optuna through `hf_efficient.hyperparameters`, which prunes on all
        processes, takes ``optimizations.<name>.<setting>`` as hyperparameters and keeps the best trial's checkpoints.

        Raises:
            ConfigError: no `model_init`, several jobs, a hyperparameter that does not exist, or no trial that finished.
            MissingDependencyError: Optuna was asked for and is not installed.
        """
        backend = HPSearchBackend(default_hp_search_backend() if backend is None else backend)
        if backend is not HPSearchBackend.OPTUNA:
            return super().hyperparameter_search(
                hp_space, compute_objective, n_trials, direction, backend, hp_name, **kwargs
            )
        require_packages(["optuna"], "hyperparameter_search", "search")
        from hf_efficient.hyperparameters import search

        return search(self, hp_space, compute_objective, n_trials, direction, hp_name, kwargs)

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """Stock `create_optimizer`, from the class and settings that the optimizations of this phase choose.

        Where ``optimizers=`` holds a function, the optimizer is what it makes of the model and the arguments.
        """
        plan = self.phase.plan if self.phase is not None else Plan()
        if self.optimizer is None and self.optimizer_factory is not None:
            self.optimizer = self.optimizer_factory(cast(nn.Module, self.model if model is None else model), self.args)
        if self.optimizer is not None or not plan.overriding("choose_optimizer"):
            return super().create_optimizer(model)
        target = cast(PreTrainedModel, self.model if model is None else model)
        choice = self.get_optimizer_cls_and_kwargs(self.args, target)
        self.optimizer_cls_and_kwargs = plan.choose_optimizer(*choice, target)
        try:
            return super().create_optimizer(model)
        finally:
            self.optimizer_cls_and_kwargs = None

    def create_scheduler(
        self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None
    ) -> torch.optim.lr_scheduler.LRScheduler:
        """Stock `create_scheduler`; where ``optimizers=`` holds a function for it, what that makes of the optimizer,
        the arguments and the number of steps."""
        if self.lr_scheduler is None and self.scheduler_factory is not None:
            made_for = cast(torch.optim.Optimizer, optimizer or self.optimizer)
            self.lr_scheduler = self.scheduler_factory(made_for, self.args, num_training_steps)
            self._created_lr_scheduler = True  # the next training needs another
        return super().create_scheduler(num_training_steps, optimizer)

    def push_to_hub(
        self,
        commit_message: str | None = "End of training",
        blocking: bool = True,
        token: str | None = None,
        revision: str | None = None,
        private: bool | None = None,
        **kwargs: Any,
    ) -> Any:
        """Stock `push_to_hub`; after optimizations ran, of the finished model's folder, as it is on disk.

        Our card goes along, completed by ``kwargs``; what names this machine does not (see `hf_efficient.hub`).

        Raises:
            HubError: the finished model did not arrive.
        """
        if self.finished is None:
            return super().push_to_hub(commit_message, blocking, token, revision, private, **kwargs)
        from hf_efficient.finished import push_finished

        return push_finished(self, commit_message, blocking, token, revision, private, kwargs)

    @functools.wraps(Trainer.create_model_card, assigned=())  # the signature of whichever version is installed
    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Stock `create_model_card`; where `train` left a card of ours, this adds to it, as it does in a push."""
        if self.finished is None:
            return super().create_model_card(*args, **kwargs)
        from hf_efficient.finished import complete_card

        given = inspect.signature(super().create_model_card).bind(*args, **kwargs).arguments
        return None if complete_card(self, given) else super().create_model_card(*args, **kwargs)

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
        from hf_efficient.finished import export_finished

        return export_finished(self, format, quantize, folder, max_drop)

    def context(self, folder: str | Path | None = None, resuming: bool = False) -> Context:
        """What optimizations may know about this training."""
        evaluation = self.eval_dataset
        return Context(
            args=self.args,
            model=self.model,
            folder=Path(folder or str(self.args.output_dir)),
            resuming=resuming,
            steps=self._steps(),
            calibration=self._calibration_batches,
            serving=self._serving,
            processor=processor_of(self),
            evaluation=next(iter(evaluation.values()), None) if isinstance(evaluation, dict) else evaluation,
        )

    def _steps(self) -> int:
        if self.args.max_steps > 0 or not has_length(self.train_dataset):
            return max(0, self.args.max_steps)
        batch = self._train_batch_size * self.args.world_size * self.args.gradient_accumulation_steps
        return int(len(self.train_dataset) / batch * self.args.num_train_epochs)  # type: ignore[arg-type]

    def _serving(self, model: nn.Module, kind: str) -> "AbstractContextManager[Served]":
        from hf_efficient.serving import serving

        return serving(model, kind, self.examples(self.train_dataset, TIMED_EXAMPLES), self.collate)

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
        size = self._train_batch_size * self.args.world_size  # the same batches however many processes share them
        examples = by_length(self.examples(self.train_dataset, batches * size))
        if not examples:
            raise ConfigError("calibration needs training data, but train_dataset is empty or missing")
        starts = range(0, len(examples), size)
        return [self._prepare_inputs(self.collate(examples[start : start + size])) for start in starts]

    def _hp_search_setup(self, trial: Any) -> None:
        if self.phase is None:  # `train` has set up the trial; again, it would undo what a phase changes
            super()._hp_search_setup(trial)

    def _report_to_hp_search(self, trial: Any, step: int, metrics: dict[str, float]) -> None:
        if self.phase is None or self.phase.name == MAIN:  # the dense phase counts the same steps
            super()._report_to_hp_search(trial, step, metrics)


def _asks_for_fsdp(args: Any) -> bool:
    return bool(args.fsdp) or os.environ.get("ACCELERATE_USE_FSDP", "false").lower() in ("1", "true")


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

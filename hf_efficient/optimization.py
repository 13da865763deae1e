"""The central abstraction: an Optimization is a dataclass of settings and a `TrainerCallback` with a few more methods.

Where its methods stand in the training of one phase (stock events abridged)::

    check(context)                                the trainer is built: refuse what cannot work here
    args = configure(args)                        before Accelerate is set up
    ...
    train():
        dataset = prepare_data(dataset)
        model = prepare_model(model, context)     before the optimizer exists
        batch = map_batch(batch)                  every batch from here on, evaluation's too
        sampler = batch_sampler(count, lengths, args, formed)
        choose_optimizer(cls, settings, model)    what the optimizer is made from
        on_train_begin
        for epoch:
            on_epoch_begin
            for batch:
                on_step_begin
                batch = train_batch(batch)        this one alone, which trains
                loss = loss(loss, inputs, outputs, scale)
                backward
                on_pre_optimizer_step; optimizer.step(); on_optimizer_step
                on_step_end                       state_dict() goes into every checkpoint
            on_epoch_end
        on_train_end
        model = finalize(model)                   then evaluated and saved
        pack(folder)                              its files, before they are put in place as final/
        describe()                                for the report
"""

import copy
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from enum import IntEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import ConfigDict
from transformers import TrainerCallback, TrainingArguments

from hf_efficient.errors import ConfigError
from hf_efficient.files import write_json

if TYPE_CHECKING:
    import torch
    from torch import nn

    from hf_efficient.passes import Passes
    from hf_efficient.proposal import Observed, Proposal
    from hf_efficient.timing import Runtime


@dataclass(frozen=True)
class Served:
    """A model in a runtime, and what to time it on.

    Attributes:
        runtime: that computes the model.
        examples: real, model-ready training examples, as many as a measurement takes.
        collate: from a list of those to a batch on the CPU.
    """

    runtime: "Runtime"
    examples: Sequence[Mapping[str, Any]]
    collate: Callable[[list[Any]], Mapping[str, Any]]


DECISIONS, GIVEN_DECISIONS = "decisions", "given_decisions"
"""Folders of a phase: `Context.decide`."""


class Order(IntEnum):
    """Where an optimization stands among others, whatever order the user lists them in."""

    DATA = 10
    SELECTION = 15
    PRECISION = 20
    ADAPTER = 30
    STRUCTURE = 40
    LOSS = 50
    FUSION = 60
    QUANTIZATION = 70


@dataclass
class Context:
    """What an optimization may know about the training it takes part in."""

    args: TrainingArguments
    model: "nn.Module | None" = None
    """None in `check` when the trainer gets its model later, from `model_init`."""
    folder: Path = field(default_factory=Path)
    """Output folder of the phase."""
    resuming: bool = False
    steps: int = 0
    """About how many optimizer steps the training takes; 0 where none follows."""
    calibration: "Callable[[int], Sequence[Mapping[str, torch.Tensor]]]" = lambda batches: ()
    """``calibration(n)``: up to n batches drawn by the seed from the training data, labels included, on the device."""
    processor: Any = None
    """Tokenizer or image processor; an optimization that changes it puts the new one here in `prepare_model`."""
    parent_ids: list[int] | None = None
    """Where an optimization of this phase cut the vocabulary: for each token id now its id in `original`; else None."""
    evaluation: Any = None
    """The evaluation data set, the first where there are several."""
    original: "nn.Module | None" = None
    """The model before any optimization of this phase changed it, evaluating; kept where one `needs_original`."""
    serving: "Callable[[nn.Module, str], AbstractContextManager[Served]] | None" = None
    """``serving(model, kind)``: the model in the runtime that will serve, with real examples to time it on."""

    def decide(self, name: str, choose: Callable[[], Any]) -> Any:
        """A choice that must come out the same on every process and after a restart.

        Measured figures are noisy: chosen anew, a resumed run could cut other shapes than its checkpoint has. So the
        main process chooses once, writes `<folder>/decisions/<name>.json` before anything acts on it, and hands the
        choice to the others; one that lies in `<folder>/given_decisions` is taken as it is. ``choose`` returns plain
        JSON values.
        """
        path, choice = self.folder / DECISIONS / f"{name}.json", None
        given = self.folder / GIVEN_DECISIONS / path.name
        if self.args.process_index == 0:
            known = path if self.resuming and path.is_file() else given
            choice = self._read(known) if known.is_file() else choose()
            path.parent.mkdir(parents=True, exist_ok=True)
            write_json(path, choice)
        return from_main(choice, self.args)

    @staticmethod
    def _read(path: Path) -> Any:
        try:
            return json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ConfigError(f"{path} is damaged ({error}); delete it to choose anew") from error


def from_main(value: Any, args: TrainingArguments) -> Any:
    """The main process's ``value`` on every process: what is measured differs, what follows from it must not."""
    if args.world_size == 1:
        return value
    from accelerate.utils import broadcast_object_list

    shared = [value]
    broadcast_object_list(shared)
    return shared[0]


def refuse_adapters(model: Any, cannot: str) -> None:
    """Refuse a model that carries adapters of PEFT.

    Args:
        cannot: who cannot do what, as "pruning cannot set weights to zero under".

    Raises:
        ConfigError: it does carry some.
    """
    if hasattr(model, "peft_config"):
        raise ConfigError(f"{cannot} PEFT adapters; merge them first (model = model.merge_and_unload())")


def refuse_sharding(optimization: "Optimization", model: Any) -> None:
    """Refuse what works on whole weights where each process has only a part of them.

    Raises:
        ConfigError: under FSDP or DeepSpeed, but for FSDP2 where it gathers them; under ZeRO-3, which shares weights
            out as they are loaded, and for a model that transformers loaded in parts, also what changes or copies
            the model before it is trained.
    """
    from accelerate.state import AcceleratorState, PartialState
    from accelerate.utils import DistributedType
    from transformers.integrations import is_deepspeed_zero3_enabled

    needs = optimization.whole_weights()
    before_training = optimization.order >= Order.STRUCTURE and overrides(optimization, "prepare_model")
    loaded_in_parts = getattr(model, "is_distributed_loading_by_transformers", False)
    if not needs and before_training and (loaded_in_parts or is_deepspeed_zero3_enabled()):
        needs = "changes or copies whole models"
    if needs and loaded_in_parts:
        raise ConfigError(
            f"{optimization.name} {needs}, but this model was loaded in parts, one on each process; load it without "
            "tp_plan and distributed_config, several processes share the data without"
        )
    shares_out = PartialState().distributed_type in (DistributedType.FSDP, DistributedType.DEEPSPEED)
    if needs and shares_out and not (optimization.gathers_weights and AcceleratorState().is_fsdp2):
        instead = "take FSDP2 (fsdp_version: 2), or " if optimization.gathers_weights else ""
        raise ConfigError(
            f"{optimization.name} {needs}, but FSDP and DeepSpeed give each process a part of them; {instead}drop fsdp "
            "or deepspeed, several processes share the data without"
        )


class Optimization(TrainerCallback):
    """Base of all optimizations. Subclasses are `@dataclass(eq=False, kw_only=True)`: their fields are the settings.

    `eq=False` because Trainer looks callbacks up with ``==``. Fields never change after ``__init__``; what a training
    learns is kept in attributes that `reset` clears, so that one instance serves several trainings.
    """

    __pydantic_config__ = ConfigDict(extra="forbid")

    name: ClassVar[str]
    """YAML key, file name and key in reports."""
    order: ClassVar[Order]
    conflicts: ClassVar[frozenset[str]] = frozenset()
    """Names of optimizations that cannot run together with this one."""
    stage_settings: ClassVar[frozenset[str]] = frozenset()
    """Settings that hold a model, or a list of them: in a recipe it may be an earlier stage's, by the stage's name."""

    gathers_weights: ClassVar[bool] = False
    """Whether `whole_weights` are brought together where processes hold a part of each as a DTensor (FSDP2)."""

    cheaper: ClassVar[Mapping[str, int]] = {}
    """Settings by which the finished model gets faster or smaller: -1 the less, 1 the more there is of them."""

    _trainer_ready = False

    @classmethod
    def proposals(cls, observed: "Observed") -> "Iterable[Proposal]":
        """Settings that `hf_efficient.autotune` may try because training could be faster with them.

        Not called where the user has listed the optimization. None where training arguments have decided already.
        """
        return ()

    def milder(self) -> dict[str, Any]:
        """Settings with which it changes the model about half as much, where it loses too much; empty: none known."""
        return {}

    def check(self, context: Context) -> None:
        """Raise `ConfigError` with the remedy when this cannot work on the device, model or data."""

    def configure(self, args: TrainingArguments) -> TrainingArguments:
        """Other training arguments (`changed`), or the same object when nothing changes."""
        return args

    def reset(self) -> None:
        """Forget what an earlier training left."""

    def whole_weights(self) -> str:
        """What it does with whole weights while a model trains or after, as "ranks whole weights"; empty: nothing."""
        return ""

    def decides_by_training(self) -> bool:
        """Whether what it decides depends on how long and at what rate the model will learn."""
        return True

    def prepare_data(self, dataset: Any) -> Any:
        """The training set to use in this phase."""
        return dataset

    def batch_sampler(
        self, count: int, lengths: "torch.Tensor | None", args: TrainingArguments, formed: "Passes | None"
    ) -> "Passes | None":
        """This process's batches of the training set, as many in every epoch; None leaves them as they are.

        The trainer weights a batch by what it holds, so that each example, or each labelled token where the loss is a
        mean over tokens, counts the same in batches of any size.

        Args:
            count: examples in the training set.
            lengths: tokens of each example, shape (examples,); None where examples have no length of their own.
            formed: what an optimization before this one gave; None: the stock Trainer forms batches.
        """
        return None

    def evaluation_order(self, lengths: "torch.Tensor") -> "torch.Tensor | None":
        """Indices (examples,) in the order in which to evaluate, None for the data's; results come back in the data's.

        Args:
            lengths: tokens of each example, shape (examples,).
        """
        return None

    def prepare_model(self, model: "nn.Module", context: Context) -> "nn.Module":
        """The model to train in this phase. Raise or warn `NoEffectWarning` rather than silently do nothing."""
        return model

    def needs_original(self) -> bool:
        """Whether `prepare_model` wants ``context.original``: a copy of the whole model, so only where it is used."""
        return False

    def needs_first_weights(self) -> bool:
        """Whether `prepare_model` must see the weights that the phase began with, when it resumes from a checkpoint."""
        return self.needs_original()

    def map_batch(self, batch: dict[str, Any]) -> dict[str, Any]:
        """A collated batch as the model takes it, from the time that `prepare_model` has run: training, evaluation
        and export. A new object where anything changes.

        It runs on a copy of the optimization, made when `prepare_model` ended: in data loader workers, and long after
        the training. So it reads attributes and sets none.
        """
        return batch

    def train_batch(self, batch: dict[str, Any]) -> dict[str, Any]:
        """The micro-batch to train on, given the one that the data loader made; evaluation's are not asked for.

        A new object where anything changes. It runs in the main process, between `on_step_begin` and the model, so what
        it does may follow the step; what else computes on the batch, such as a teacher, is given the new one as well.
        """
        return batch

    def choose_optimizer(self, cls: Any, settings: dict[str, Any], model: "nn.Module") -> tuple[Any, dict[str, Any]]:
        """Class and keyword arguments of the optimizer, given those that the training arguments ask for.

        Not called with an optimizer of the user's own. What stock `create_optimizer` passes to the class as its first
        argument is a list of parameter groups.
        """
        return cls, settings

    def loss(
        self, loss: "torch.Tensor", inputs: Mapping[str, Any], outputs: Any, scale: "float | torch.Tensor"
    ) -> "torch.Tensor":
        """The training loss of one micro-batch, given the loss so far.

        Args:
            loss: scalar, in the units that stock `compute_loss` returns.
            inputs: the batch, labels included.
            scale: multiply a *mean over this micro-batch* by it to get the same units as ``loss``, whatever gradient
                accumulation and the number of processes are.
        """
        return loss

    def finalize(self, model: "nn.Module") -> "nn.Module":
        """The finished model, after the phase's last step.

        Up to `Order.PRECISION` it must compute what it did: it is evaluated again only after what comes later.
        """
        return model

    def pack(self, folder: Path) -> None:
        """Write the finished model's files in ``folder`` in a smaller form, on the main process."""

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain values that a resumed training needs."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what `state_dict` gave, before `prepare_model`."""

    def describe(self) -> dict[str, Any]:
        """What it changed, in its own terms, as plain values for report and card."""
        return {}

    def attach(self) -> None:
        """Called by EfficientTrainer: it will call the methods above, which a stock Trainer does not know."""
        self._trainer_ready = True

    def on_init_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._require_trainer()

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Subclasses that override this call ``super().on_train_begin(...)``."""
        self._require_trainer()

    def _require_trainer(self) -> None:
        beyond = [method for method in EFFICIENT_METHODS if overrides(self, method)]
        if beyond and not self._trainer_ready:
            raise ConfigError(
                f"{self.name} needs EfficientTrainer, because a stock Trainer never calls its {beyond[0]}(); "
                "use hf_efficient.EfficientTrainer, or hf_efficient.efficient(YourTrainer) for a subclass"
            )


EFFICIENT_METHODS = (
    "configure",
    "prepare_data",
    "batch_sampler",
    "evaluation_order",
    "prepare_model",
    "map_batch",
    "train_batch",
    "choose_optimizer",
    "loss",
    "finalize",
    "pack",
)


def overrides(optimization: Optimization, method: str) -> bool:
    """Whether ``optimization`` brings its own ``method``: hooks that nobody overrides cost nothing."""
    return getattr(type(optimization), method) is not getattr(Optimization, method)


def changed(args: TrainingArguments, **changes: Any) -> Any:
    """A copy of ``args`` with other values of stock fields, and with what stock derives from these derived anew.

    Not `dataclasses.replace`: that makes the whole object anew, and a class of another library may refuse the fields
    that it filled in itself the first time, as TRL's GRPOConfig does.
    """
    made = copy.copy(args)
    vars(made).pop("_setup_devices", None)  # cached
    for name, value in changes.items():
        setattr(made, name, value)
    TrainingArguments.__post_init__(made)
    return made

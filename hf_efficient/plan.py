"""Plan: the optimizations of a training, in order, as one."""

import copy
import importlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_efficient.errors import ConfigError, ConflictError, unknown
from hf_efficient.optimization import Context, Optimization, Order, overrides, refuse_sharding
from hf_efficient.settings import parse

if TYPE_CHECKING:
    from torch import nn
    from transformers import TrainingArguments

OPTIMIZATIONS = {
    "activation_checkpointing": "hf_efficient.optimizations.activation_checkpointing:ActivationCheckpointing",
    "adapters": "hf_efficient.optimizations.adapters:Adapters",
    "attention": "hf_efficient.optimizations.attention:Attention",
    "channels_last": "hf_efficient.optimizations.channels_last:ChannelsLast",
    "compile": "hf_efficient.optimizations.compile:Compile",
    "data_loading": "hf_efficient.optimizations.data_loading:DataLoading",
    "data_pruning": "hf_efficient.optimizations.data_pruning:DataPruning",
    "deduplication": "hf_efficient.optimizations.deduplication:Deduplication",
    "distillation": "hf_efficient.optimizations.distillation:Distillation",
    "dropout_masks": "hf_efficient.optimizations.dropout_masks:DropoutMasks",
    "layer_freezing": "hf_efficient.optimizations.layer_freezing:LayerFreezing",
    "layerwise_learning_rates": "hf_efficient.optimizations.layerwise_learning_rates:LayerwiseLearningRates",
    "length_batching": "hf_efficient.optimizations.length_batching:LengthBatching",
    "optimizer": "hf_efficient.optimizations.optimizer:Optimizer",
    "packing": "hf_efficient.optimizations.packing:Packing",
    "precision": "hf_efficient.optimizations.precision:Precision",
    "progressive_resizing": "hf_efficient.optimizations.progressive_resizing:ProgressiveResizing",
    "pruning": "hf_efficient.optimizations.pruning:Pruning",
    "quantization": "hf_efficient.optimizations.quantization:Quantization",
    "sparse_embeddings": "hf_efficient.optimizations.sparse_embeddings:SparseEmbeddings",
    "structured_pruning": "hf_efficient.optimizations.structured_pruning:StructuredPruning",
    "threads": "hf_efficient.optimizations.threads:Threads",
    "vocabulary_trimming": "hf_efficient.optimizations.vocabulary_trimming:VocabularyTrimming",
    "weight_averaging": "hf_efficient.optimizations.weight_averaging:WeightAveraging",
    "weight_fusion": "hf_efficient.optimizations.weight_fusion:WeightFusion",
}
"""Name -> where the class lives. Strings, so that the core imports no instance and optional packages stay optional."""


def optimization_class(name: str, where: str = "optimizations") -> type[Optimization]:
    """The class behind a name of `OPTIMIZATIONS`."""
    if name not in OPTIMIZATIONS:
        raise ConfigError(f"{where}: {unknown('optimization', name, OPTIMIZATIONS)}")
    module, _, attribute = OPTIMIZATIONS[name].partition(":")
    return getattr(importlib.import_module(module), attribute)


def build_optimizations(settings: Mapping[str, Any] | None, where: str = "optimizations") -> list[Optimization]:
    """Instances from ``{name: {key: value}}``.

    ``{}``, null and true mean "with default settings"; false means "not listed".

    Raises:
        ConfigError: unknown name or key (with the nearest match), wrong type, a value that is not allowed.
    """
    if settings is None:
        return []
    if not isinstance(settings, Mapping):
        raise ConfigError(f"{where} must map names to settings, e.g. {{'precision': {{}}}}, got {settings!r}")
    built = []
    for name, values in settings.items():
        cls = optimization_class(name, where)
        if isinstance(values, Optimization):
            raise ConfigError(f"{where}.{name}: pass instances through callbacks=, not through the arguments")
        if values is False:
            continue
        built.append(parse(cls, {} if values in (None, True) else values, f"{where}.{name}"))
    return built


def conflict(optimizations: Sequence[Optimization]) -> tuple[str, str] | None:
    """Names of two that cannot run together; None if all can."""
    names = [optimization.name for optimization in optimizations]
    pairs = ((one.name, other) for one in optimizations for other in one.conflicts.intersection(names))
    return next(pairs, None)


class Plan:
    """Optimizations sorted by `Order`; each method does for all of them what it does for one.

    Raises:
        ConflictError: one name twice, or two that cannot run together.
    """

    def __init__(self, optimizations: Iterable[Optimization] = ()):
        self.optimizations = sorted(optimizations, key=lambda optimization: optimization.order)
        self.mapping: list[Optimization] = []
        """Copies of those that map batches, as their `prepare_model` left them."""
        names = [optimization.name for optimization in self.optimizations]
        for name in names:
            if names.count(name) > 1:
                raise ConflictError(f"{name} is given twice; keep it in args.optimizations or in callbacks=, not both")
        if pair := conflict(self.optimizations):
            raise ConflictError(f"{pair[0]} and {pair[1]} cannot run together; drop one of them")

    def __iter__(self) -> Iterator[Optimization]:
        return iter(self.optimizations)

    def __len__(self) -> int:
        return len(self.optimizations)

    def before(self, order: Order) -> "Plan":
        """The part of the plan that comes before ``order``."""
        return Plan(optimization for optimization in self if optimization.order < order)

    def overriding(self, method: str) -> list[Optimization]:
        return [optimization for optimization in self if overrides(optimization, method)]

    def check(self, context: Context) -> None:
        for optimization in self:
            optimization.check(context)

    def configure(self, args: "TrainingArguments") -> "TrainingArguments":
        for optimization in self:
            args = optimization.configure(args)
        return args

    def reset(self) -> None:
        for optimization in self:
            optimization.reset()

    def prepare_data(self, dataset: Any) -> Any:
        for optimization in self:
            dataset = optimization.prepare_data(dataset)
        return dataset

    def prepare_model(self, model: "nn.Module", context: Context) -> "nn.Module":
        if any(optimization.needs_original() for optimization in self):
            context.original = copy.deepcopy(model).eval()
        for optimization in self:
            refuse_sharding(optimization, model)
        for optimization in self:
            model = optimization.prepare_model(model, context)
            if overrides(optimization, "map_batch"):
                self.mapping.append(copy.copy(optimization))  # later ones calibrate on mapped batches already
        return model

    def choose_optimizer(self, cls: Any, settings: dict[str, Any], model: "nn.Module") -> tuple[Any, dict[str, Any]]:
        for optimization in self:
            cls, settings = optimization.choose_optimizer(cls, settings, model)
        return cls, settings

    def loss(self, loss: Any, inputs: Mapping[str, Any], outputs: Any, scale: Any) -> Any:
        for optimization in self:
            loss = optimization.loss(loss, inputs, outputs, scale)
        return loss

    def finalize(self, model: "nn.Module") -> "nn.Module":
        for optimization in self:
            model = optimization.finalize(model)
        return model

    def pack(self, folder: Path) -> None:
        for optimization in self:
            optimization.pack(folder)

    def state_dict(self) -> dict[str, dict[str, Any]]:
        return {optimization.name: optimization.state_dict() for optimization in self}

    def load_state_dict(self, states: Mapping[str, dict[str, Any]]) -> None:
        for optimization in self:
            if optimization.name in states:
                optimization.load_state_dict(states[optimization.name])

    def describe(self) -> list[dict[str, Any]]:
        return [{"name": optimization.name, **optimization.describe()} for optimization in self]

"""Fine-tune a transformer once and come out with a model that is measured smaller and faster.

Importing this package registers the loader of changed shapes with transformers (see `hf_efficient.checkpoint`), so that
plain `from_pretrained` reads compressed models; everything else is imported on first use.
"""

import importlib
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

# In a source checkout `tasks/` and `recipes/` lie beside this package; installed, they are its sub-packages.
_checkout = Path(__file__).resolve().parent.parent
if (_checkout / "setup.py").is_file() and (_checkout / "recipes").is_dir():
    __path__.append(str(_checkout))

# transformers imports torchao with its quantizers, which warns of each GPU kernel that this machine cannot load
_loggers = {logging.getLogger(name): logging.getLogger(name).level for name in ("torchao", "torch.utils._pytree")}
for _logger in _loggers:
    _logger.setLevel(logging.ERROR)

from hf_efficient.checkpoint import register_loader  # noqa: E402  (needs __path__)

for _logger, _level in _loggers.items():
    _logger.setLevel(_level)

register_loader()

# Functions named like their module stay there: `from hf_efficient.run import run`, `...measure import measure`.
_PUBLIC = {
    "ActivationCheckpointing": "optimizations.activation_checkpointing",
    "Adapters": "optimizations.adapters",
    "Attention": "optimizations.attention",
    "ChannelsLast": "optimizations.channels_last",
    "Compile": "optimizations.compile",
    "ConfigError": "errors",
    "ConflictError": "errors",
    "DataError": "errors",
    "DataPruning": "optimizations.data_pruning",
    "Deduplication": "optimizations.deduplication",
    "Distillation": "optimizations.distillation",
    "DropoutMasks": "optimizations.dropout_masks",
    "EfficientError": "errors",
    "EfficientMixin": "trainer",
    "EfficientSeq2SeqTrainer": "trainer",
    "EfficientSeq2SeqTrainingArguments": "arguments",
    "EfficientTrainer": "trainer",
    "EfficientTrainingArguments": "arguments",
    "HubError": "errors",
    "LayerFreezing": "optimizations.layer_freezing",
    "LayerwiseLearningRates": "optimizations.layerwise_learning_rates",
    "LengthBatching": "optimizations.length_batching",
    "ExportError": "errors",
    "Measurement": "measure",
    "MissingDependencyError": "errors",
    "NoEffectWarning": "errors",
    "Optimization": "optimization",
    "Optimizer": "optimizations.optimizer",
    "Order": "optimization",
    "Packing": "optimizations.packing",
    "Plan": "plan",
    "Precision": "optimizations.precision",
    "ProgressiveResizing": "optimizations.progressive_resizing",
    "Pruning": "optimizations.pruning",
    "Quantization": "optimizations.quantization",
    "Recipe": "recipe",
    "Report": "report",
    "RunResult": "job",
    "SparseEmbeddings": "optimizations.sparse_embeddings",
    "StructuredPruning": "optimizations.structured_pruning",
    "Task": "task",
    "VocabularyTrimming": "optimizations.vocabulary_trimming",
    "WeightAveraging": "optimizations.weight_averaging",
    "WeightFusion": "optimizations.weight_fusion",
    "build": "checkpoint",
    "efficient": "trainer",
    "exported_pipeline": "exported",
    "load_exported": "exported",
    "load_low_bit": "low_bit",
    "publish": "publishing",
}

__all__ = sorted(["__version__", *_PUBLIC])

if TYPE_CHECKING:
    from hf_efficient.arguments import EfficientSeq2SeqTrainingArguments as EfficientSeq2SeqTrainingArguments
    from hf_efficient.arguments import EfficientTrainingArguments as EfficientTrainingArguments
    from hf_efficient.checkpoint import build as build
    from hf_efficient.errors import ConfigError as ConfigError
    from hf_efficient.errors import ConflictError as ConflictError
    from hf_efficient.errors import DataError as DataError
    from hf_efficient.errors import EfficientError as EfficientError
    from hf_efficient.errors import ExportError as ExportError
    from hf_efficient.errors import HubError as HubError
    from hf_efficient.errors import MissingDependencyError as MissingDependencyError
    from hf_efficient.errors import NoEffectWarning as NoEffectWarning
    from hf_efficient.exported import exported_pipeline as exported_pipeline
    from hf_efficient.exported import load_exported as load_exported
    from hf_efficient.job import RunResult as RunResult
    from hf_efficient.low_bit import load_low_bit as load_low_bit
    from hf_efficient.measure import Measurement as Measurement
    from hf_efficient.optimization import Optimization as Optimization
    from hf_efficient.optimization import Order as Order
    from hf_efficient.optimizations.activation_checkpointing import ActivationCheckpointing as ActivationCheckpointing
    from hf_efficient.optimizations.adapters import Adapters as Adapters
    from hf_efficient.optimizations.attention import Attention as Attention
    from hf_efficient.optimizations.channels_last import ChannelsLast as ChannelsLast
    from hf_efficient.optimizations.compile import Compile as Compile
    from hf_efficient.optimizations.data_pruning import DataPruning as DataPruning
    from hf_efficient.optimizations.deduplication import Deduplication as Deduplication
    from hf_efficient.optimizations.distillation import Distillation as Distillation
    from hf_efficient.optimizations.dropout_masks import DropoutMasks as DropoutMasks
    from hf_efficient.optimizations.layer_freezing import LayerFreezing as LayerFreezing
    from hf_efficient.optimizations.layerwise_learning_rates import LayerwiseLearningRates as LayerwiseLearningRates
    from hf_efficient.optimizations.length_batching import LengthBatching as LengthBatching
    from hf_efficient.optimizations.optimizer import Optimizer as Optimizer
    from hf_efficient.optimizations.packing import Packing as Packing
    from hf_efficient.optimizations.precision import Precision as Precision
    from hf_efficient.optimizations.progressive_resizing import ProgressiveResizing as ProgressiveResizing
    from hf_efficient.optimizations.pruning import Pruning as Pruning
    from hf_efficient.optimizations.quantization import Quantization as Quantization
    from hf_efficient.optimizations.sparse_embeddings import SparseEmbeddings as SparseEmbeddings
    from hf_efficient.optimizations.structured_pruning import StructuredPruning as StructuredPruning
    from hf_efficient.optimizations.vocabulary_trimming import VocabularyTrimming as VocabularyTrimming
    from hf_efficient.optimizations.weight_averaging import WeightAveraging as WeightAveraging
    from hf_efficient.optimizations.weight_fusion import WeightFusion as WeightFusion
    from hf_efficient.plan import Plan as Plan
    from hf_efficient.publishing import publish as publish
    from hf_efficient.recipe import Recipe as Recipe
    from hf_efficient.report import Report as Report
    from hf_efficient.task import Task as Task
    from hf_efficient.trainer import EfficientMixin as EfficientMixin
    from hf_efficient.trainer import EfficientSeq2SeqTrainer as EfficientSeq2SeqTrainer
    from hf_efficient.trainer import EfficientTrainer as EfficientTrainer
    from hf_efficient.trainer import efficient as efficient


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_PUBLIC[name]}"), name)


def __dir__() -> list[str]:
    return __all__

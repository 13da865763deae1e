"""Activation checkpointing: keep each layer's input only, and compute the rest again in the backward pass."""

import inspect
import warnings
from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

from hf_efficient.errors import ConfigError, NoEffectWarning
from hf_efficient.optimization import Context, Optimization, Order, changed
from hf_efficient.proposal import Observed, Proposal

if TYPE_CHECKING:
    from torch import nn
    from transformers import TrainingArguments


@dataclass(eq=False, kw_only=True)
class ActivationCheckpointing(Optimization):
    """Trade compute for memory (Chen et al. 2016, arXiv 1604.06174): gradients are the same, dropout included."""

    every_n_layers: int = 1
    """Checkpoint every n-th layer: 1 saves the most memory, more saves time."""

    name = "activation_checkpointing"
    order = Order.PRECISION

    def __post_init__(self) -> None:
        if self.every_n_layers < 1:
            raise ConfigError(f"every_n_layers must be at least 1, got {self.every_n_layers}")
        self.reset()

    def reset(self) -> None:
        self._layers: dict[str, int] = {}

    @classmethod
    def proposals(cls, observed: Observed) -> Iterable[Proposal]:
        if observed.out_of_memory:  # it never saves time
            yield Proposal()

    def check(self, context: Context) -> None:
        model = context.model
        # Models that are no PreTrainedModel have no such flag, only the method
        if model is not None and not getattr(model, "supports_gradient_checkpointing", _enable(model) is not None):
            raise ConfigError(
                f"activation_checkpointing does not work for {type(model).__name__}: its code has no checkpointed "
                "layers; drop activation_checkpointing and take a smaller per_device_train_batch_size with more "
                "gradient_accumulation_steps"
            )
        if self.every_n_layers > 1 and model is not None and "every_n_layers" not in _parameters(model):
            raise ConfigError(
                f"activation_checkpointing.every_n_layers={self.every_n_layers} needs transformers >= 5.24 and one of "
                "its models; leave it at 1"
            )

    def configure(self, args: "TrainingArguments") -> "TrainingArguments":
        names = {field.name for field in fields(args)}
        prefix = "activation" if "activation_checkpointing" in names else "gradient"  # the name before 5.24
        given = getattr(args, f"{prefix}_checkpointing_kwargs") or {}
        wanted = {"use_reentrant": False, **given}  # the other way loses gradients of frozen inputs
        if self.every_n_layers > 1:
            wanted["every_n_layers"] = self.every_n_layers
        if getattr(args, f"{prefix}_checkpointing") and wanted == {"use_reentrant": False, **given}:
            warnings.warn("activation_checkpointing is what the training arguments say already", NoEffectWarning, 2)
            return args
        changes: dict[str, Any] = {f"{prefix}_checkpointing": True, f"{prefix}_checkpointing_kwargs": wanted}
        return changed(args, **changes)

    def prepare_model(self, model: "nn.Module", context: Context) -> "nn.Module":
        self.check(Context(args=context.args, model=model))  # a model from model_init is first seen here
        return model

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        from transformers.modeling_layers import GradientCheckpointingLayer

        super().on_train_begin(args, state, control, **kwargs)
        layers = [module for module in kwargs["model"].modules() if isinstance(module, GradientCheckpointingLayer)]
        checkpointed = sum(bool(layer.gradient_checkpointing) for layer in layers)
        self._layers = {"checkpointed_layers": checkpointed, "layers": len(layers)}

    def describe(self) -> dict[str, Any]:
        return dict(self._layers)


def _enable(model: "nn.Module") -> Any:
    """The method that switches checkpointing on; None where the model has none."""
    current = getattr(model, "activation_checkpointing_enable", None)
    return current or getattr(model, "gradient_checkpointing_enable", None)


def _parameters(model: "nn.Module") -> Any:
    return inspect.signature(_enable(model)).parameters

"""Structured pruning: cut whole layers out of a fine-tuned model."""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from hf_efficient.blocks import LayerStack, cut_layers, layer_stacks, layers_of, replace_layers
from hf_efficient.errors import ConfigError, NoEffectWarning
from hf_efficient.functional.structured import keep_layers, majority_share
from hf_efficient.optimization import Context, Optimization, Order
from hf_efficient.timing import evaluating

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel

Batches = Sequence[Mapping[str, torch.Tensor]]


@dataclass(eq=False, kw_only=True)
class StructuredPruning(Optimization):
    """Drop whole layers, then train on (Fan et al. 2020, arXiv 1909.11556; Sajjad et al. 2023, arXiv 2004.03844).

    Which layers go is measured: one after the other, the layer whose absence raises the loss on calibration batches
    least.
    """

    keep_layers: int | list[int] | None = None
    """How many layers to keep in each stack, or which (indices from 0); null keeps all."""
    calibration_batches: int = 8
    """Training batches on which a layer's importance is measured."""

    name = "structured_pruning"
    order = Order.STRUCTURE

    def __post_init__(self) -> None:
        keep = self.keep_layers
        if isinstance(keep, int) and keep < 1:
            raise ConfigError(f"keep_layers must be at least 1, got {keep}")
        if isinstance(keep, list) and (not keep or sorted(set(keep)) != keep or keep[0] < 0):
            raise ConfigError(f"keep_layers must be ascending indices from 0, each once, got {keep}")
        if self.calibration_batches < 1:
            raise ConfigError(f"calibration_batches must be at least 1, got {self.calibration_batches}")
        self.reset()

    def reset(self) -> None:
        self._kept: dict[str, list[int]] = {}  # stack path -> indices in the uncut model
        self._before: dict[str, int] = {}  # stack path -> number of layers in the uncut model
        self._importance: list[dict[str, Any]] = []

    def check(self, context: Context) -> None:
        model: Any = context.model
        if model is None or self.keep_layers is None:
            return
        if hasattr(model, "peft_config"):
            raise ConfigError(
                "structured_pruning cannot cut a model that carries PEFT adapters; merge them first "
                "(model = model.merge_and_unload())"
            )
        for stack in layer_stacks(model):
            self._check_stack(stack, len(layers_of(model, stack)))

    def _check_stack(self, stack: LayerStack, layers: int) -> None:
        asked = self.keep_layers
        needed = max(asked) + 1 if isinstance(asked, list) else asked or 0
        if needed > layers:
            allowed = f"indices from 0 to {layers - 1}" if isinstance(asked, list) else f"1 to {layers}"
            raise ConfigError(
                f"structured_pruning.keep_layers={asked} does not fit: the model has {layers} layers in "
                f"'{stack.path}'; allowed: {allowed}"
            )
        if stack.first_is_special and isinstance(asked, list) and asked[0] != 0:
            raise ConfigError(
                f"structured_pruning.keep_layers={asked} must contain 0: layer 0 of this model is special"
            )

    def prepare_model(self, model: Any, context: Context) -> "nn.Module":
        if self.keep_layers is None:
            warnings.warn("structured_pruning without keep_layers keeps every layer", NoEffectWarning, 2)
            return model
        self.check(Context(args=context.args, model=model))
        if not self._kept:
            decision = context.decide(self.name, lambda: self._choose(model, context))
            self._kept, self._before = decision["kept"], decision["before"]
            self._importance = decision["importance"]
        if all(len(kept) == self._before[path] for path, kept in self._kept.items()):
            warnings.warn(f"structured_pruning.keep_layers={self.keep_layers} keeps every layer", NoEffectWarning, 2)
            return model
        for stack in layer_stacks(model):
            if len(layers_of(model, stack)) == self._before[stack.path]:  # else: cut already, loaded from a checkpoint
                cut_layers(model, stack, self._kept[stack.path])
        return model

    def _choose(self, model: Any, context: Context) -> dict[str, Any]:
        """The layers to keep, as plain values: {"kept": {path: indices}, "before": {path: count}, "importance": []}."""
        stacks = layer_stacks(model)
        before = {stack.path: len(layers_of(model, stack)) for stack in stacks}
        kept: dict[str, list[int]]
        if isinstance(self.keep_layers, list):
            kept = dict.fromkeys(before, self.keep_layers)
            return {"kept": kept, "before": before, "importance": []}
        if all(count == self.keep_layers for count in before.values()):
            kept = {path: list(range(count)) for path, count in before.items()}
            return {"kept": kept, "before": before, "importance": []}
        batches = context.calibration(self.calibration_batches)
        _require_trained(model, batches)
        kept = {}
        importance: list[dict[str, Any]] = []
        for stack in stacks:
            kept[stack.path] = _least_loss(model, stack, self.keep_layers or 0, batches, importance)
        return {"kept": kept, "before": before, "importance": importance}

    def state_dict(self) -> dict[str, Any]:
        return {"kept": self._kept, "before": self._before, "importance": self._importance}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._kept, self._before, self._importance = state["kept"], state["before"], state["importance"]

    def describe(self) -> dict[str, Any]:
        return {"kept_layers": self._kept, "layers_before": self._before, "dropped_in_turn": self._importance}


def _require_trained(model: "PreTrainedModel", batches: Batches) -> None:
    """Importance under an untrained head is noise, so refuse it.

    Raises:
        ConfigError: a classifier that is no better than always answering the most frequent class.
    """
    right, labels = [], []
    for logits, target in _predictions(model, batches):
        valid = target != -100
        labels.append(target[valid])
        right.append(logits.argmax(-1)[valid] == target[valid])
    if not labels:
        return
    accuracy, majority = torch.cat(right).float().mean().item(), majority_share(torch.cat(labels))
    if accuracy <= majority:
        raise ConfigError(
            f"structured_pruning needs a trained model to tell which layers matter: on calibration data this one has "
            f"accuracy {accuracy:.2f}, the most frequent class alone gives {majority:.2f}. Fine-tune it "
            "first: set dense_epochs (e.g. dense_epochs=3), add a stage before this one, or name the layers "
            "(keep_layers: [0, 2, 4])"
        )


@torch.no_grad()
def _predictions(model: "PreTrainedModel", batches: Batches) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Pairs (logits (..., classes), integer labels (...)); empty for models that do not classify."""
    pairs = []
    with evaluating(model):
        for batch in batches:
            logits = getattr(model(**batch), "logits", None)
            labels = batch.get("labels")
            if logits is None or labels is None or labels.is_floating_point() or logits.shape[:-1] != labels.shape:
                break
            pairs.append((logits, labels))
    return pairs


def _least_loss(
    model: "PreTrainedModel", stack: LayerStack, keep: int, batches: Batches, importance: list[dict[str, Any]]
) -> list[int]:
    """Indices of the ``keep`` layers left after dropping, one by one, the layer that is missed least.

    Appends one entry per dropped layer to ``importance``: its index and the calibration loss without it.
    """
    layers = layers_of(model, stack)
    kept = list(range(len(layers)))
    try:
        while len(kept) > keep:
            candidates = kept[1:] if stack.first_is_special else kept
            losses = {}
            for candidate in candidates:
                replace_layers(model, stack, keep_layers(layers, [index for index in kept if index != candidate]))
                losses[candidate] = _mean_loss(model, batches)
            dropped = min(losses, key=lambda index: losses[index])
            kept.remove(dropped)
            importance.append({"stack": stack.path, "layer": dropped, "loss_without": losses[dropped]})
    finally:
        replace_layers(model, stack, layers)
    return kept


@torch.no_grad()
def _mean_loss(model: "PreTrainedModel", batches: Batches) -> float:
    with evaluating(model):
        losses = [model(**batch).loss.item() for batch in batches]
    return sum(losses) / len(losses)

"""What a batch holds and weighs: the part of `EfficientMixin` that forms batches and puts the loss together."""

import functools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from accelerate.utils import is_compiled_module
from torch import nn
from torch.utils.data import DataLoader, Sampler
from transformers import EvalPrediction, Trainer
from transformers.trainer_pt_utils import get_dataloader_sampler
from transformers.trainer_utils import EvalLoopOutput, has_length

from hf_efficient.errors import ConfigError
from hf_efficient.functional.rows import DenseGradients, has_sparse_gradients
from hf_efficient.phase import Phase
from hf_efficient.plan import Plan

if TYPE_CHECKING:
    _Base = Trainer
else:
    _Base = object

_SEQUENCES = ("input_ids", "input_values")
_LABELS = ("labels", "label", "label_ids")


class BatchMixin(_Base):
    """Samplers and loss of a Trainer class, as its optimizations change them."""

    phase: Phase | None = None
    """The phase that `train` is in."""

    _counts_items: bool | None = None
    _items: "Items | None" = None
    _weights: list[Any]
    """Of the micro-batches of this step so far."""

    @property
    def _plan(self) -> Plan:
        return Plan(self.optimizations) if self.phase is None else self.phase.plan  # type: ignore[attr-defined]

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler | None:
        dataset = self.train_dataset if train_dataset is None else train_dataset
        self._items, self._weights = None, []
        makers = self._plan.overriding("batch_sampler")
        if not makers or not has_length(dataset):
            return super()._get_train_sampler(train_dataset)
        count, lengths, sampler = len(dataset), lengths_of(dataset), None  # type: ignore[arg-type]
        for maker in makers:
            sampler = maker.batch_sampler(count, lengths, self.args, sampler) or sampler
        if sampler is None:
            return super()._get_train_sampler(train_dataset)
        self._items = Items.of(dataset, lengths, self._loss_shifts_labels, sampler.batches_per_pass)
        return sampler

    def _get_eval_sampler(self, eval_dataset: Any) -> Sampler | None:
        makers = self._plan.overriding("evaluation_order")
        by_batch = self.args.batch_eval_metrics or not self.args.eval_do_concat_batches
        lengths = lengths_of(eval_dataset) if makers and not by_batch and has_length(eval_dataset) else None
        orders = [] if lengths is None else [maker.evaluation_order(lengths) for maker in makers]
        order = next((order for order in orders if order is not None), None)
        return super()._get_eval_sampler(eval_dataset) if order is None else InOrder(order.tolist())

    def evaluation_loop(
        self,
        dataloader: DataLoader,
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        """Stock's; where an optimization changed the order of evaluation, results come back in the data's order."""
        sampler = get_dataloader_sampler(dataloader)
        stock = functools.partial(
            super().evaluation_loop, dataloader, description, prediction_loss_only, ignore_keys, metric_key_prefix
        )
        if not isinstance(sampler, InOrder):
            return stock()
        back, compute = np.argsort(sampler.order), self.compute_metrics
        if compute is not None:
            self.compute_metrics = lambda prediction: compute(_ordered_prediction(prediction, back))
        try:
            output = stock()
        finally:
            self.compute_metrics = compute
        return output._replace(
            predictions=_ordered(output.predictions, back), label_ids=_ordered(output.label_ids, back)
        )

    def training_step(
        self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: torch.Tensor | int | None = None
    ) -> torch.Tensor:
        """Stock's, on the batch that the optimizations make of it."""
        for optimization in self._plan.overriding("train_batch"):
            inputs = optimization.train_batch(inputs)
        return super().training_step(model, inputs, num_items_in_batch)

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
        scale, usual = self._loss_scale(stock_loss, model, given, num_items_in_batch)
        loss, outputs = stock_loss(model, inputs, return_outputs=True, num_items_in_batch=num_items_in_batch)
        loss = self.phase.plan.loss(loss, given, outputs, scale)
        if self._items is not None:
            weight = self._items.weight(given)
            self._weights.append(weight)
            loss = loss / scale * usual * weight
        return (loss, outputs) if return_outputs else loss

    def _clip_grad_norm(self, model: nn.Module) -> Any:
        """Stock's; where batches hold unequally much, the limit is that of an average one.

        With one limit for all, clipping would let a large batch count no more than a small one.
        """
        model = self._with_dense_gradients(model)
        if self._items is None:
            return super()._clip_grad_norm(model)
        weights, self._weights = self._weights, []
        mean = sum(map(float, weights)) / self.args.gradient_accumulation_steps
        if self.accelerator.num_processes > 1:  # gradients are averaged over processes
            mean = float(self.accelerator.reduce(torch.tensor(mean, device=self.args.device), "mean"))
        limit = self.args.max_grad_norm
        self.args.max_grad_norm = limit * mean
        try:
            return super()._clip_grad_norm(model)
        finally:
            self.args.max_grad_norm = limit

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        return super()._get_grad_norm(self._with_dense_gradients(model), grad_norm)

    def _with_dense_gradients(self, model: nn.Module) -> Any:
        is_sparse = self.phase is not None and has_sparse_gradients(model)
        return DenseGradients(model) if is_sparse else model

    def _loss_scale(
        self, stock_loss: Any, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: torch.Tensor | int | None
    ) -> tuple[Any, Any]:
        """From a mean over the micro-batch to the units of stock's loss: for this batch, and for one of mean size."""
        if num_items_in_batch is None or "labels" not in inputs:
            return 1.0, 1.0
        if self._counts_items is None:
            self._counts_items = self._loss_counts_items(stock_loss, model, inputs, num_items_in_batch)
        # Stock multiplies by the number of processes last, because DDP averages; a user's own loss does not
        across = self.args.average_tokens_across_devices
        processes = self.accelerator.num_processes
        factor = processes if across and type(self).compute_loss is Trainer.compute_loss else 1
        if not self._counts_items:
            return factor, factor
        items = count_items(inputs["labels"], self._loss_shifts_labels)
        micro_batches = self.args.gradient_accumulation_steps * (processes if across else 1)
        return items / num_items_in_batch * factor, factor / micro_batches

    @torch.no_grad()
    def _loss_counts_items(self, stock_loss: Any, model: nn.Module, inputs: dict[str, Any], items: Any) -> bool:
        """Whether the loss divides by the number of items of the whole accumulated batch.

        Nothing declares it: several models take `num_items_in_batch` and return the micro-batch's mean all the same. So
        try: only a loss that counts halves when there are twice as many.
        """
        model = model._orig_mod if is_compiled_module(model) else model  # type: ignore[assignment]  # traced for nothing
        model.eval()  # no dropout, so no random numbers are used up
        once, twice = (stock_loss(model, dict(inputs), num_items_in_batch=items * times) for times in (1, 2))
        model.train()
        return not torch.isclose(once, twice)


class InOrder(Sampler[int]):
    """Indices in a given order."""

    def __init__(self, order: list[int]):
        self.order = order

    def __len__(self) -> int:
        return len(self.order)

    def __iter__(self) -> Iterator[int]:
        return iter(self.order)


@dataclass
class Items:
    """What the loss is a mean over: labelled tokens, or examples with one label each.

    Attributes:
        total: in the training set.
        from_labels: counted from labels; else, where only the collator makes labels, tokens stand for them.
        shifted: the loss leaves the first label of a sequence out.
        batches: batches of a pass over it, over all processes.
    """

    total: int
    from_labels: bool
    shifted: bool
    batches: int

    @classmethod
    def of(cls, dataset: Any, lengths: torch.Tensor | None, shifted: bool, batches: int) -> "Items":
        column = next((name for name in _LABELS if name in _names(dataset)), None)
        if column is not None:
            counts = (count_items(torch.as_tensor(value), shifted) for value in _column(dataset, column))
            return cls(sum(map(int, counts)), True, shifted, batches)
        if lengths is None:
            raise ConfigError("batches of unequal size need labels or token ids in the training set to be weighted by")
        return cls(int(lengths.sum()), False, shifted, batches)

    def weight(self, inputs: Mapping[str, Any]) -> Any:
        """What a batch holds over what an average one holds."""
        if self.from_labels:
            items = count_items(inputs["labels"], self.shifted)
        else:
            items = inputs["attention_mask"].sum() if "attention_mask" in inputs else inputs["input_ids"].numel()
        return items * self.batches / self.total


def count_items(labels: torch.Tensor, shifted: bool = False) -> Any:
    """Terms of the loss: labelled tokens, or examples where each has one label or one row of floats.

    Args:
        labels: of a batch, or of one example.
        shifted: as in a causal language model, the first label of a sequence is not predicted.
    """
    if labels.is_floating_point():
        return len(labels) if labels.dim() > 1 else 1 if labels.dim() == 0 else labels.numel()
    return labels[..., 1:].ne(-100).sum() if shifted and labels.dim() else labels.ne(-100).sum()


def lengths_of(dataset: Any) -> torch.Tensor | None:
    """Tokens or samples of each example, shape (examples,); None where examples have no length of their own."""
    column = next((name for name in _SEQUENCES if name in _names(dataset)), None)
    if column is None:
        return None
    if _stored(dataset, column):
        values = dataset.select_columns(column).with_format("arrow")[:][column]
        if isinstance(values.type, pa.ExtensionType):  # spectrograms
            return None
        return torch.from_numpy(pc.list_value_length(values).to_numpy().astype(np.int64))
    return torch.tensor([len(value) for value in _column(dataset, column)])


def _names(dataset: Any) -> list[str]:
    """Keys of an example, as the collator will see them."""
    first = dataset[0] if len(dataset) else None
    return list(first) if isinstance(first, Mapping) else []


def _column(dataset: Any, name: str) -> Iterator[Any]:
    if _stored(dataset, name):
        return (value for rows in dataset.select_columns(name).iter(1000) for value in rows[name])
    return (dataset[index][name] for index in range(len(dataset)))


def _stored(dataset: Any, name: str) -> bool:
    """Whether the column can be read as it is: not made on the fly by a transform."""
    if not isinstance(dataset, datasets.Dataset):
        return False
    return name in dataset.column_names and dataset.format["type"] != "custom"


def _ordered_prediction(prediction: EvalPrediction, order: np.ndarray) -> EvalPrediction:
    return EvalPrediction(
        predictions=_ordered(prediction.predictions, order),
        label_ids=_ordered(prediction.label_ids, order),
        inputs=_ordered(prediction.inputs, order),
        losses=prediction.losses,  # one for each batch, repeated
    )


def _ordered(value: Any, order: np.ndarray) -> Any:
    if isinstance(value, tuple | list):
        return type(value)(_ordered(item, order) for item in value)
    if isinstance(value, Mapping):
        return {key: _ordered(item, order) for key, item in value.items()}
    return value if value is None else value[order]

"""Batches as a changed model takes them: the trainer's collator, followed by what optimizations map batches with.

The mapping stays in place when a training ends, because data sets stay as they are: evaluation, prediction and export
go through `trainer.data_collator` too. It belongs to the trainer and its model, so a later training either takes it up
or, if it starts from another model, undoes it.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hf_efficient.optimization import Optimization
    from hf_efficient.plan import Plan


class MappedCollator:
    """A collator whose batches pass through the `map_batch` of optimizations.

    Attributes:
        collator: the trainer's own.
        mapping: in the order in which they map; filled while `Plan.prepare_model` runs.
        processor: tokenizer or image processor that the trainer had before.
    """

    def __init__(self, collator: Callable[[Sequence[Any]], Any], mapping: "list[Optimization]", processor: Any):
        self.collator = collator
        self.mapping = mapping
        self.processor = processor

    def __call__(self, examples: Sequence[Any]) -> Any:
        batch = self.collator(examples)
        for optimization in self.mapping:
            batch = optimization.map_batch(batch)
        return batch


def map_batches(trainer: Any, plan: "Plan") -> None:
    """Let every batch from here on go through what ``plan`` prepares, in place of what an earlier training had it do.

    Optimizations of an earlier training that are not in ``plan`` go on mapping: the model is still as they left it.
    """
    names = {optimization.name for optimization in plan.overriding("map_batch")}
    if not names:
        return
    staying = [optimization for optimization in _earlier(trainer) if optimization.name not in names]
    unmap_batches(trainer)
    plan.mapping[:] = staying
    _set_collator(trainer, MappedCollator(trainer.data_collator, plan.mapping, trainer.processing_class))


def unmap_batches(trainer: Any) -> None:
    """Back to the collator and the processor that the trainer was given."""
    mapped = trainer.data_collator
    if isinstance(mapped, MappedCollator):
        _set_collator(trainer, mapped.collator)
        set_processor(trainer, mapped.processor)


def processor_of(trainer: Any) -> Any:
    """The trainer's processor or, as stock saving has it, the tokenizer of its collator; None without either."""
    given = getattr(trainer, "processing_class", None)
    own = trainer.data_collator
    own = own.collator if isinstance(own, MappedCollator) else own
    return getattr(own, "tokenizer", None) if given is None else given


def set_processor(trainer: Any, processor: Any) -> None:
    """The tokenizer or image processor that checkpoints, the finished model and exports get."""
    trainer.processing_class = trainer.callback_handler.processing_class = processor


def states_of_model(trainer: Any) -> Mapping[str, dict[str, Any]]:
    """`state_dict` of each optimization that maps the batches of ``trainer``'s model: what a further training of this
    model has to go by."""
    return {optimization.name: optimization.state_dict() for optimization in _earlier(trainer)}


def _earlier(trainer: Any) -> "list[Optimization]":
    collator = trainer.data_collator
    return list(collator.mapping) if isinstance(collator, MappedCollator) else []


def _set_collator(trainer: Any, collator: Any) -> None:
    trainer.data_collator = collator
    vars(trainer).pop("_eval_dataloaders", None)  # persistent workers go on with the collator they were started with

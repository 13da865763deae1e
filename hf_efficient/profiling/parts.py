"""Where a model's time and bytes go: embedding, attention, feed-forward, head, and the fixed cost of a call."""

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from hf_efficient.blocks import inputs_of, layer_stacks, layers_of, output_of
from hf_efficient.cutting.shape import Shape, cut_copy
from hf_efficient.families import FFN
from hf_efficient.machine import measurement_lock
from hf_efficient.timing import TorchRuntime, Work, best_threads, undisturbed

if TYPE_CHECKING:
    from transformers import PreTrainedModel

EMBEDDING, ATTENTION, FEED_FORWARD, HEAD, OVERHEAD = "embedding", "attention", "feed-forward", "head", "overhead"
PARTS = (EMBEDDING, ATTENTION, FEED_FORWARD, HEAD, OVERHEAD)
"""embedding: until the first layer. attention: of a layer, what comes before its feed-forward network, norms included.
head: after the last layer. overhead: what a call costs whatever it computes, see `time_parts`."""

ROUNDS = 5
BATCHES = 8
"""Batches in a round at most; of single examples, four times as many."""


def bytes_of_parts(model: "PreTrainedModel") -> dict[str, int]:
    """Bytes of the parameters of each part; shared ones count once, where they are used first."""
    owner = {}
    embeddings = [module for path, module in model.named_modules() if "embed" in path.rpartition(".")[2]]
    tables = [module for module in model.modules() if isinstance(module, nn.Embedding)]
    for stack in layer_stacks(model):
        ffn = [sublayer for sublayer in stack.sublayers if sublayer.kind == FFN]
        for layer in layers_of(model, stack):
            for sublayer in ffn:
                for module in (*(module for _, module in inputs_of(layer, sublayer)), output_of(layer, sublayer)):
                    owner.update({id(parameter): FEED_FORWARD for parameter in module.parameters()})
            for parameter in layer.parameters():
                owner.setdefault(id(parameter), ATTENTION)
    for module in (*embeddings, *tables):
        for parameter in module.parameters():
            owner.setdefault(id(parameter), EMBEDDING)
    found = dict.fromkeys(PARTS[:-1], 0)
    for parameter in model.parameters():
        found[owner.get(id(parameter), HEAD)] += parameter.nbytes
    return found


def time_parts(
    model: "PreTrainedModel", examples: Sequence[Mapping[str, Any]], collate: Callable[..., Any], batch_size: int
) -> dict[str, float]:
    """Milliseconds of an average batch by part, in eager PyTorch where the model is; they add up to the whole.

    What a call costs whatever it computes (Python, dispatch, small kernels) is measured on the same layers with one
    unit in each sublayer and, of texts, one token. It is taken out of each part and told apart as overhead.
    """
    narrow = _narrow(model)
    whole = _timeline(model, examples, collate, batch_size)
    least = _timeline(narrow, [_one_token(example) for example in examples[:1]], collate, 1)
    fixed = {part: min(least[part], whole[part]) for part in whole}
    return {**{part: whole[part] - fixed[part] for part in whole}, OVERHEAD: sum(fixed.values())}


def _narrow(model: "PreTrainedModel") -> "PreTrainedModel":
    shape = Shape.of(model)
    shape.units = {
        stack.path: {sublayer.kind: [[0]] * len(shape.layers[stack.path]) for sublayer in stack.sublayers}
        for stack in layer_stacks(model)
    }
    return cut_copy(model, shape)


def _one_token(example: Mapping[str, Any]) -> dict[str, Any]:
    """``example`` with all that is as long as its tokens cut to the first."""
    if "input_ids" not in example:
        return dict(example)
    length = len(example["input_ids"])
    return {
        name: value[:1] if hasattr(value, "__len__") and not isinstance(value, str) and len(value) == length else value
        for name, value in example.items()
    }


def _timeline(
    model: "PreTrainedModel", examples: Sequence[Mapping[str, Any]], collate: Callable[..., Any], batch_size: int
) -> dict[str, float]:
    """Milliseconds of an average batch in each part but overhead: of the round whose total is the median."""
    runtime = TorchRuntime(model)
    size = min(batch_size, len(examples))
    count = min(-(-len(examples) // size), BATCHES if size > 1 else 4 * BATCHES)
    work = Work(runtime, list(examples[: size * count]), collate, prepare_is_timed=False, size=size)
    rounds = []
    with measurement_lock(), undisturbed(runtime):
        best_threads(work, warmup=2)
        for _ in range(ROUNDS):
            with _marking(model) as spent:
                for _ in range(count):
                    work.run()
            rounds.append({part: 1000 * seconds / count for part, seconds in spent.items()})
    return sorted(rounds, key=lambda parts: sum(parts.values()))[ROUNDS // 2]


@contextlib.contextmanager
def _marking(model: "PreTrainedModel") -> Iterator[dict[str, float]]:
    """Seconds that forward passes of ``model`` spend in each part: hooks mark where one ends and the next begins."""
    spent = dict.fromkeys(PARTS[:-1], 0.0)
    device = next(model.parameters()).device
    part, since = EMBEDDING, 0.0

    def enter(new: str | None) -> None:
        nonlocal part, since
        if device.type != "cpu":
            torch.accelerator.synchronize(device)
        now = time.perf_counter()
        if since:
            spent[part] += now - since
        part, since = new or part, now if new else 0.0

    handles = [
        model.register_forward_pre_hook(lambda *_: enter(EMBEDDING)),
        model.register_forward_hook(lambda *_: enter(None)),
    ]
    stacks = layer_stacks(model)
    for stack in stacks:
        layers = layers_of(model, stack)
        after = HEAD if stack is stacks[-1] else EMBEDDING
        for layer in layers:
            handles.append(layer.register_forward_pre_hook(lambda *_: enter(ATTENTION)))
            for ffn in (sublayer for sublayer in stack.sublayers if sublayer.kind == FFN):
                first = inputs_of(layer, ffn)[0][1]
                handles.append(first.register_forward_pre_hook(lambda *_: enter(FEED_FORWARD)))
        handles.append(layers[-1].register_forward_hook(lambda *_, after=after: enter(after)))
    try:
        yield spent
    finally:
        for handle in handles:
            handle.remove()

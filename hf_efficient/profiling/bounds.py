"""The most that each technique can give here: measured on a model from which all was taken that it could take."""

import contextlib
import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from hf_efficient.blocks import layer_stacks, layers_of, units_of
from hf_efficient.candidates import CANDIDATES
from hf_efficient.cutting.costs import timed
from hf_efficient.cutting.shape import Shape, cut_copy
from hf_efficient.errors import EfficientError
from hf_efficient.measure import bytes_on_disk, state_bytes
from hf_efficient.optimization import Served
from hf_efficient.runtimes import ExportedRuntime
from hf_efficient.serving import KINDS, TORCH, serving
from hf_efficient.timing import TorchRuntime

if TYPE_CHECKING:
    from transformers import PreTrainedModel

NARROWEST = 1 / 32
"""Share of the feed-forward features that the narrowest copy keeps; of the heads it keeps one."""
WHOLE = "eager PyTorch, fp32"


@dataclass(frozen=True)
class Bound:
    """What a technique gives at most, accuracy not asked for.

    Attributes:
        technique: in words.
        setting: the option that asks for it.
        speedups: batch size -> times faster than the model in eager PyTorch; None where nothing was measured.
        smaller: times fewer bytes on disk.
        note: why nothing was measured, or what the figure rests on.
    """

    technique: str
    setting: str
    speedups: dict[int, float] | None
    smaller: float | None
    note: str = ""

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class _Variant:
    technique: str
    setting: str
    model: nn.Module
    kind: str = TORCH
    note: str = ""


def bounds(
    model: "PreTrainedModel",
    examples: Sequence[Mapping[str, Any]],
    collate: Callable[[list[Any]], Mapping[str, Any]],
    batch_sizes: Sequence[int],
    tell: Callable[[str], None],
) -> list[Bound]:
    """A bound for every technique, the fastest at the last batch size first; what cannot be measured comes last.

    Args:
        tell: called with what is being done.
    """
    refused, ratios, sizes, variants = [], {}, {WHOLE: state_bytes(model)}, {}
    with contextlib.ExitStack() as stack:
        served = {WHOLE: Served(TorchRuntime(model), examples, collate)}

        def add(variant: _Variant) -> None:
            tell(variant.technique)
            try:
                one = served[variant.technique] = stack.enter_context(
                    serving(variant.model, variant.kind, examples, collate)
                )
            except EfficientError as error:
                refused.append(Bound(variant.technique, variant.setting, None, None, str(error)))
                return
            variants[variant.technique] = variant
            sizes[variant.technique] = _bytes(one, variant.model)

        for variant in _variants(model):
            add(variant)
        tell("timing all of them in turns")
        times = {size: timed(served, size) for size in batch_sizes}
        exported = [name for name, variant in variants.items() if variant.kind != TORCH]
        if exported and layer_stacks(model)[0].sublayers:
            fastest = variants[min(exported, key=times[batch_sizes[-1]].__getitem__)]
            name = f"all cuts, then {fastest.technique}"
            add(_Variant(name, f"structured_pruning, {fastest.setting}", _smallest(model), fastest.kind))
            if name in served:
                for size in batch_sizes:
                    times[size].update(timed({WHOLE: served[WHOLE], name: served[name]}, size))
    for name in variants:
        ratios[name] = {size: times[size][WHOLE] / times[size][name] for size in batch_sizes}
    made = [
        Bound(name, variant.setting, ratios[name], sizes[WHOLE] / sizes[name], variant.note)
        for name, variant in variants.items()
    ]
    made.sort(key=lambda bound: -(bound.speedups or {})[batch_sizes[-1]])
    return [*made, *_vocabulary(model, examples), *refused]


def _variants(model: "PreTrainedModel") -> Iterator[_Variant]:
    for kind, choice in KINDS.items():
        if choice is not None:
            format, quantize = choice
            words = f"export to {format}" + ("" if CANDIDATES[choice].exact else f" int8 ({quantize})")
            yield _Variant(words, f"export: format={format}, quantize={quantize}", model, kind)
    halved: nn.Module = copy.deepcopy(model)
    yield _Variant("bf16 weights in PyTorch", "from_pretrained(dtype=bf16)", halved.to(torch.bfloat16))
    layers = Shape.of(model).layers
    one = {path: kept[:1] for path, kept in layers.items()}
    yield _Variant("one layer left", "structured_pruning: keep_layers", cut_copy(model, Shape(one, {})))
    if any(stack.sublayers for stack in layer_stacks(model)):
        narrow = cut_copy(model, Shape(layers, _narrowest(model, layers)))
        share = f"1/{round(1 / NARROWEST)}"
        note = f"one head and {share} of the features in each layer"
        yield _Variant("fewest heads and features", "structured_pruning: keep_heads, keep_ffn", narrow, note=note)
        yield _Variant("all cuts: one such layer", "structured_pruning: target_speedup", _smallest(model))


def _smallest(model: "PreTrainedModel") -> "PreTrainedModel":
    one = {path: kept[:1] for path, kept in Shape.of(model).layers.items()}
    return cut_copy(model, Shape(one, _narrowest(model, one)))


def _narrowest(model: "PreTrainedModel", layers: Mapping[str, Sequence[int]]) -> dict[str, dict[str, list[list[int]]]]:
    found: dict[str, dict[str, list[list[int]]]] = {}
    for stack in layer_stacks(model):
        found[stack.path] = {}
        for sublayer in stack.sublayers:
            units = units_of(model, layers_of(model, stack)[0], sublayer)
            kept = 1 if sublayer.kind == "attention" else max(1, round(units * NARROWEST))
            found[stack.path][sublayer.kind] = [list(range(kept)) for _ in layers[stack.path]]
    return found


def _bytes(served: Served, model: nn.Module) -> int:
    runtime = served.runtime
    return bytes_on_disk(runtime.folder) if isinstance(runtime, ExportedRuntime) else state_bytes(model)


def _vocabulary(model: "PreTrainedModel", examples: Sequence[Mapping[str, Any]]) -> list[Bound]:
    """Bytes only: a look-up takes as long in a small table as in a large one."""
    if not all("input_ids" in example for example in examples):
        return []
    table: Any = model.get_input_embeddings()
    rows = len(table.weight)
    used = len({token for example in examples for token in example["input_ids"]})
    saved = table.weight.nbytes * (1 - used / rows)
    total = state_bytes(model)
    note = f"these {len(examples)} examples use {used:,} of {rows:,} tokens; no effect on time"
    return [Bound("only tokens that occur", "vocabulary_trimming", None, total / (total - saved), note)]

"""An already fine-tuned model made smaller and faster without any training: cut to a target, and repaired."""

import copy
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import send_to_device
from torch import nn

from hf_efficient.arguments import EfficientTrainingArguments
from hf_efficient.errors import ConfigError
from hf_efficient.functional.batching import by_length
from hf_efficient.optimization import Context
from hf_efficient.plan import build_optimizations
from hf_efficient.serving import serving

TIMED_EXAMPLES = 128
BATCH = 32


def compress(
    model: nn.Module,
    examples: Sequence[Mapping[str, Any]],
    collate: Callable[[list[Any]], Mapping[str, Any]],
    *,
    name: str = "structured_pruning",
    seed: int = 42,
    **settings: Any,
) -> tuple[nn.Module, dict[str, Any]]:
    """A smaller copy of ``model``, with what was changed.

        small, changes = compress(model, train, collate, target_speedup=1.5)
        small.save_pretrained("small")

    Args:
        examples: real training examples, model-ready and labelled: some hundreds to a thousand.
        collate: from a list of examples to a batch of tensors.
        name: the optimization that changes the model.
        seed: decides which examples are used.
        settings: of that optimization, e.g. ``target_speedup``, ``runtime`` (see `docs/optimizations`).

    Raises:
        ConfigError: bad settings, an untrained model, or a target that cannot be met, with the best that can.
    """
    if not len(examples):
        raise ConfigError("compress measures on real examples, and there are none; pass training examples")
    (optimization,) = build_optimizations({name: settings}, "compress")
    order = torch.randperm(len(examples), generator=torch.Generator().manual_seed(seed)).tolist()
    drawn = [examples[index] for index in order[:TIMED_EXAMPLES]]
    device = next(model.parameters()).device
    made: Any = copy.deepcopy(model)

    def calibration(batches: int) -> list[Mapping[str, torch.Tensor]]:
        chosen = by_length([examples[index] for index in order[: batches * BATCH]])
        collated = [collate(chosen[start : start + BATCH]) for start in range(0, len(chosen), BATCH)]
        return [send_to_device(batch, device) for batch in collated]

    with tempfile.TemporaryDirectory() as folder:
        context = Context(
            args=EfficientTrainingArguments(folder, report_to="none", use_cpu=device.type == "cpu"),
            model=made,
            folder=Path(folder),
            calibration=calibration,
            serving=lambda one, kind: serving(one, kind, drawn, collate),
        )
        optimization.check(context)
        made = optimization.prepare_model(made, context)
    return made, optimization.describe()

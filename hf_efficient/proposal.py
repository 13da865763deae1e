"""What optimizations propose to `autotune`, and what they go by."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from torch import nn
    from transformers import TrainingArguments


@dataclass(frozen=True)
class Proposal:
    """A way to train that may be faster.

    Attributes:
        settings: of the optimization that proposes it.
        gain: the share of a step's time that it saves at the very best; by it `autotune` decides whether trying pays.
        setup_seconds: what it takes before the first step, such as compiling; in the trial and in the training.
        args: training arguments that it changes, by their stock names, where no optimization does.
        beside: other optimizations, by name with their settings, that it is tried together with; what pays only
            together is not found one by one.
    """

    settings: Mapping[str, Any] = field(default_factory=dict)
    gain: float = 1.0
    setup_seconds: float = 0.0
    args: Mapping[str, Any] = field(default_factory=dict)
    beside: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


@dataclass(frozen=True)
class Observed:
    """What is known of a training after a few of its steps.

    Attributes:
        args: its training arguments.
        model: before the training, on the CPU or wherever the user had put it.
        lengths: tokens of each training example, shape (examples,); None where examples have no length of their own.
        computing, updating, waiting: share of a step's time in forward and backward passes, in the optimizer, and for
            data; 0 where memory ran out.
        padding: share of the tokens in the batches that were seen.
        out_of_memory: only what saves memory helps.
    """

    args: "TrainingArguments"
    model: "nn.Module"
    lengths: "torch.Tensor | None" = None
    computing: float = 0.0
    updating: float = 0.0
    waiting: float = 0.0
    padding: float = 0.0
    out_of_memory: bool = False

"""TrainingArguments with the few fields that EfficientTrainer adds."""

from dataclasses import dataclass, field

from transformers import Seq2SeqTrainingArguments, TrainingArguments

from hf_efficient.communication import Communication
from hf_efficient.errors import ConfigError
from hf_efficient.plan import build_optimizations
from hf_efficient.settings import parse


@dataclass
class EfficientFields:
    """Goes in front of any class of training arguments, as `EfficientMixin` does of trainers.

    Define such a class in a module: checkpoints keep the arguments pickled.
    """

    optimizations: dict | str | None = field(
        default=None,
        metadata={
            "help": "Optimizations and their settings, e.g. {'precision': {}, 'structured_pruning': {'keep_layers': 4}}"
            " (a JSON string on the command line)."
        },
    )
    dense_epochs: float = field(
        default=0,
        metadata={
            "help": "Epochs of plain fine-tuning before the optimizations that change the model take hold; "
            "num_train_epochs counts the epochs after them."
        },
    )
    measure_seconds: float = field(
        default=2.0,
        metadata={
            "help": "Time for each latency and throughput measurement before and after; 0 leaves the report out."
        },
    )

    autotune: bool = field(
        default=False,
        metadata={
            "help": "Try ways to train for a few real steps each when the trainer is made, and take the fastest on "
            "this machine. Settings that are given stay as they are."
        },
    )

    max_skipped_steps: int | None = field(
        default=None,
        metadata={
            "help": "Leave out optimizer steps whose gradients are not finite, at most so many in a row, and take "
            "smaller ones for a while after; None takes them all, as stock does."
        },
    )

    split_on_out_of_memory: bool = field(
        default=False,
        metadata={
            "help": "Take micro-batches in parts where memory runs out, and go on so: the gradients of a step are "
            "those of the whole batch. On one process."
        },
    )

    async_save: bool = field(
        default=False,
        metadata={
            "help": "Go on with the training while a checkpoint that is written is brought to the disk, sealed and "
            "named. A callback's on_save may come before it is there."
        },
    )

    communication: dict | str | None = field(
        default=None,
        metadata={
            "help": "What processes send each other, e.g. {'gradients': 'bf16'} or {'local_steps': 8} (a JSON string "
            "on the command line); None: all gradients of every step."
        },
    )

    # Parsed from a JSON string by TrainingArguments
    _VALID_DICT_FIELDS = [*TrainingArguments._VALID_DICT_FIELDS, "optimizations", "communication"]

    def __post_init__(self) -> None:
        super().__post_init__()  # type: ignore[misc]  # of the TrainingArguments class it is mixed into
        if isinstance(self.optimizations, str):
            raise ConfigError(f"optimizations must be a mapping or its JSON text, got {self.optimizations!r}")
        build_optimizations(self.optimizations)  # a typing error shows here, before any model is loaded
        if self.communication is not None:
            parse(Communication, self.communication, "communication")  # type: ignore[arg-type]
        if self.dense_epochs < 0:
            raise ConfigError(f"dense_epochs must not be negative, got {self.dense_epochs}")
        if self.measure_seconds < 0:
            raise ConfigError(f"measure_seconds must not be negative, got {self.measure_seconds}")
        if self.max_skipped_steps is not None and self.max_skipped_steps < 1:
            raise ConfigError(
                f"max_skipped_steps must be at least 1, got {self.max_skipped_steps}; null takes every step"
            )


@dataclass
class EfficientTrainingArguments(EfficientFields, TrainingArguments):
    """`transformers.TrainingArguments` plus the fields of `EfficientFields`."""


@dataclass
class EfficientSeq2SeqTrainingArguments(EfficientFields, Seq2SeqTrainingArguments):
    """`transformers.Seq2SeqTrainingArguments` plus the fields of `EfficientFields`."""

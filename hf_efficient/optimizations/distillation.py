"""Distillation: the model learns from a teacher, besides from labels."""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from accelerate.utils import gather_object

from hf_efficient.calibration import require_trained
from hf_efficient.capture import RELATIONS, Capture, Place, depths
from hf_efficient.errors import ConfigError, NoEffectWarning
from hf_efficient.example_cache import FOLDER, ExampleCache
from hf_efficient.functional.distill import (
    hidden_loss,
    layer_map,
    relation_heads,
    relation_loss,
    soft_cross_entropy,
    soft_targets,
    squared_error,
)
from hf_efficient.functional.example_loss import shifts_labels
from hf_efficient.functional.examples import counted_outputs, decoder_positions, positions
from hf_efficient.functional.projector import Projector
from hf_efficient.optimization import Context, Optimization, Order
from hf_efficient.pretrained import resolve_model
from hf_efficient.teacher import SELF, Teacher, Teachers, logits_of

if TYPE_CHECKING:
    from torch import nn
    from transformers import TrainingArguments

CALIBRATION_BATCHES = 8
"""On which a teacher has to be better than the most frequent class."""

Pair = tuple[Place, Place]
"""A layer of the student and the teacher's that it learns from."""


@dataclass(eq=False, kw_only=True)
class Distillation(Optimization):
    """Learn from a teacher: its outputs, hidden states and attention, besides the labels.

    The loss is ``(1 - alpha) * loss + alpha * KD + hidden * H + attention * A``: KD as in Hinton et al. 2015 (arXiv
    1503.02531), H the error of hidden states over the teacher's mean square, A the divergence of self-attention
    relations as in MiniLMv2 (Wang et al. 2021, arXiv 2012.15828). What the teacher says about an example is kept on
    disk, so that later epochs cost no pass through it.
    """

    teacher: str | list[str] = SELF
    """`self`: the model as it was before this phase changed it; else a checkpoint's folder or Hub id, or an earlier
    stage of the recipe; of a list, the mean of their probabilities, hidden states and attention from the first."""
    temperature: float = 2.0
    """Softens the probabilities of both."""
    alpha: float = 0.9
    """Weight of the teacher's outputs against the labels, from 0 to 1."""
    hidden: float = 1.0
    """Weight of hidden states; 0 leaves them out."""
    attention: float = 0.0
    """Weight of the last layer's attention relations; 0 leaves them out."""
    layers: Literal["auto"] | list[list[int]] = "auto"
    """Pairs [student layer, teacher layer], counted from 0; auto: evenly spread, the last on the last."""
    cache: bool | str = True
    """Where to keep what the teacher says: a folder, or true for one in the output folder; false: nowhere."""
    cache_gb: float = 4.0
    """Size of the cache, in GB of 1e9 bytes, at which it takes no more."""
    shard_teacher: bool = False
    """Each of several processes holds a part of the teacher, layers come together while they compute; for a teacher
    that does not fit. With cache: false, since all processes ask at the same time."""

    name = "distillation"
    order = Order.LOSS
    stage_settings = frozenset({"teacher"})

    def __post_init__(self) -> None:
        if not self._names or not all(self._names):
            raise ConfigError(f"teacher must be '{SELF}', a folder, a Hub id, or a list of them, got {self.teacher!r}")
        if self.temperature <= 0:
            raise ConfigError(f"temperature must be greater than 0, got {self.temperature:g}")
        if not 0 <= self.alpha <= 1:
            raise ConfigError(f"alpha must be from 0 to 1, got {self.alpha:g}")
        for setting in ("hidden", "attention"):
            if getattr(self, setting) < 0:
                raise ConfigError(f"{setting} must not be negative, got {getattr(self, setting):g}")
        if self.cache == "" or self.cache_gb <= 0:
            raise ConfigError("cache must be true, false or a folder, and cache_gb greater than 0")
        if self.shard_teacher and self.cache:
            raise ConfigError(
                "shard_teacher needs cache: false: with a cache some processes would ask the teacher while others wait"
            )
        pairs = [] if self.layers == "auto" else self.layers
        if self.layers != "auto" and (not pairs or any(len(pair) != 2 or min(pair) < 0 for pair in pairs)):
            raise ConfigError(f"layers must be auto or pairs [student layer, teacher layer] from 0, got {self.layers}")
        self._capture: Capture | None = None
        self.reset()

    @property
    def _names(self) -> list[str]:
        return [self.teacher] if isinstance(self.teacher, str) else self.teacher

    @property
    def _active(self) -> bool:
        return any((self.alpha, self.hidden, self.attention))

    def reset(self) -> None:
        if self._capture is not None:
            self._capture.remove()
        self._capture = None
        self._teachers: Teachers | None = None
        self._cache: ExampleCache | None = None
        self._pairs: list[Pair] = []
        self._projectors: dict[int, Projector] = {}
        self._saved: dict[str, Any] = {}
        self._terms: dict[str, list[Any]] = {}  # name -> [sum, micro-batches] of this epoch
        self._described: dict[str, Any] = {}

    def needs_original(self) -> bool:
        return self._active and SELF in self._names

    def check(self, context: Context) -> None:
        for name in self._names:
            if name != SELF:
                resolve_model(name)
        if context.model is not None and (self.hidden or self.attention):
            depths(context.model, self.name, "set hidden: 0 and attention: 0 to learn from the teacher's outputs alone")

    def prepare_model(self, model: Any, context: Context) -> "nn.Module":
        if not self._active:
            warnings.warn("distillation with alpha, hidden and attention at 0 learns nothing", NoEffectWarning, 2)
            return model
        self.check(Context(args=context.args, model=model))
        shares = self.shard_teacher and context.args.world_size > 1
        if self.shard_teacher and not shares:
            warnings.warn("distillation.shard_teacher: one process holds all of the teacher", NoEffectWarning, 2)
        teachers = [Teacher.of(name, model, context, shares) for name in self._names]
        fingerprints = self._agreed(teachers, context)
        self._pairs = self._paired(model, teachers[0])
        theirs = [pair[1] for pair in self._pairs] if self.hidden else []
        related = [pair[1] for pair in self._related] if self.attention else []
        self._teachers = Teachers(teachers, self.alpha > 0, theirs, related, _mixed_precision(context.args))
        if self.cache:
            folder = context.folder / FOLDER if self.cache is True else Path(self.cache).expanduser()
            folder = folder / self._teachers.signature(fingerprints)
            self._cache = ExampleCache(self.name, folder, self.cache_gb * 1e9, self._saved.get("cache"))
        return model

    def _agreed(self, teachers: list[Teacher], context: Context) -> dict[str, str]:
        """Name of each teacher -> its fingerprint, the same as when the training began.

        Raises:
            ConfigError: a teacher that is not trained, or another one than before the restart.
        """

        def judge(asked: list[Teacher]) -> dict[str, str]:
            batches = context.calibration(CALIBRATION_BATCHES) if asked else ()
            for teacher in asked:
                labelled = [teacher.labelled(batch) for batch in batches]
                require_trained(f"distillation from '{teacher.name}'", teacher.model, labelled)
            return {teacher.name: teacher.fingerprint() for teacher in teachers}

        if shared := [teacher for teacher in teachers if teacher.shared_out]:
            judge(shared)  # by all processes
        agreed = context.decide(self.name, lambda: judge([one for one in teachers if not one.shared_out]))
        for teacher in teachers:
            if agreed.get(teacher.name) == teacher.fingerprint():
                continue
            whole = "resume with the model that this phase was started with, not one that it has changed already"
            remedy = whole if teacher.name == SELF else "put its checkpoint back, or start a new training"
            raise ConfigError(f"distillation: teacher '{teacher.name}' is not the one training began with; {remedy}")
        return agreed

    def _paired(self, model: Any, teacher: Teacher) -> list[Pair]:
        if not self.hidden and not self.attention:
            return []
        remedy = "set hidden: 0 and attention: 0 to learn from its outputs alone"
        ours, theirs = depths(model, self.name, remedy), depths(teacher.model, self.name, remedy)
        if len(ours) != len(theirs):
            raise ConfigError(
                f"distillation: teacher '{teacher.name}' has {len(theirs)} stacks of layers, the student {len(ours)}; "
                f"{remedy}"
            )
        pairs = []
        for stack, (mine, other) in enumerate(zip(ours, theirs, strict=True)):
            wanted = layer_map(mine, other) if self.layers == "auto" else self.layers
            for student, taught in wanted:
                if student >= mine or taught >= other:
                    raise ConfigError(
                        f"distillation.layers: [{student}, {taught}] does not fit; the student has layers 0 to "
                        f"{mine - 1}, the teacher 0 to {other - 1}"
                    )
                pairs.append(((stack, student), (stack, taught)))
        return pairs

    @property
    def _related(self) -> list[Pair]:
        """The last pair of each stack: MiniLMv2 learns one layer's relations."""
        return list({pair[0][0]: pair for pair in self._pairs}.values())

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        super().on_train_begin(args, state, control, **kwargs)
        if self._teachers is None:
            return
        hidden = [pair[0] for pair in self._pairs] if self.hidden else []
        related = [pair[0] for pair in self._related] if self.attention else []
        self._capture = Capture(kwargs["model"], hidden, related, training_only=True)

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._terms = {}

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self._cache is not None:
            self._cache.end_epoch()

    def loss(self, loss: torch.Tensor, inputs: Mapping[str, Any], outputs: Any, scale: Any) -> torch.Tensor:
        if self._teachers is None or self._capture is None:
            return loss
        taught = self._teachers.outputs(inputs, self._cache)
        caught = _with_gradients(self._capture.take())
        logits = logits_of(outputs)
        shifted = shifts_labels(type(self._capture.model).__name__)
        counted = counted_outputs(inputs, logits, shifted)
        weights = counted.flatten(1).sum(1) if counted.dim() > 1 else counted
        total = loss
        if self.alpha:
            said = self._said(logits, taught["logits"], counted, inputs)
            total = (1 - self.alpha) * loss + self.alpha * scale * self._noted("outputs", said)
        if self.hidden:
            total = total + self.hidden * scale * self._noted("hidden", self._hidden(caught, taught, inputs, weights))
        if self.attention:
            related = self._attention(caught, taught, inputs, weights)
            total = total + self.attention * scale * self._noted("attention", related)
        return total

    def _said(
        self, logits: torch.Tensor, taught: torch.Tensor, counted: torch.Tensor, inputs: Mapping[str, Any]
    ) -> torch.Tensor:
        if logits.shape != taught.shape[1:]:
            raise ConfigError(
                f"distillation: the teacher's logits have shape {tuple(taught.shape[1:])}, the student's "
                f"{tuple(logits.shape)}; take a teacher that splits inputs up alike, or set alpha: 0"
            )
        labels = inputs.get("labels")
        if logits.shape[-1] == 1 or (isinstance(labels, torch.Tensor) and labels.is_floating_point()):
            return squared_error(logits, taught, counted)
        return soft_cross_entropy(logits, soft_targets(taught, self.temperature), self.temperature, counted)

    def _hidden(
        self,
        caught: Mapping[str, torch.Tensor],
        taught: Mapping[str, torch.Tensor],
        inputs: Mapping[str, Any],
        weights: torch.Tensor,
    ) -> torch.Tensor:
        losses = []
        for (stack, layer), (_, other) in self._pairs:
            ours = caught.get(f"hidden.{stack}.{layer}")
            if ours is None:  # layer dropout left it out this time
                continue
            theirs = taught[f"hidden.{stack}.{other}"]
            if ours.shape[-1] != theirs.shape[-1]:
                ours = self._projector(stack, ours, theirs.shape[-1])(ours)
            losses.append(hidden_loss(ours, theirs, _mask(inputs, stack, ours, theirs), weights))
        return torch.stack(losses).mean() if losses else weights.sum() * 0.0

    def _attention(
        self,
        caught: Mapping[str, torch.Tensor],
        taught: Mapping[str, torch.Tensor],
        inputs: Mapping[str, Any],
        weights: torch.Tensor,
    ) -> torch.Tensor:
        losses = []
        for (stack, layer), (_, other) in self._related:
            if f"query.{stack}.{layer}" not in caught:
                continue
            ours = [caught[f"{relation}.{stack}.{layer}"] for relation in RELATIONS]
            theirs = [taught[f"{relation}.{stack}.{other}"] for relation in RELATIONS]
            heads = relation_heads(*(one.shape[-1] for one in (*ours, *theirs)))
            mask = _mask(inputs, stack, ours[0], theirs[0])
            losses.append(relation_loss(ours, theirs, heads, mask, weights))
        return torch.stack(losses).mean() if losses else weights.sum() * 0.0

    def _noted(self, term: str, value: torch.Tensor) -> torch.Tensor:
        so_far = self._terms.setdefault(term, [0.0, 0])
        so_far[0], so_far[1] = so_far[0] + value.detach(), so_far[1] + 1
        return value

    def _projector(self, stack: int, student: torch.Tensor, width: int) -> Projector:
        if stack not in self._projectors:
            made = Projector(student.shape[-1], width, stack, student.device)
            if stack in self._saved.get("projectors", {}):
                made.load_state_dict(self._saved["projectors"][stack])
            self._projectors[stack] = made
        return self._projectors[stack]

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        for projector in self._projectors.values():
            projector.step(kwargs["lr_scheduler"].get_last_lr()[0], args.world_size)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self._teachers is None or self._capture is None:
            return
        if self._cache is not None:
            self._cache.exchange()
        self._described = self._summary()
        self._capture.remove()
        # a teacher takes as much memory as a model: none of it stays for what comes after the training
        self._capture = self._teachers = self._cache = None

    def _summary(self) -> dict[str, Any]:
        told = gather_object([{term: (float(total), count) for term, (total, count) in self._terms.items()}])
        means = {
            term: sum(one[term][0] for one in told) / sum(one[term][1] for one in told)
            for term in self._terms
            if all(term in one for one in told)
        }
        layers = [[stack, student, teacher] for (stack, student), (_, teacher) in self._pairs]
        return {
            "teacher": [_shown(name) for name in self._names],
            "layer_map": layers,
            "share_from_cache": 0.0 if self._cache is None else self._cache.share_served,
            "mean_loss_of_last_epoch": means,
        }

    def state_dict(self) -> dict[str, Any]:
        if self._teachers is None:
            return {}
        state: dict[str, Any] = {"projectors": {k: one.state_dict() for k, one in self._projectors.items()}}
        if self._cache is not None:
            self._cache.exchange()
            state["cache"] = self._cache.state_dict()
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._saved = state

    def describe(self) -> dict[str, Any]:
        return self._described


def _shown(name: str) -> str:
    """A Hub id, or the end of a path: where it lies is nobody's business."""
    return "/".join(Path(name).parts[-2:]) if Path(name).is_dir() else name


def _mixed_precision(args: "TrainingArguments") -> torch.dtype | None:
    return torch.bfloat16 if args.bf16 else torch.float16 if args.fp16 else None


def _mask(inputs: Mapping[str, Any], stack: int, student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """Positions of a stack that are not padding, boolean (examples, positions).

    Raises:
        ConfigError: student and teacher split inputs up in different ways.
    """
    mask = decoder_positions(inputs) if stack else positions(inputs)
    shape = student.shape[:-1]
    if teacher.shape[:-1] != shape or (mask is not None and mask.shape != shape):
        raise ConfigError(
            f"distillation cannot compare hidden states of shape {tuple(student.shape)} with the teacher's "
            f"{tuple(teacher.shape)}; set hidden: 0 and attention: 0 to learn from its outputs alone"
        )
    return torch.ones(shape, dtype=torch.bool, device=student.device) if mask is None else mask


def _with_gradients(caught: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """What was captured, unless nothing can be learnt through one kind of it.

    Raises:
        ConfigError: no gradient leads back from any hidden state, or from any projection.
    """
    for kind in ("hidden", *RELATIONS):
        values = [value for name, value in caught.items() if name.startswith(kind)]
        if values and not any(value.requires_grad for value in values):
            raise ConfigError(
                f"distillation gets no gradient through the student's layers ({kind}): reentrant checkpointing cuts "
                "it off, or all are frozen; set gradient_checkpointing_kwargs={'use_reentrant': False}, or hidden: 0 "
                "and attention: 0"
            )
    return caught

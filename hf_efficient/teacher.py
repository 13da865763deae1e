"""Teachers of a distillation: loaded, made to understand the student's batches, and asked."""

import hashlib
import inspect
import json
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import transformers
from transformers.utils import find_labels

from hf_efficient.blocks import share_out
from hf_efficient.capture import Capture, Place
from hf_efficient.errors import ConfigError
from hf_efficient.example_cache import ExampleCache, Row
from hf_efficient.functional.examples import (
    decoder_positions,
    example_keys,
    join,
    labels_are_tokens,
    positions,
    raw_bytes,
    split,
)
from hf_efficient.functional.vocabulary import parent_ids, split_alike
from hf_efficient.optimization import Context
from hf_efficient.pretrained import load_pretrained, resolve_model

if TYPE_CHECKING:
    from transformers import PreTrainedModel

logger = logging.getLogger(__name__)

SELF = "self"
"""The teacher's name where it is the model as it was before this phase changed it."""

_LOGITS = "logits"
_NOT_COMPUTING = {"architectures", "dtype", "id2label", "label2id", "problem_type", "transformers_version", "use_cache"}
_TOKEN_IDS = ("input_ids", "decoder_input_ids", "labels")


@dataclass(eq=False)
class Teacher:
    """A model in evaluation, in fp32, on the student's device.

    Attributes:
        ids: the teacher's token id for each of the student's, shape (student tokens,); None where they are the same.
        classes: the teacher's output for each of the student's, shape (outputs,); None where they are the same.
        shared_out: whether each process has a part of the weights, so that all have to ask at the same time.
    """

    name: str
    model: "PreTrainedModel"
    ids: torch.Tensor | None = None
    classes: torch.Tensor | None = None
    shared_out = False
    _fingerprint = ""

    def __post_init__(self) -> None:
        self.model.eval().requires_grad_(False).float()
        self._takes = set(inspect.signature(self.model.forward).parameters)
        self._labels = {"labels", *find_labels(type(self.model))}

    @classmethod
    def of(cls, name: str, student: Any, context: Context, shared_out: bool = False) -> "Teacher":
        """The teacher ``name`` for ``student``.

        Args:
            name: `SELF`, a folder or a Hub id.
            shared_out: leave each process a part of it only; its device never holds more than that and a layer.

        Raises:
            ConfigError: no such model, one with another kind of head or other labels, or another tokenizer.
        """
        student = student.get_base_model() if hasattr(student, "peft_config") else student
        if name == SELF:
            model: Any = context.original
            ids = context.parent_ids
        else:
            model = _load(name, student)
            ids = _token_map(name, model, student, context)
        device = next(student.parameters()).device
        classes = _class_map(name, model, student, ids)
        maps = [None if given is None else torch.tensor(given, device=device) for given in (ids, classes)]
        if not shared_out:
            return cls(name, model.to(device), *maps)
        made = cls(name, model.cpu(), *maps)
        made._share_out(device)
        return made

    def _share_out(self, device: torch.device) -> None:
        self._fingerprint = self.fingerprint()
        share_out(self.model, device.type)
        self.shared_out = True

    def wants_labels(self, batch: Mapping[str, Any]) -> bool:
        """Whether the decoder's inputs have to be made from labels."""
        config = self.model.config
        return bool(config.is_encoder_decoder) and "decoder_input_ids" not in batch and labels_are_tokens(batch)

    def inputs(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """What this model takes of a batch of the student's, without labels where they are not needed."""
        kept = {name: value for name, value in batch.items() if name in self._takes and name not in self._labels}
        if self.wants_labels(batch):
            kept["labels"] = batch["labels"]
        if self.ids is not None:
            kept.update({name: _translated(kept[name], self.ids) for name in _TOKEN_IDS if name in kept})
        return kept

    def labelled(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """The same, with the labels as this model numbers them."""
        labels = batch.get("labels")
        if labels is None:
            return self.inputs(batch)
        if self.classes is not None and not labels.is_floating_point():
            labels = _translated(labels, self.classes)
        return {**self.inputs(batch), "labels": labels}

    def logits(self, batch: Mapping[str, Any]) -> torch.Tensor:
        """In the student's order of outputs, in fp32, shape (examples, ..., outputs).

        Raises:
            ConfigError: a model whose output has no logits.
        """
        logits = logits_of(self.model(**self.inputs(batch)))
        return logits.float() if self.classes is None else logits.float()[..., self.classes]

    def fingerprint(self) -> str:
        """Hexadecimal digest of weights and of what the config says about computing."""
        if self._fingerprint:
            return self._fingerprint
        digest = hashlib.sha256(type(self.model).__name__.encode())
        config = self.model.config.to_dict()
        computing = {key: config[key] for key in config if key not in _NOT_COMPUTING and not key.startswith("_")}
        digest.update(json.dumps(computing, sort_keys=True, default=str).encode())
        for name, tensor in sorted(self.model.state_dict().items()):
            digest.update(name.encode())
            digest.update(raw_bytes(tensor))
        return digest.hexdigest()


class Teachers:
    """All teachers of a training: what they say about a batch, out of the cache as far as it is there.

    Args:
        teachers: hidden states and projections come from the first.
        logits: whether the logits are wanted.
        hidden, relations: layers of the first teacher that are wanted (see `Capture`).
        dtype: compute in this mixed precision; None for fp32.
    """

    def __init__(
        self,
        teachers: Sequence[Teacher],
        logits: bool,
        hidden: Sequence[Place],
        relations: Sequence[Place],
        dtype: torch.dtype | None,
    ):
        self.teachers, self.dtype, self._says = list(teachers), dtype, logits
        self._capture = Capture(teachers[0].model, hidden, relations)
        self._wanted = [list(hidden), list(relations), logits, str(dtype)]

    def signature(self, fingerprints: Mapping[str, str]) -> str:
        """Hexadecimal digest of all that what they say depends on besides the example: names a folder of the cache."""
        maps = [given.tolist() for t in self.teachers for given in (t.ids, t.classes) if given is not None]
        told = [list(fingerprints.values()), self._wanted, maps]
        return hashlib.sha256(json.dumps(told).encode()).hexdigest()[:32]

    def outputs(self, batch: Mapping[str, Any], cache: ExampleCache | None) -> dict[str, torch.Tensor]:
        """``logits`` (teachers, examples, ..., outputs), where wanted, and what `Capture` names, of a whole batch.

        With a cache, hidden states and projections are rounded to fp16 whether they come from it or not.
        """
        masks = self._masks(batch)
        if cache is None:
            told = self._ask(batch)
        else:
            rows = self._rows(batch, masks, cache)
            device = self.teachers[0].model.device
            told = {
                name: join([row[name] for row in rows], _stripping(name, rows[0][name].dim() + 1, masks), device)
                for name in rows[0]
            }
        logits = [told.pop(f"{_LOGITS}.{index}") for index in range(len(self.teachers))] if self._says else []
        return {_LOGITS: torch.stack(logits), **told} if logits else told

    def _rows(self, batch: Mapping[str, Any], masks: list[torch.Tensor | None], cache: ExampleCache) -> list[Row]:
        keyed = {name: value for name, value in batch.items() if isinstance(value, torch.Tensor) and value.dim()}
        if not any(teacher.wants_labels(batch) for teacher in self.teachers):
            keyed = {name: value for name, value in keyed.items() if name not in self.teachers[0]._labels}
        keys = example_keys(keyed, masks[0], masks[-1])
        rows = [cache.get(key) for key in keys]
        missing = [index for index, row in enumerate(rows) if row is None]
        if missing:
            part = dict(batch) if len(missing) == len(keys) else _selected(batch, missing, len(keys))
            for index, row in zip(missing, self._fresh(part), strict=True):
                cache.put(keys[index], row)
                rows[index] = row
        return [row for row in rows if row is not None]

    def _fresh(self, batch: Mapping[str, Any]) -> list[Row]:
        masks, columns = self._masks(batch), {}
        for name, value in self._ask(batch).items():
            mask = _stripping(name, value.dim(), masks)
            if mask is not None and value.shape[:2] != mask.shape:
                raise ConfigError(
                    f"distillation: the teacher's {name} of shape {tuple(value.shape)} does not go with an attention "
                    f"mask of shape {tuple(mask.shape)}, so it cannot be cached; set cache: false"
                )
            kept = value if name.startswith(_LOGITS) else _half(value)
            columns[name] = [row.contiguous().clone() for row in split(kept, mask)]  # a shard holds no shared storage
        return [dict(zip(columns, rows, strict=True)) for rows in zip(*columns.values(), strict=True)]

    @torch.no_grad()
    def _ask(self, batch: Mapping[str, Any]) -> dict[str, torch.Tensor]:
        device = self.teachers[0].model.device.type
        told = {}
        with torch.autocast(device, dtype=self.dtype, enabled=self.dtype is not None):
            for index, teacher in enumerate(self.teachers):
                if self._says or index == 0:
                    told[f"{_LOGITS}.{index}"] = teacher.logits(batch)
        return {**(told if self._says else {}), **self._capture.take()}

    def _masks(self, batch: Mapping[str, Any]) -> list[torch.Tensor | None]:
        """Positions that are not padding: of each stack of layers."""
        both = [positions(batch), decoder_positions(batch)]
        return both if self.teachers[0].model.config.is_encoder_decoder else both[:1]


def logits_of(outputs: Any) -> torch.Tensor:
    """The logits of a model's output.

    Raises:
        ConfigError: it has none.
    """
    logits = outputs.get(_LOGITS) if isinstance(outputs, Mapping) else None
    if logits is None:
        raise ConfigError("distillation needs models whose output has logits; drop distillation for this kind of head")
    return logits


def _stripping(name: str, dimensions: int, masks: list[torch.Tensor | None]) -> torch.Tensor | None:
    """The mask that takes padding off an output of so many dimensions, the examples counted in."""
    if name.startswith(_LOGITS):
        return masks[-1] if dimensions > 2 else None
    return masks[int(name.split(".")[1])]


def _half(value: torch.Tensor) -> torch.Tensor:
    most = torch.finfo(torch.float16).max
    return value.float().clamp(-most, most).half()


def _selected(batch: Mapping[str, Any], rows: list[int], examples: int) -> dict[str, Any]:
    def part(value: Any) -> Any:
        whole = isinstance(value, torch.Tensor) and value.dim() and len(value) == examples
        return value[rows] if whole else value

    return {name: part(value) for name, value in batch.items()}


def _translated(ids: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
    """``ids`` looked up in ``table``; negative ones, which mark what does not count, stay."""
    return torch.where(ids < 0, ids, table[ids.clamp(min=0)])


def _load(name: str, student: Any) -> Any:
    source = resolve_model(name)
    config = load_pretrained(transformers.AutoConfig, source)
    architecture = next(iter(getattr(config, "architectures", None) or []), None)
    same = architecture == type(student).__name__  # the student's class may be one of a task's own
    cls = type(student) if same else getattr(transformers, architecture or "", None)
    if cls is None:
        raise ConfigError(
            f"distillation: the config of teacher '{name}' names no architecture of transformers; save it again"
        )
    if _head(cls) and _head(type(student)) and _head(cls) != _head(type(student)):
        raise ConfigError(
            f"distillation: teacher '{name}' is a {cls.__name__}, the student a {type(student).__name__}; they need "
            "heads of one kind"
        )
    ours, theirs = (getattr(c, "image_size", None) for c in (student.config, config))
    if ours != theirs:
        raise ConfigError(f"distillation: teacher '{name}' takes images of size {theirs}, the student of {ours}")
    return load_pretrained(cls, source, dtype="float32")


def _head(cls: type) -> str:
    return cls.__name__.partition("For")[2]


def _class_map(name: str, teacher: Any, student: Any, ids: Sequence[int] | None) -> list[int] | None:
    """The teacher's output for each of the student's; None where they are the same."""
    if student.get_output_embeddings() is not None:
        return _same_number(name, student.get_output_embeddings().weight.shape[0], teacher, ids)
    if (ours := student.config.num_labels) != (theirs := teacher.config.num_labels):
        raise ConfigError(f"distillation: teacher '{name}' has {theirs} labels, the student {ours}; they need the same")
    mine, other = (list(config.id2label.values()) for config in (student.config, teacher.config))
    unnamed = [f"LABEL_{index}" for index in range(ours)]
    if mine == other or unnamed in (mine, other):
        return None
    if len(set(mine)) < ours or set(mine) != set(other):
        odd = next((label for label in other if label not in mine), other[0])
        raise ConfigError(
            f"distillation: teacher '{name}' has other labels than the student, e.g. '{odd}'; train it on the same "
            "labels, or give both the same id2label"
        )
    return [other.index(label) for label in mine]


def _same_number(name: str, ours: int, teacher: Any, ids: Sequence[int] | None) -> list[int] | None:
    theirs = teacher.get_output_embeddings().weight.shape[0]
    told = theirs if ids is None else len(ids)
    if told != ours:
        raise ConfigError(
            f"distillation: teacher '{name}' tells {told} tokens apart, the student {ours}; they need one vocabulary"
        )
    return None if ids is None else list(ids)


def _token_map(name: str, teacher: Any, student: Any, context: Context) -> list[int] | None:
    """The teacher's id of each of the student's tokens; None where they are the same.

    Raises:
        ConfigError: tokens that the teacher does not know, or that it would not find in the same text.
    """
    ours = context.processor if hasattr(context.processor, "get_vocab") else None
    theirs = None if ours is None else _tokenizer(resolve_model(name))
    if ours is not None and theirs is not None:
        mine, other = ours.get_vocab(), theirs.get_vocab()
        ids, odd = parent_ids(mine, other), ""
        if ids is None:
            foreign = next(token for token in mine if token not in other)
            odd = f"does not know the student's token '{foreign}'"
        elif not _split_alike(ours, theirs):
            odd = "splits texts in another way before it looks tokens up"
        if odd:
            raise ConfigError(
                f"distillation: teacher '{name}' has another tokenizer, which {odd}; take a teacher with the student's "
                "tokenizer"
            )
        return None if mine == other else ids
    sizes = [getattr(model.config, "vocab_size", None) for model in (student, teacher)]
    if sizes[0] == sizes[1]:
        return None
    if context.parent_ids is not None:
        return context.parent_ids
    raise ConfigError(
        f"distillation: teacher '{name}' has {sizes[1]} tokens, the student {sizes[0]}, and two tokenizers to compare "
        "are not at hand; pass processing_class=, and save the teacher's tokenizer beside it"
    )


def _split_alike(*tokenizers: Any) -> bool:
    """As far as it can be told: slow tokenizers do not say how they split."""
    backends = [
        tokenizer.backend_tokenizer.to_str() for tokenizer in tokenizers if hasattr(tokenizer, "backend_tokenizer")
    ]
    return len(backends) < len(tokenizers) or split_alike(*backends)


def _tokenizer(source: str) -> Any:
    """The tokenizer of a teacher; None where there is none."""
    local = os.path.isdir(source)
    if local and not any((Path(source) / file).is_file() for file in ("tokenizer.json", "tokenizer_config.json")):
        return None
    try:
        return load_pretrained(transformers.AutoTokenizer, source)
    except ConfigError as error:
        if local:
            raise
        logger.warning("distillation: vocabularies are compared by size alone (%s)", error)
        return None

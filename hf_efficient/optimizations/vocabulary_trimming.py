"""Vocabulary trimming: embedding rows that the task's data never uses are cut, and the tokenizer is rewritten."""

import copy
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import datasets
import pyarrow as pa
import pyarrow.compute as pc
import torch

from hf_efficient.errors import ConfigError, NoEffectWarning
from hf_efficient.functional.token_embeddings import (
    predicts_tokens,
    special_ids,
    token_embeddings,
    trim_token_embeddings,
)
from hf_efficient.functional.vocabulary import Vocabulary, choose, id_map, map_ids
from hf_efficient.optimization import Context, Optimization, Order, refuse_adapters

if TYPE_CHECKING:
    from torch import nn

_INPUTS, _LABELS = ("input_ids", "decoder_input_ids"), ("labels",)
_ROWS = 1000
"""Examples that are counted at a time."""


@dataclass(eq=False, kw_only=True)
class VocabularyTrimming(Optimization):
    """Keep the token embeddings that the training data uses, and a tokenizer that knows no others.

    Special tokens and single characters always stay, so that new words are spelled rather than lost. Data sets stay as
    they were tokenized: from `prepare_model` on, the ids of each batch are mapped (Abdaoui et al. 2020, *Load What You
    Need: Smaller Versions of Multilingual BERT*, arXiv 2010.05609).
    """

    min_count: int = 1
    """How often a token must occur in the training data to stay; 0 keeps all."""
    keep: list[str] = field(default_factory=list)
    """Tokens or words that stay, whatever the training data has."""
    size: int | None = None
    """Upper limit of the vocabulary: the most frequent tokens stay; null: no limit."""

    name = "vocabulary_trimming"
    cheaper: ClassVar[Mapping[str, int]] = {"size": -1, "min_count": 1}
    order = Order.STRUCTURE

    def __post_init__(self) -> None:
        if self.min_count < 0:
            raise ConfigError(f"min_count must be at least 0, got {self.min_count}")
        if self.size is not None and self.size < 1:
            raise ConfigError(f"size must be at least 1, got {self.size}")
        if "" in self.keep:
            raise ConfigError("keep must name tokens or words, got an empty text")
        self.reset()

    def reset(self) -> None:
        self._decision: dict[str, Any] = {}
        self._dataset: Any = None
        self._map: IdMap | None = None
        self._told: dict[str, Any] = {}

    def check(self, context: Context) -> None:
        if context.model is None or token_embeddings(context.model) is None:
            return
        refuse_adapters(context.model, "vocabulary_trimming cannot cut a model that carries")
        self._vocabulary(context.processor)

    def _vocabulary(self, tokenizer: Any) -> Vocabulary | None:
        """None without a tokenizer.

        Raises:
            ConfigError: one that is not a fast tokenizer, or of a kind that cannot be rewritten.
        """
        if tokenizer is None:
            return None
        if not hasattr(tokenizer, "backend_tokenizer"):
            raise ConfigError(
                f"vocabulary_trimming rewrites fast tokenizers (those with a tokenizer.json), got "
                f"{type(tokenizer).__name__}; load one with AutoTokenizer.from_pretrained(...), or drop it"
            )
        return Vocabulary(tokenizer.backend_tokenizer.to_str())

    def prepare_data(self, dataset: Any) -> Any:
        self._dataset = dataset  # counted only where the choice is not made yet
        return dataset

    def prepare_model(self, model: Any, context: Context) -> "nn.Module":
        dataset, self._dataset = self._dataset, None
        embeddings = token_embeddings(model)
        if embeddings is None:
            warnings.warn("vocabulary_trimming: the model has no token embeddings", NoEffectWarning, 2)
            return model
        self.check(Context(args=context.args, model=model, processor=context.processor))
        vocabulary = self._vocabulary(context.processor)
        if not self._decision:
            self._decision = context.decide(self.name, lambda: self._choose(model, context, vocabulary, dataset))
        rows, before, kept = embeddings.num_embeddings, self._decision["before"], self._decision["kept"]
        if rows not in (before, len(kept)):
            raise ConfigError(
                f"vocabulary_trimming was decided for {before} token embeddings, to keep {len(kept)}, but the model "
                f"has {rows}; start from the model that the training began with, or from its checkpoint"
            )
        if before == len(kept):
            warnings.warn("vocabulary_trimming keeps the whole vocabulary", NoEffectWarning, 2)
        else:
            self._trim(model, context, vocabulary)
        return model

    def _trim(self, model: Any, context: Context, vocabulary: Vocabulary | None) -> None:
        kept = torch.tensor(self._decision["kept"])
        is_trimmed = token_embeddings(model).num_embeddings == len(kept)  # type: ignore[union-attr]
        if is_trimmed and vocabulary is not None and sorted(vocabulary.tokens.values()) == list(range(len(kept))):
            return  # the tokenizer came with the trimmed model: the data has its ids
        if not is_trimmed:
            trim_token_embeddings(model, kept)
            context.parent_ids = self._decision["kept"]
        if vocabulary is not None:
            context.processor = trimmed_tokenizer(context.processor, vocabulary, kept)
        self._map = IdMap.of(model, kept, self._decision["before"], vocabulary)

    def _choose(self, model: Any, context: Context, vocabulary: Vocabulary | None, dataset: Any) -> dict[str, Any]:
        """Plain values: {"kept": parent ids, ascending, and what is told of them}."""
        rows = token_embeddings(model).num_embeddings  # type: ignore[union-attr]
        names = (*_INPUTS, *(_LABELS if predicts_tokens(model) else ()))
        counts = _counts(_batches(dataset, names, context), rows)
        kept = choose(counts, self._required(model, context, vocabulary), self.min_count, self.size, vocabulary)
        if kept[-1] >= rows:
            raise ConfigError(
                f"the tokenizer has the token id {kept[-1]}, but the model has {rows} token embeddings; call "
                "model.resize_token_embeddings(len(tokenizer)) first"
            )
        told = {"train_tokens": int(counts.sum()), "unknown_share_train": _missing_share(counts, kept)}
        seen = _counts(_stored_batches(context.evaluation, names), rows)
        if seen.any():
            told["unknown_share_evaluation"] = _missing_share(seen, kept)
        return {"before": rows, "kept": kept, "told": told}

    def _required(self, model: Any, context: Context, vocabulary: Vocabulary | None) -> set[int]:
        required = special_ids(model)
        if vocabulary is not None:
            known = set(vocabulary.tokens.values())
            return (required & known) | vocabulary.always_kept() | self._kept_words(context.processor, vocabulary)
        if self.keep:
            raise ConfigError(f"vocabulary_trimming.keep={self.keep} needs a tokenizer; pass processing_class=")
        if model.config.pad_token_id is None:
            raise ConfigError(
                "vocabulary_trimming without a tokenizer needs a padding token to stand for dropped ones; pass the "
                "tokenizer as processing_class=, or set model.config.pad_token_id"
            )
        return required

    def _kept_words(self, tokenizer: Any, vocabulary: Vocabulary) -> set[int]:
        kept = {vocabulary.tokens[word] for word in self.keep if word in vocabulary.tokens}
        for word in self.keep:
            for text in (word, f" {word}"):  # byte-level tokens differ at the start of a text
                kept.update(tokenizer.backend_tokenizer.encode(text, add_special_tokens=False).ids)
        return kept

    def map_batch(self, batch: dict[str, Any]) -> dict[str, Any]:
        return batch if self._map is None else self._map(batch)

    def state_dict(self) -> dict[str, Any]:
        return dict(self._decision)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._decision = dict(state)

    def describe(self) -> dict[str, Any]:
        if not self._decision:
            return {}
        told = {"vocabulary_before": self._decision["before"], "vocabulary": len(self._decision["kept"])}
        tokenizer = {} if self._map is None or self._map.has_tokenizer else {"tokenizer": "none given, none rewritten"}
        return {**told, **self._decision["told"], **tokenizer}


@dataclass(frozen=True)
class IdMap:
    """From the ids that data was tokenized with to those of the trimmed model.

    Attributes:
        new: [parent id -> new id], shape (parent vocabulary,).
        names: keys of a batch that hold token ids.
        padding, start: new ids of padding and of the decoder's first token; None where the config has none.
        has_tokenizer: whether ids without a place went by a tokenizer's unknown token.
    """

    new: torch.Tensor
    names: tuple[str, ...]
    padding: int | None
    start: int | None
    has_tokenizer: bool

    @classmethod
    def of(cls, model: Any, kept: torch.Tensor, before: int, vocabulary: Vocabulary | None) -> "IdMap":
        """``model`` is trimmed already."""
        stay = set(kept.tolist())
        padding = model.config.pad_token_id
        substitutes = {}
        for index in set(range(before)) - stay:
            found = int(kept[padding]) if vocabulary is None else vocabulary.substitute(index, stay)
            if found is not None:
                substitutes[index] = found
        names = (*_INPUTS, *(_LABELS if predicts_tokens(model) else ()))
        start = getattr(model.config, "decoder_start_token_id", None)
        return cls(id_map(kept, before, substitutes), names, padding, start, vocabulary is not None)

    def __call__(self, batch: Any) -> Any:
        mapped = copy.copy(batch)
        for name in self.names:
            if isinstance(batch.get(name), torch.Tensor):
                mapped[name] = map_ids(batch[name], self.new)
        if "labels" in self.names and _is_shifted(batch):
            mapped["decoder_input_ids"] = self._shifted(batch["decoder_input_ids"], batch["labels"])
        return mapped

    def _shifted(self, inputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Decoder inputs that a collator made from parent labels, but with the padding and start of the model's config.

        Args:
            inputs, labels: shape (examples, tokens).
        """
        before = torch.where(labels == -100, labels, map_ids(labels, self.new))[:, :-1]
        first = inputs[:, :1]
        if self.start is None or bool((first != self.start).any()):
            first = map_ids(first, self.new)
        return torch.cat([first, before.masked_fill(before == -100, self.padding or 0)], dim=1)


def _is_shifted(batch: Mapping[str, Any]) -> bool:
    inputs, labels = batch.get("decoder_input_ids"), batch.get("labels")
    if inputs is None or labels is None or inputs.shape != labels.shape or inputs.dim() != 2:
        return False
    return bool(((inputs[:, 1:] == labels[:, :-1]) | (labels[:, :-1] == -100)).all())


def trimmed_tokenizer(tokenizer: Any, vocabulary: Vocabulary, kept: torch.Tensor) -> Any:
    """``tokenizer`` with the tokens ``kept`` alone, as it comes back from disk.

    Raises:
        ConfigError: its class does not read the rewritten file as it is.
    """
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        (Path(folder) / "tokenizer.json").write_text(vocabulary.trimmed(kept.tolist()), encoding="utf-8")
        trimmed = type(tokenizer).from_pretrained(folder, local_files_only=True)
    trimmed.name_or_path = tokenizer.name_or_path
    new = {old: index for index, old in enumerate(kept.tolist())}
    if trimmed.get_vocab() != {token: new[index] for token, index in vocabulary.tokens.items() if index in new}:
        raise ConfigError(
            f"vocabulary_trimming: a {type(tokenizer).__name__} builds a vocabulary of its own instead of reading "
            "tokenizer.json; use PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend_tokenizer, ...)"
        )
    return trimmed


def _counts(batches: Iterator[torch.Tensor], rows: int) -> torch.Tensor:
    """Occurrences of each id, shape (rows,)."""
    counts = torch.zeros(rows, dtype=torch.long)
    for ids in batches:
        ids = ids.flatten().cpu().long()
        ids = ids[ids >= 0]
        if ids.numel() and int(ids.max()) >= rows:
            raise ConfigError(
                f"the data has the token id {int(ids.max())}, but the model has {rows} token embeddings; tokenize it "
                "with the tokenizer that the model came with"
            )
        counts += torch.bincount(ids, minlength=rows)
    return counts


def _missing_share(counts: torch.Tensor, kept: list[int]) -> float:
    total = int(counts.sum())
    return 1 - int(counts[kept].sum()) / total if total else 0.0


def _batches(dataset: Any, names: tuple[str, ...], context: Context) -> Iterator[torch.Tensor]:
    """Ids of the training data: as stored, or, where a collator makes them, as it does."""
    if dataset is not None and not hasattr(dataset, "__len__"):
        raise ConfigError(
            "vocabulary_trimming counts the tokens of the training data, which a data set without a length may never "
            "end; give one with a length, e.g. datasets.Dataset.from_list(list(dataset.take(10_000)))"
        )
    stored = False
    for ids in _stored_batches(dataset, names):
        stored = True
        yield ids
    if not stored:
        for batch in context.calibration(_ROWS if dataset is None else len(dataset)):
            yield from (batch[name] for name in names if name in batch)


def _stored_batches(dataset: Any, names: tuple[str, ...]) -> Iterator[torch.Tensor]:
    """Token ids of all examples, each tensor one-dimensional; none where examples hold none."""
    if not hasattr(dataset, "__len__") or not hasattr(dataset, "__getitem__") or not len(dataset):
        return
    if isinstance(dataset, datasets.Dataset) and dataset.format["type"] != "custom":
        present = [name for name in names if name in dataset.column_names]
        for table in dataset.select_columns(present).with_format("arrow").iter(_ROWS) if present else ():
            yield from (_flat(table[name]) for name in present)
        return
    first = dataset[0]
    present = [name for name in names if isinstance(first, Mapping) and name in first]
    for index in range(len(dataset)) if present else ():
        example = dataset[index]
        yield from (torch.as_tensor(example[name]).flatten() for name in present)


def _flat(column: pa.ChunkedArray) -> torch.Tensor:
    while pa.types.is_list(column.type) or pa.types.is_large_list(column.type):
        column = pc.list_flatten(column)
    return torch.tensor(column.to_numpy())

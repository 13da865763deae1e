"""Fewer tokens: the `tokenizer.json` of a fast tokenizer rewritten for some of its tokens, and embeddings cut to them.

Ids keep their ascending order, so that a model's special tokens at the front of its vocabulary usually keep their ids.
"""

import itertools
import json
import re
from collections.abc import Collection, Iterable, Mapping
from typing import Any

import torch

from hf_efficient.errors import ConfigError

_MODELS = ("WordPiece", "BPE", "Unigram", "WordLevel")
_BYTE = re.compile(r"<0x[0-9A-F]{2}>")


class Vocabulary:
    """The tokens of a fast tokenizer, and which of them need which others.

    Attributes:
        tokens: token -> id, added tokens included.
        unknown: id that stands for text without a token; None where there is none.

    Raises:
        ConfigError: a kind of tokenizer model that cannot be rewritten.
    """

    def __init__(self, serialized: str):
        """``serialized``: a `tokenizer.json`, e.g. ``tokenizer.backend_tokenizer.to_str()``."""
        self._file: dict[str, Any] = json.loads(serialized)
        self._model: dict[str, Any] = self._file["model"]
        self._kind = self._model.get("type")
        if self._kind not in _MODELS:
            raise ConfigError(
                f"cannot rewrite a tokenizer with a model of type {self._kind}; allowed: {', '.join(_MODELS)}. "
                "Use a tokenizer of one of these types, or keep the whole vocabulary"
            )
        added = {token["content"]: token["id"] for token in self._file["added_tokens"]}
        self._added = set(added.values())
        self.tokens: dict[str, int] = {**_model_tokens(self._model), **added}
        self.unknown = self._unknown()
        self._names = {index: token for token, index in self.tokens.items()}
        self._ranks = {pair: rank for rank, pair in enumerate(_merges(self._model))}

    def _unknown(self) -> int | None:
        if self._kind == "Unigram":
            return self._model.get("unk_id")
        return self.tokens.get(self._model.get("unk_token") or "")

    def always_kept(self) -> set[int]:
        """Ids that any text may need: added and special tokens, single characters, bytes, the unknown token."""
        single = {index for token, index in self.tokens.items() if self._is_atom(token)}
        return single | self._added | ({self.unknown} if self.unknown is not None else set())

    def _is_atom(self, token: str) -> bool:
        start, prefix, end = self._affixes(token)
        bare = token[len(prefix) if start else 0 : len(token) - len(end)]
        return len(bare) <= 1 or _BYTE.fullmatch(token) is not None

    def _affixes(self, token: str) -> tuple[bool, str, str]:
        """Whether ``token`` continues a word, by which prefix, and the suffix by which it ends one."""
        prefix = self._model.get("continuing_subword_prefix") or ""
        suffix = self._model.get("end_of_word_suffix") or ""
        return bool(prefix) and token.startswith(prefix), prefix, suffix if suffix and token.endswith(suffix) else ""

    def path(self, index: int) -> set[int]:
        """Ids of the tokens that byte-pair merging passes through on the way to token ``index``, itself included.

        In a longer text the same merges happen in the same order within the token, because none of them crosses its
        ends. Tokenizers without merges go through nothing.
        """
        passed = {index}
        if self._kind != "BPE" or index in self._added or index not in self._names:
            return passed
        pieces = self._characters(self._names[index])
        while pairs := [pair for pair in itertools.pairwise(pieces) if pair in self._ranks]:
            left, right = min(pairs, key=self._ranks.__getitem__)
            merged = self._joined(left, right)
            pieces = _replaced(pieces, (left, right), merged)
            passed |= {self.tokens[piece] for piece in (left, right, merged)}
        return passed

    def _characters(self, token: str) -> list[str]:
        continues, prefix, suffix = self._affixes(token)
        bare = token[len(prefix) if continues else 0 : len(token) - len(suffix)]
        pieces = [prefix + char if continues or at else char for at, char in enumerate(bare)]
        return [*pieces[:-1], pieces[-1] + suffix] if pieces else [token]

    def _joined(self, left: str, right: str) -> str:
        return left + right.removeprefix(self._model.get("continuing_subword_prefix") or "")

    def substitute(self, index: int, kept: Collection[int]) -> int | None:
        """The kept id that takes the place of a dropped one: the unknown token, else what its text begins with.

        None where there is neither.
        """
        if self.unknown is not None:
            return self.unknown
        token = self._names.get(index, "")
        beginnings = (self.tokens.get(token[:length]) for length in range(len(token) - 1, 0, -1))
        return next((found for found in beginnings if found in kept), None)

    def trimmed(self, kept: Iterable[int]) -> str:
        """The `tokenizer.json` with the tokens ``kept`` alone, ids renumbered; merges without their tokens are gone.

        Args:
            kept: parent ids; `always_kept` and each one's `path` must be among them.
        """
        new = {old: index for index, old in enumerate(sorted(set(kept)))}
        file = json.loads(json.dumps(self._file))
        file["model"] = _trimmed_model(self._model, new)
        for token in file["added_tokens"]:
            token["id"] = new[token["id"]]
        if file.get("padding"):
            file["padding"]["pad_id"] = new[file["padding"]["pad_id"]]
        if file.get("post_processor"):
            _renumber(file["post_processor"], new)
        return json.dumps(file, ensure_ascii=False)


def _model_tokens(model: Mapping[str, Any]) -> dict[str, int]:
    vocabulary = model["vocab"]
    if isinstance(vocabulary, list):  # Unigram: [token, log-probability], the id is the place
        return {token: index for index, (token, _) in enumerate(vocabulary)}
    return dict(vocabulary)


def _merges(model: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Pairs by rank; older files write them as one string."""
    pairs = (merge.split(" ") if isinstance(merge, str) else merge for merge in model.get("merges") or ())
    return [(left, right) for left, right in pairs]


def _replaced(pieces: list[str], pair: tuple[str, str], merged: str) -> list[str]:
    result: list[str] = []
    at = 0
    while at < len(pieces):
        found = tuple(pieces[at : at + 2]) == pair
        result.append(merged if found else pieces[at])
        at += 2 if found else 1
    return result


def _trimmed_model(model: Mapping[str, Any], new: Mapping[int, int]) -> dict[str, Any]:
    tokens = {token: new[index] for token, index in _model_tokens(model).items() if index in new}
    trimmed = dict(model)
    if isinstance(model["vocab"], list):
        trimmed["vocab"] = [entry for index, entry in enumerate(model["vocab"]) if index in new]
        if model.get("unk_id") is not None:
            trimmed["unk_id"] = new[model["unk_id"]]
    else:
        trimmed["vocab"] = tokens
    if "merges" in model:
        prefix = model.get("continuing_subword_prefix") or ""
        trimmed["merges"] = [
            [left, right]
            for left, right in _merges(model)
            if {left, right, left + right.removeprefix(prefix)} <= tokens.keys()
        ]
    return trimmed


def _renumber(processor: dict[str, Any], new: Mapping[int, int]) -> None:
    """Ids in a post-processor: in templates, in the pairs [token, id] of BERT's and RoBERTa's, in sequences of any."""
    for part in processor.get("processors", ()):
        _renumber(part, new)
    for token in (processor.get("special_tokens") or {}).values():
        token["ids"] = [new[index] for index in token["ids"]]
    for name in ("sep", "cls"):
        if name in processor:
            token, index = processor[name]
            processor[name] = [token, new[index]]


def choose(
    counts: torch.Tensor, required: Iterable[int], min_count: int, size: int | None, vocabulary: Vocabulary | None
) -> list[int]:
    """Ascending ids to keep: the required ones, then the most frequent, each with the tokens on its path.

    Args:
        counts: occurrences of each id, shape (rows of the embedding,).
        required: ids kept whatever their count.
        min_count: how often another one must occur to stay.
        size: how many may stay at most; None: no limit.
        vocabulary: whose tokens may stay; None where any row may.

    Raises:
        ConfigError: the required ids alone are more than ``size``.
    """
    path = vocabulary.path if vocabulary is not None else lambda index: {index}
    known = set(vocabulary.tokens.values()) if vocabulary is not None else range(len(counts))
    kept: set[int] = set().union(*(path(index) for index in required))
    if size is not None and len(kept) > size:
        raise ConfigError(
            f"size={size} is too small: special tokens, single characters and keep are {len(kept)} tokens already; "
            f"set size to {len(kept)} or more"
        )
    frequency = counts.tolist()
    for index in torch.argsort(counts, descending=True, stable=True).tolist():
        if frequency[index] < min_count:
            break
        more = path(index) - kept if index in known else set()
        if size is None or len(kept) + len(more) <= size:
            kept |= more
    return sorted(kept)


def trim_embedding(weight: torch.Tensor, kept: torch.Tensor) -> torch.Tensor:
    """Rows ``kept`` of ``weight``: shapes (vocabulary, ...) and (kept,) to (kept, ...)."""
    return weight.index_select(0, kept.to(weight.device)).contiguous()


def id_map(kept: torch.Tensor, size: int, substitutes: Mapping[int, int]) -> torch.Tensor:
    """[parent id -> new id], shape (size,).

    Args:
        kept: [new id -> parent id], shape (kept,), ascending.
        substitutes: dropped parent id -> the kept parent id in its place; -1 marks those without one.
    """
    new = torch.full((size,), -1, dtype=torch.long)
    new[kept] = torch.arange(len(kept))
    if substitutes:
        dropped, instead = (torch.tensor(list(ids)) for ids in (substitutes.keys(), substitutes.values()))
        new[dropped] = new[instead]
    return new


def map_ids(ids: torch.Tensor, new: torch.Tensor) -> torch.Tensor:
    """New ids of ``ids`` (any shape); negative ones, such as the -100 of labels that do not count, stay as they are.

    Raises:
        ConfigError: an id that ``new`` (`id_map`) does not know.
    """
    if ids.numel() and int(ids.max()) >= len(new):
        raise ConfigError(
            f"token id {int(ids.max())} is outside the vocabulary of {len(new)} that was trimmed; tokenize the data "
            "with the tokenizer that the model came with"
        )
    mapped = new.to(ids.device)[ids.clamp(min=0)]
    if bool((mapped < 0).any()):
        raise ConfigError(
            f"token id {int(ids[mapped < 0][0])} has no token in the tokenizer, and there is no unknown token to take "
            "its place; tokenize the data with the tokenizer that the model came with"
        )
    return torch.where(ids < 0, ids, mapped.to(ids.dtype))


def parent_ids(child_tokens: Mapping[str, int], parent_tokens: Mapping[str, int]) -> list[int] | None:
    """[child id -> parent id] of a trimmed vocabulary; None if it is none: a token that the parent does not have.

    Args:
        child_tokens, parent_tokens: token -> id, as ``tokenizer.get_vocab()`` gives them; ids that the child leaves out
            become 0.
    """
    if any(token not in parent_tokens for token in child_tokens):
        return None
    ids = [0] * (max(child_tokens.values(), default=-1) + 1)
    for token, index in child_tokens.items():
        ids[index] = parent_tokens[token]
    return ids


def split_alike(one: str, other: str) -> bool:
    """Whether two tokenizers, as `tokenizer.json` texts, treat text alike before their vocabularies come in."""
    files = [json.loads(text) for text in (one, other)]
    traits = [
        (file.get("normalizer"), file.get("pre_tokenizer"), {**file["model"], "vocab": 0, "merges": 0, "unk_id": 0})
        for file in files
    ]
    return traits[0] == traits[1]

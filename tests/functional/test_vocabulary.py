"""Tokenizer files rewritten for a part of their vocabulary: same pieces, renumbered ids."""

import json
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from hf_efficient import ConfigError
from hf_efficient.functional.vocabulary import (
    Vocabulary,
    choose,
    id_map,
    map_ids,
    parent_ids,
    split_alike,
    trim_embedding,
)

CORPUS = [
    "my card is lost and the payment was declined",
    "the app keeps losing my payments, how do i pay",
    "declining cards: losses, paying, payers and lost apps",
    "unbelievable transactions were reversed yesterday",
] * 3
SPECIAL = ["<pad>", "<unk>", "<s>", "</s>"]
USED = "card is the lost card declined"


def wordpiece() -> Tokenizer:
    tokenizer = Tokenizer(models.WordPiece(unk_token="<unk>"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.train_from_iterator(CORPUS, trainers.WordPieceTrainer(vocab_size=150, special_tokens=SPECIAL))
    tokenizer.post_processor = processors.BertProcessing(("</s>", 3), ("<s>", 2))
    return tokenizer


def byte_level() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=380, special_tokens=SPECIAL, initial_alphabet=alphabet)
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 3), ("<s>", 2))
    return tokenizer


def word_ends() -> Tokenizer:
    """As CLIP's: tokens that end a word carry a suffix."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", end_of_word_suffix="</w>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    trainer = trainers.BpeTrainer(vocab_size=150, special_tokens=SPECIAL, end_of_word_suffix="</w>")
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer


def continuations() -> Tokenizer:
    """Byte pairs whose later pieces carry a prefix."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", continuing_subword_prefix="##"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    trainer = trainers.BpeTrainer(vocab_size=150, special_tokens=SPECIAL, continuing_subword_prefix="##")
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer


def unigram() -> Tokenizer:
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(vocab_size=120, special_tokens=SPECIAL, unk_token="<unk>", show_progress=False)
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 2), ("</s>", 3)]
    )
    return tokenizer


def word_level() -> Tokenizer:
    tokenizer = Tokenizer(models.WordLevel(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.train_from_iterator(CORPUS, trainers.WordLevelTrainer(special_tokens=SPECIAL))
    return tokenizer


ALL = [wordpiece, byte_level, word_ends, continuations, unigram, word_level]


def trim(tokenizer: Tokenizer, text: str = USED) -> tuple[Tokenizer, list[int]]:
    """The tokenizer for what ``text`` needs, and the parent ids kept."""
    vocabulary = Vocabulary(tokenizer.to_str())
    used = vocabulary.always_kept() | set(tokenizer.encode(text).ids)
    kept = sorted(set().union(*(vocabulary.path(index) for index in used)))
    return Tokenizer.from_str(vocabulary.trimmed(kept)), kept


@pytest.mark.parametrize("make", ALL)
def test_same_pieces_at_the_same_places(make: Any) -> None:
    parent = make()
    parent.add_tokens(["[added]"])
    parent.enable_padding(pad_id=0, pad_token="<pad>", length=24)
    child, kept = trim(parent)
    assert len(kept) == child.get_vocab_size() < parent.get_vocab_size()
    for text in (USED, "card the lost", "card [added] declined"):
        before, after = parent.encode(text), child.encode(text)
        assert before.tokens == after.tokens
        assert before.offsets == after.offsets
        assert before.ids == [kept[index] for index in after.ids]
    assert child.decode(child.encode(USED).ids) == parent.decode(parent.encode(USED).ids)


@pytest.mark.parametrize("make", [wordpiece, byte_level, word_ends, continuations, unigram])
def test_a_dropped_word_is_split_into_what_is_left(make: Any) -> None:
    parent = make()
    child, _ = trim(parent)
    word = "losing payments"
    before, after = parent.encode(word), child.encode(word)
    assert not set(before.tokens) <= set(child.get_vocab())
    assert len(after.tokens) > len(before.tokens)
    assert "<unk>" not in after.tokens


def test_words_without_pieces_are_unknown() -> None:
    child, _ = trim(word_level())
    assert child.encode("lost payments").tokens == ["lost", "<unk>"]


def test_older_files_write_merges_as_text() -> None:
    parent = byte_level()
    file = json.loads(parent.to_str())
    file["model"]["merges"] = [" ".join(pair) for pair in file["model"]["merges"]]
    child, _ = trim(Tokenizer.from_str(json.dumps(file)))
    assert child.encode(USED).tokens == parent.encode(USED).tokens


def test_every_kind_of_post_processor_is_renumbered() -> None:
    parent = wordpiece()
    parent.post_processor = processors.Sequence([processors.ByteLevel(), parent.post_processor])
    child, kept = trim(parent)
    assert [kept[index] for index in child.encode("card").ids] == parent.encode("card").ids


def test_substitutes() -> None:
    parent = wordpiece()
    vocabulary = Vocabulary(parent.to_str())
    assert vocabulary.substitute(parent.token_to_id("payment"), {0, 1}) == 1
    bytes_only = byte_level()
    vocabulary = Vocabulary(bytes_only.to_str())
    dropped = bytes_only.encode(" declined").ids
    assert vocabulary.substitute(dropped[1], vocabulary.always_kept()) == bytes_only.token_to_id("Ġ")


def test_another_model_is_refused() -> None:
    with pytest.raises(ConfigError, match="type Magic; allowed: WordPiece, BPE, Unigram, WordLevel"):
        Vocabulary(json.dumps({"model": {"type": "Magic"}, "added_tokens": []}))


def test_the_most_frequent_stay() -> None:
    counts = torch.tensor([0, 5, 1, 9, 0, 2])
    assert choose(counts, {0}, 1, None, None) == [0, 1, 2, 3, 5]
    assert choose(counts, {0}, 2, None, None) == [0, 1, 3, 5]
    assert choose(counts, {0}, 1, 3, None) == [0, 1, 3]
    assert choose(counts, {0}, 0, None, None) == list(range(6))
    with pytest.raises(ConfigError, match=r"size=1 is too small.*set size to 2 or more"):
        choose(counts, {0, 4}, 1, 1, None)


def test_a_limit_counts_what_merges_pass_through() -> None:
    parent = byte_level()
    vocabulary = Vocabulary(parent.to_str())
    counts = torch.bincount(torch.tensor(parent.encode(USED).ids), minlength=parent.get_vocab_size())
    limit = len(vocabulary.always_kept()) + 3
    kept = choose(counts, vocabulary.always_kept(), 1, limit, vocabulary)
    assert len(kept) <= limit
    assert all(vocabulary.path(index) <= set(kept) for index in kept)


def test_ids_and_embeddings() -> None:
    weight, kept = torch.arange(12.0).view(6, 2), torch.tensor([0, 2, 5])
    trimmed = trim_embedding(weight, kept)
    new = id_map(kept, 6, {1: 0, 3: 2})
    ids = torch.tensor([[0, 5, 1], [2, 3, -100]])
    mapped = map_ids(ids, new)
    assert mapped.tolist() == [[0, 2, 0], [1, 1, -100]]
    assert torch.equal(trimmed[mapped[0]], weight[[0, 5, 0]])
    with pytest.raises(ConfigError, match="token id 6 is outside the vocabulary of 6"):
        map_ids(torch.tensor([6]), new)
    with pytest.raises(ConfigError, match="token id 4 has no token"):
        map_ids(torch.tensor([4]), new)


def test_ids_of_the_parent() -> None:
    parent = unigram()
    child, kept = trim(parent)
    assert parent_ids(child.get_vocab(), parent.get_vocab()) == kept
    assert parent_ids({"elsewhere": 0}, parent.get_vocab()) is None
    assert split_alike(child.to_str(), parent.to_str())
    other = unigram()
    other.normalizer = normalizers.Lowercase()
    assert not split_alike(child.to_str(), other.to_str())
    assert not split_alike(wordpiece().to_str(), unigram().to_str())

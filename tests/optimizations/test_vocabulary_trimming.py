"""vocabulary_trimming: real tokenizers, the ids of every batch, and what it refuses."""

import dataclasses
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from transformers import (
    AutoTokenizer,
    BartForConditionalGeneration,
    BertConfig,
    BertForSequenceClassification,
    CanineTokenizer,
    DataCollatorForSeq2Seq,
    DataCollatorWithPadding,
    PreTrainedTokenizerFast,
    TrainingArguments,
    set_seed,
)

from hf_efficient import (
    ConfigError,
    EfficientTrainer,
    EfficientTrainingArguments,
    VocabularyTrimming,
)
from hf_efficient.optimization import Context
from tests.functional.test_vocabulary import CORPUS, byte_level, unigram, wordpiece
from tests.test_parity import build
from tests.tiny import VOCABULARY, Examples, pad, seq2seq_model, text_examples, text_model

SPECIAL = {"pad_token": "<pad>", "unk_token": "<unk>", "cls_token": "<s>", "sep_token": "</s>"}
TRAIN = ["my card is lost and the payment was declined", "the app keeps losing my payments"]


def small_bert(rows: int, padding: int = 0) -> BertForSequenceClassification:
    set_seed(0)
    size = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    return BertForSequenceClassification(BertConfig(vocab_size=rows, pad_token_id=padding, **size)).eval()


def fast(name: str, default_model: str) -> Any:
    if name == "all-MiniLM":
        return AutoTokenizer.from_pretrained(default_model)
    made = {"wordpiece": wordpiece, "byte_level": byte_level, "unigram": unigram}[name]()
    return PreTrainedTokenizerFast(
        tokenizer_object=made, **(SPECIAL if name != "byte_level" else {"pad_token": "<pad>"})
    )


def examples(tokenizer: Any, texts: list[str] = TRAIN) -> Examples:
    rows = [tokenizer(text) for text in texts]
    return Examples([{**{key: row[key] for key in ("input_ids", "attention_mask")}, "labels": 0} for row in rows])


def prepare(
    optimization: Any, model: Any, folder: Path, tokenizer: Any = None, data: Any = None, **more: Any
) -> Context:
    """What a trainer does up to the first step; ``context.model`` is the result."""
    context = Context(TrainingArguments(str(folder), use_cpu=True), model, folder, processor=tokenizer, **more)
    optimization.prepare_data(data)
    context.model = optimization.prepare_model(model, context)
    return context


@pytest.mark.parametrize("name", ["all-MiniLM", "wordpiece", "byte_level", "unigram"])
def test_kept_texts_have_the_same_pieces_and_logits(name: str, tmp_path: Path, default_model: str) -> None:
    parent = fast(name, default_model)
    model = small_bert(len(parent))
    before = {text: model(**parent(text, return_tensors="pt")).logits for text in TRAIN}
    trimming = VocabularyTrimming()
    context = prepare(trimming, model, tmp_path, parent, examples(parent))
    context.processor.save_pretrained(tmp_path / "saved")
    reloaded = AutoTokenizer.from_pretrained(tmp_path / "saved")
    for child in (context.processor, reloaded):
        assert len(child) == model.config.vocab_size < len(parent)
        for text, logits in before.items():
            left, right = (one(text, return_offsets_mapping=True) for one in (parent, child))
            assert left.tokens() == right.tokens()
            assert left["offset_mapping"] == right["offset_mapping"]
            mapped = trimming.map_batch({"input_ids": torch.tensor([left["input_ids"]])})["input_ids"]
            assert mapped.tolist() == [right["input_ids"]]
            torch.testing.assert_close(model(**child(text, return_tensors="pt")).logits, logits)
    assert len(parent(TRAIN[0]).tokens()) == len(parent(TRAIN[0])["input_ids"])  # the parent is as it was
    assert trimming.describe()["unknown_share_train"] == 0


def test_a_dropped_word_is_spelled(tmp_path: Path, default_model: str) -> None:
    parent = fast("all-MiniLM", default_model)
    context = prepare(
        VocabularyTrimming(keep=["refund", "IBAN"]), small_bert(len(parent)), tmp_path, parent, examples(parent)
    )
    child = context.processor
    assert parent.tokenize("mortgage") == ["mortgage"]
    assert "[UNK]" not in child.tokenize("mortgage")
    assert len(child.tokenize("mortgage")) > 1
    assert "".join(piece.removeprefix("##") for piece in child.tokenize("mortgage")) == "mortgage"
    for word in ("refund", "IBAN"):
        assert child.tokenize(word) == parent.tokenize(word)
    assert child.model_max_length == parent.model_max_length
    assert (child.pad_token_id, child.cls_token) == (0, "[CLS]")


def test_the_rarest_go_first(tmp_path: Path) -> None:
    counted = VocabularyTrimming(min_count=9)
    prepare(counted, text_model(), tmp_path / "count", data=text_examples())
    data = text_examples()
    frequency = torch.bincount(torch.cat([row["input_ids"] for row in data]), minlength=VOCABULARY)
    told = counted.describe()
    kept = set(counted.state_dict()["kept"])
    assert kept == {0, *torch.where(frequency >= 9)[0].tolist()}
    assert told["train_tokens"] == frequency.sum()
    assert told["unknown_share_train"] == pytest.approx(
        float(frequency[sorted(set(range(48)) - kept)].sum() / frequency.sum())
    )
    assert told["tokenizer"] == "none given, none rewritten"
    limited = VocabularyTrimming(size=10)
    model = text_model()
    prepare(limited, model, tmp_path / "size", data=text_examples(), evaluation=text_examples(8, seed=1))
    assert model.config.vocab_size == 10
    assert 0.5 < limited.describe()["unknown_share_evaluation"] < 1


@pytest.mark.parametrize("form", ["arrow", "torch", "transform", "sliced"])
def test_counts_are_the_same_however_data_is_stored(form: str, tmp_path: Path) -> None:
    rows = [{"input_ids": row["input_ids"].tolist(), "labels": row["labels"]} for row in text_examples()]
    data = datasets.Dataset.from_list(rows)
    data = {
        "arrow": data,
        "torch": data.with_format("torch"),
        "transform": data.with_transform(lambda batch: batch),
        "sliced": data.shuffle(seed=0).select(range(len(data))),
    }[form]
    kept = []
    for index, each in enumerate((text_examples(), data)):
        trimming = VocabularyTrimming(size=20)
        prepare(trimming, text_model(), tmp_path / str(index), data=each)
        kept.append(trimming.state_dict()["kept"])
    assert kept[0] == kept[1]


class Tokenize:
    """A collator that makes the token ids itself."""

    def __init__(self, tokenizer: Any):
        self.tokenizer = tokenizer

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        batch = self.tokenizer([row["text"] for row in rows], padding=True, return_tensors="pt")
        return {**batch, "labels": torch.tensor([row["labels"] for row in rows])}


def trainer(folder: Path, settings: dict[str, Any] | None = None, given: Any = None, **options: Any) -> Any:
    optimizations = {"vocabulary_trimming": {"size": 32} if settings is None else settings}
    return build(
        EfficientTrainer,
        EfficientTrainingArguments,
        folder,
        given=given,
        **{"optimizations": optimizations, "measure_seconds": 0, **options},
    )


def test_a_collator_that_tokenizes(tmp_path: Path, default_model: str) -> None:
    """Its tokenizer is the trainer's, and goes on tokenizing as before."""
    tokenizer = fast("all-MiniLM", default_model)
    rows = [{"text": text, "labels": index % 2} for index, text in enumerate(CORPUS)]
    given = {
        "model": small_bert(len(tokenizer)),
        "train_dataset": Examples(rows),
        "eval_dataset": Examples(rows),
        "data_collator": Tokenize(tokenizer),
    }
    one = trainer(tmp_path, {}, given, remove_unused_columns=False)
    one.train()
    assert len(tokenizer) == 30522
    assert len(one.processing_class) == one.model.config.vocab_size < 5000
    texts = [row["text"] for row in rows]
    expected = one.processing_class(texts, padding=True, return_tensors="pt")["input_ids"]
    assert torch.equal(one.collate(rows)["input_ids"], expected)
    final = AutoTokenizer.from_pretrained(one.finished)
    assert final.get_vocab() == one.processing_class.get_vocab()
    assert AutoTokenizer.from_pretrained(tmp_path / "checkpoint-4").get_vocab() == final.get_vocab()


def test_padding_of_the_parent_becomes_that_of_the_child(tmp_path: Path) -> None:
    made = wordpiece()
    made.add_special_tokens(["<end>"])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=made, **{**SPECIAL, "pad_token": "<end>"})
    model = small_bert(len(tokenizer), padding=tokenizer.pad_token_id)
    data = examples(tokenizer, CORPUS)
    given = {
        "model": model,
        "train_dataset": data,
        "eval_dataset": data,
        "data_collator": DataCollatorWithPadding(tokenizer),
    }
    one = trainer(tmp_path, {"min_count": 4}, {**given, "processing_class": tokenizer})
    one.train()
    batch = one.collate(data.examples[:4])
    assert one.processing_class.pad_token_id == one.model.config.pad_token_id == len(one.processing_class) - 1
    assert one.model.get_input_embeddings().padding_idx == one.model.config.pad_token_id < len(tokenizer) - 1
    assert ((batch["input_ids"] == one.model.config.pad_token_id) == (batch["attention_mask"] == 0)).all()


def test_labels_of_classifiers_stay(tmp_path: Path) -> None:
    one = trainer(tmp_path, kind="token", max_steps=1)
    rows = one.train_dataset.examples[:4]
    labels = pad(rows)["labels"]
    one.train()
    assert torch.equal(one.collate(rows)["labels"], labels)


def marian_like() -> BartForConditionalGeneration:
    """Padding and the decoder's start are the last id, as Marian has it."""
    model = seq2seq_model()
    config = model.config
    config.pad_token_id = config.decoder_start_token_id = VOCABULARY - 1
    config.eos_token_id = config.forced_eos_token_id = 3
    set_seed(0)
    return BartForConditionalGeneration(config).eval()


class Padding:
    """What `DataCollatorForSeq2Seq` needs of a tokenizer."""

    padding_side = "right"

    def pad(self, rows: list[dict[str, Any]], **kwargs: Any) -> dict[str, torch.Tensor]:
        return pad(rows)


def test_labels_and_decoder_inputs_of_translation(tmp_path: Path) -> None:
    """The collator shifts parent labels, with the start and padding that the model's config has by then."""
    model = marian_like()
    rows = [{"input_ids": [5, 9, 9], "labels": [20, 33, 3]}, {"input_ids": [9, 30, 5], "labels": [40, 3]}]
    collate = DataCollatorForSeq2Seq(Padding(), model=model)  # type: ignore[arg-type]
    batch = collate([dict(row) for row in rows])
    with torch.no_grad():
        before = model(**batch)
    trimming = VocabularyTrimming()
    prepare(trimming, model, tmp_path, data=Examples(rows))
    kept = trimming.state_dict()["kept"]
    assert {5, 9, 20, 30, 33, 40, VOCABULARY - 1} <= set(kept)
    mapped = trimming.map_batch(collate([dict(row) for row in rows]))
    with torch.no_grad():
        after = model(**mapped)
    torch.testing.assert_close(after.logits, before.logits[..., kept])
    assert mapped["decoder_input_ids"].tolist() == [
        [kept.index(i) for i in (47, 20, 33)],
        [kept.index(i) for i in (47, 40, 3)],
    ]
    assert mapped["labels"][1].tolist() == [kept.index(40), kept.index(3), -100]
    plain = {key: value for key, value in mapped.items() if key != "decoder_input_ids"}
    with torch.no_grad():
        torch.testing.assert_close(model(**plain).loss, after.loss)


def test_data_and_tokenizer_of_a_trimmed_checkpoint_are_taken_as_they_are(tmp_path: Path, default_model: str) -> None:
    parent = fast("wordpiece", default_model)
    trimming = VocabularyTrimming(min_count=2)
    model = small_bert(len(parent))
    context = prepare(trimming, model, tmp_path, parent, examples(parent, CORPUS[:4]))
    again = VocabularyTrimming(min_count=2)
    again.load_state_dict(trimming.state_dict())
    prepare(again, model, tmp_path, context.processor)
    batch = {"input_ids": torch.tensor([[1, 2, 3]])}
    assert again.map_batch(batch) is batch
    with pytest.raises(ConfigError, match=r"decided for 1\d\d token embeddings, to keep \d+, but the model has 48"):
        prepare(again, text_model(), tmp_path, parent)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"min_count": -1}, "min_count must be at least 0, got -1"),
        ({"size": 0}, "size must be at least 1, got 0"),
        ({"keep": [""]}, "keep must name tokens or words"),
    ],
)
def test_settings_out_of_range(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        VocabularyTrimming(**settings)


def test_slow_tokenizers_are_refused_first(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"rewrites fast tokenizers.*got CanineTokenizer"):
        trainer(tmp_path, given={"processing_class": CanineTokenizer()})


def test_what_needs_a_tokenizer_is_refused_without(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"keep=.'card'. needs a tokenizer; pass processing_class="):
        trainer(tmp_path, {"keep": ["card"]}).train()
    model = text_model(pad_token_id=None)
    with pytest.raises(ConfigError, match="needs a padding token"):
        trainer(tmp_path, given={"model": model}).train()


def test_data_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="the data has the token id 99, but the model has 48"):
        prepare(VocabularyTrimming(), text_model(), tmp_path, data=Examples([{"input_ids": [99]}]))
    endless = datasets.IterableDataset.from_generator(lambda: iter([{"input_ids": [5]}]))
    with pytest.raises(ConfigError, match="a data set without a length"):
        prepare(VocabularyTrimming(), text_model(), tmp_path, data=endless)


def test_more_tokens_than_embeddings(tmp_path: Path, default_model: str) -> None:
    tokenizer = fast("wordpiece", default_model)
    rows = len(tokenizer)
    tokenizer.add_tokens(["[new]"])
    with pytest.raises(ConfigError, match=r"resize_token_embeddings\(len\(tokenizer\)\) first"):
        prepare(VocabularyTrimming(), small_bert(rows), tmp_path, tokenizer, examples(tokenizer))


def test_settings_are_fields() -> None:
    assert dataclasses.asdict(VocabularyTrimming()) == {"min_count": 1, "keep": [], "size": None}

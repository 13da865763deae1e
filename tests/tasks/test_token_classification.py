"""Token classification: tags of any scheme, labels on the right pieces, metrics of whole entities."""

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, DatasetDict, Features, List, Value
from seqeval.metrics import f1_score, recall_score
from sklearn.metrics import precision_recall_fscore_support
from transformers import AutoModelForTokenClassification, EvalPrediction, pipeline

from hf_efficient.data import load
from hf_efficient.errors import ConfigError, DataError
from hf_efficient.tasks.token_classification import IGNORED, TokenClassification, TokenClassificationData
from tests.tasks.conftest import tiny_checkpoint

WORDS = [["my", "card", "is", "lost"], ["pay", "the", "apps", "now"], ["money", "?"]]
TAGS = [["O", "B-thing", "I-thing", "O"], ["O", "O", "B-place", "O"], ["B-thing", "O"]]
LABELS = ["O", "B-place", "B-thing", "I-thing"]


def splits(words: list = WORDS, tags: list = TAGS, test: list | None = None) -> DatasetDict:
    rows = Dataset.from_dict({"tokens": words, "ner_tags": tags})
    other = rows if test is None else Dataset.from_dict({"tokens": [["a"] * len(test)], "ner_tags": [test]})
    return DatasetDict({"train": rows, "test": other})


def checked(data: DatasetDict, **settings: Any) -> TokenClassification:
    built = TokenClassification(TokenClassificationData(train="unused", **{"max_length": 16, **settings}))
    built.check(data)
    return built


def prediction(built: TokenClassification, found: list[list[str]], given: list[list[str]]) -> EvalPrediction:
    """Logits that say ``found``, of texts padded to one length and with a piece without a label in front."""
    length = max(map(len, given)) + 1
    labels = np.full((len(given), length), IGNORED)
    logits = np.random.default_rng(0).normal(size=(len(given), length, len(built.label_names)))
    for row, (said, truth) in enumerate(zip(found, given, strict=True)):
        for place, (one, other) in enumerate(zip(said, truth, strict=True), start=1):
            logits[row, place, built.label_names.index(one)] += 100
            labels[row, place] = built.label_names.index(other)
    return EvalPrediction(predictions=logits, label_ids=labels)


# Labels


@pytest.mark.parametrize(
    "tags",
    [
        TAGS,
        [["O", "I-thing", "I-thing", "O"], ["O", "O", "I-place", "O"], ["I-thing", "O"]],
        [["O", "B-thing", "E-thing", "O"], ["O", "O", "S-place", "O"], ["U-thing", "O"]],
    ],
)
def test_labels_are_bio_whatever_the_scheme(tags: list, checkpoint: str) -> None:
    data = splits(tags=tags)
    built = checked(data)
    assert built.label_names == LABELS
    built.load_processor(checkpoint)
    names = [[LABELS[i] for i in row if i != IGNORED] for row in built.encode(data["train"])["labels"]]
    assert names == TAGS


def test_numbers_of_named_classes(checkpoint: str) -> None:
    names = ["B-thing", "O", "I-thing", "B-place"]
    features = Features({"tokens": List(Value("string")), "ner_tags": List(ClassLabel(names=names))})
    rows = Dataset.from_dict(
        {"tokens": WORDS, "ner_tags": [[names.index(tag) for tag in row] for row in TAGS]}, features=features
    )
    data = DatasetDict({"train": rows, "test": rows})
    built = checked(data)
    assert built.label_names == LABELS
    built.load_processor(checkpoint)
    assert built.encode(data["train"]) is not None


BAD = {
    "lengths": (splits(tags=[["O"] * 3, *TAGS[1:]]), r"data.train: row 1 has 4 words and 3 tags; give each word one"),
    "scheme": (splits(tags=[["O", "thing", "O", "O"], *TAGS[1:]]), r"data.train: row 1: 'thing' is no tag of BIO"),
    "no words": (splits(words=[[], *WORDS[1:]], tags=[[], *TAGS[1:]]), r"row 1 has no words; delete it"),
    "no entity": (splits(tags=[["O"] * len(row) for row in TAGS]), r"data.train marks no entity"),
    "unseen type": (
        splits(test=["B-person"]),
        r"data.test has entities of type 'person', but data.train has none; add",
    ),
    "unseen tag": (
        splits(test=["B-place", "I-place"]),
        r"data.test has the tag 'I-place', but data.train has none; add",
    ),
    "text": (splits(words=["my card is lost"] * 3), r"'tokens' must hold a list of words in each row, got string"),
    "numbers": (
        splits(tags=[[0, 1, 2, 0], [0, 0, 3, 0], [1, 0]]),
        r"'ner_tags' must hold a list of named tags in each row, got lists of int64",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_data(case: str) -> None:
    data, message = BAD[case]
    with pytest.raises(DataError, match=message):
        checked(data)


# Encoding


def test_labels_stand_at_the_first_piece_of_each_word(checkpoint: str) -> None:
    data = splits()
    built = checked(data)
    tokenizer = built.load_processor(checkpoint)
    row = built.encode(data["train"])[1]
    words = tokenizer(WORDS[1], is_split_into_words=True).word_ids()
    expected, before = [], None
    for word in words:
        expected.append(IGNORED if word is None or word == before else LABELS.index(TAGS[1][word]))
        before = word
    assert row["labels"] == expected
    assert expected.count(IGNORED) > 2, "a word of several pieces"


def test_words_beyond_max_length_are_told(checkpoint: str, caplog: pytest.LogCaptureFixture) -> None:
    data = splits()
    built = checked(data, max_length=4)
    built.load_processor(checkpoint)
    with caplog.at_level(logging.WARNING):
        built.encode(data["train"])
    assert "of 10 words lie beyond data.max_length=4" in caplog.text


def test_long_texts_are_judged_as_a_whole(checkpoint: str) -> None:
    """An entity that lies across two windows is one entity, and each word is judged once."""
    words = ["my", "card", "is", "lost", "the", "app", "now"] * 3
    tags = ["O", "B-thing", "I-thing", "I-thing", "I-thing", "O", "O"] * 3
    data = splits(words=[words, *WORDS], tags=[tags, *TAGS])
    built = checked(data, max_length=8, stride=3)
    built.load_processor(checkpoint)
    encoded = built.encode(data["train"])
    assert len(encoded) > len(words) / 6 + 3
    assert max(map(len, encoded["input_ids"])) == 8
    labels = torch.nn.utils.rnn.pad_sequence([torch.tensor(row) for row in encoded["labels"]], True, IGNORED).numpy()
    assert [LABELS[label] for label in labels[labels != IGNORED]] == [*tags, *(tag for row in TAGS for tag in row)]
    logits = np.eye(len(LABELS))[np.where(labels == IGNORED, 0, labels)]
    said = EvalPrediction(predictions=logits, label_ids=labels)
    assert built.compute_metrics(said)["f1"] == 1
    row = next(line for line in built.details(said)["entities.txt"].splitlines() if "thing" in line).split()
    assert row[-1] == str(3 + 2), "entities of the long text, and of the short ones"


def test_windows_of_a_text_for_serving(checkpoint: str) -> None:
    built = checked(splits(), max_length=8, stride=2)
    built.load_processor(checkpoint)
    batch = built.preprocess([" ".join(["card"] * 20), "lost"])
    assert batch["input_ids"].shape == (6, 8)
    built.load_model(checkpoint)(**batch)


def test_stride_that_leaves_no_room(checkpoint: str) -> None:
    with pytest.raises(ConfigError, match=r"data.stride is 6, but with data.max_length=8 .* room for 6 tokens"):
        checked(splits(), max_length=8, stride=6).load_processor(checkpoint)


def test_rows_without_tags(checkpoint: str) -> None:
    built = checked(splits())
    built.load_processor(checkpoint)
    assert "labels" not in built.encode(Dataset.from_dict({"tokens": WORDS})).column_names


def test_batches_train(checkpoint: str) -> None:
    data = splits()
    built = checked(data)
    built.load_processor(checkpoint)
    batch = built.collator()(list(built.encode(data["train"])))
    assert batch["labels"].shape == batch["input_ids"].shape
    assert torch.isfinite(built.load_model(checkpoint)(**batch).loss)


# Metrics


def test_metrics_are_those_of_seqeval_and_scikit_learn() -> None:
    built = checked(splits())
    found = [["O", "B-thing", "O", "O"], ["O", "B-place", "O", "O"], ["B-thing", "O"]]
    said = prediction(built, found, TAGS)
    metrics = built.compute_metrics(said)
    assert metrics["f1"] == pytest.approx(f1_score(TAGS, found))
    assert metrics["recall"] == pytest.approx(recall_score(TAGS, found)) == pytest.approx(1 / 3)
    assert metrics["accuracy"] == pytest.approx(0.7)
    assert TokenClassification.main_metric in metrics
    assert built.per_class(said) == {"place": 0.0, "thing": 0.5}
    details = built.details(said)
    assert {"entities.txt", "tags.txt"} == set(details)
    row = next(line for line in details["tags.txt"].splitlines() if "B-thing" in line).split()
    flat = [[tag for tags in rows for tag in tags] for rows in (TAGS, found)]
    exact = precision_recall_fscore_support(*flat, labels=["B-thing"], zero_division=0)
    assert row == ["B-thing", *(f"{value[0]:.4f}" for value in exact[:3]), "2"]
    assert all(mean in details["tags.txt"] for mean in ("micro avg", "macro avg", "weighted avg"))
    assert " O " not in details["tags.txt"]


def test_an_entity_said_with_no_beginning_counts_as_one() -> None:
    built = checked(splits())
    said = prediction(built, [["O", "I-thing", "I-thing", "O"], *TAGS[1:]], TAGS)
    assert built.compute_metrics(said)["f1"] == 1.0


def test_no_entity_at_all() -> None:
    built = checked(splits())
    nothing = [["O"] * len(row) for row in TAGS]
    said = prediction(built, nothing, nothing)
    assert built.compute_metrics(said)["f1"] == 0.0
    assert built.per_class(said) == {}
    assert set(built.details(said).values()) == {"No text has an entity, and none was found.\n"}


# Models


def test_baseline_is_the_usual_tag_of_each_word() -> None:
    train = {
        "tokens": [["Rome", "is", "big"], ["Rome", "fell"], ["Rome"]],
        "ner_tags": [["B-p", "O", "O"], ["B-p", "O"], ["O"]],
    }
    test = {"tokens": [["Rome", "fell"], ["Paris", "fell"]], "ner_tags": [["B-p", "O"], ["B-p", "O"]]}
    data = DatasetDict({"train": Dataset.from_dict(train), "test": Dataset.from_dict(test)})
    name, found = checked(data).baseline(data, "test")
    assert name == "each word's most frequent tag in train"
    assert (found["precision"], found["recall"]) == (1.0, 0.5)


def test_pipeline_finds_words_of_raw(checkpoint: str, tmp_path: Path) -> None:
    data = splits()
    built = checked(data)
    tokenizer = built.load_processor(checkpoint)
    built.load_model(checkpoint).save_pretrained(tmp_path / "final")
    model = AutoModelForTokenClassification.from_pretrained(tmp_path / "final")
    assert model.config.id2label == dict(enumerate(LABELS))
    answers = pipeline(built.pipeline, model=model, tokenizer=tokenizer)(built.raw(data["train"][0]))
    assert all(answer["entity"] in LABELS for answer in answers)
    batch = built.preprocess([built.raw(row) for row in data["train"]])
    assert batch["input_ids"].shape[0] == 3


def test_byte_level_tokenizers_take_words_with_a_space(tmp_path: Path) -> None:
    from tokenizers import ByteLevelBPETokenizer
    from transformers import RobertaConfig, RobertaForTokenClassification, RobertaTokenizer

    trained = ByteLevelBPETokenizer()
    trained.train_from_iterator(
        [" ".join(row) for row in WORDS * 5], vocab_size=300, special_tokens=["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    )
    trained.save_model(str(tmp_path))
    tokenizer = RobertaTokenizer.from_pretrained(tmp_path, model_max_length=32)
    folder = tmp_path / "model"
    tokenizer.save_pretrained(folder)
    size = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    config = RobertaConfig(vocab_size=len(tokenizer), max_position_embeddings=40, **size)
    RobertaForTokenClassification(config).save_pretrained(folder)
    data = splits()
    built = checked(data)
    loaded = built.load_processor(str(folder))
    ids = built.encode(data["train"])[0]["input_ids"]
    assert loaded.decode(ids, skip_special_tokens=True).split() == WORDS[0]


def test_slow_tokenizer_is_refused(checkpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    built = checked(splits())
    tokenizer = built.load_processor(checkpoint)
    monkeypatch.setattr(type(tokenizer), "is_fast", False)
    with pytest.raises(ConfigError, match="has no fast tokenizer"):
        built.load_processor(checkpoint)


@pytest.mark.data
def test_public_data(data_folder: Path) -> None:
    folder = data_folder / "crossner"
    settings = TokenClassificationData(train=str(folder / "test.jsonl"), test=str(folder / "validation.jsonl"))
    data = load(settings)
    built = TokenClassification(settings)
    built.check(data)
    assert len(built.label_names) == 79
    assert built.label_names[0] == "O"


def test_checkpoint_of_another_head(tmp_path: Path) -> None:
    """The tiny checkpoint is a text classifier: its backbone is taken, the head is new."""
    folder = tiny_checkpoint(tmp_path / "model")
    built = checked(splits())
    built.load_processor(folder)
    assert built.load_model(folder).classifier.out_features == len(LABELS)

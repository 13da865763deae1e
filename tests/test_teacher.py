"""Teachers understand the student's batches, and are refused where they cannot."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import BertForSequenceClassification, TrainingArguments

from hf_efficient.errors import ConfigError
from hf_efficient.example_cache import ExampleCache
from hf_efficient.optimization import Context
from hf_efficient.teacher import SELF, Teacher, Teachers
from tests.tiny import KINDS, VOCABULARY, arguments, pad, seq2seq_model, text_model, token_model


class Words:
    """A tokenizer as far as vocabularies go."""

    def __init__(self, vocabulary: dict[str, int]):
        self.vocabulary = vocabulary

    def get_vocab(self) -> dict[str, int]:
        return self.vocabulary


def context(**given: Any) -> Context:
    return Context(args=arguments(TrainingArguments, "out"), **given)


def saved(folder: Path, model: Any) -> str:
    model.save_pretrained(folder)
    return str(folder)


def batch(kind: str = "text", count: int = 5) -> dict[str, torch.Tensor]:
    return pad(KINDS[kind].examples(count).examples)


def test_labels_in_another_order(tmp_path: Path) -> None:
    student, teacher = text_model(), text_model().eval()
    student.config.id2label, teacher.config.id2label = {0: "a", 1: "b"}, {0: "b", 1: "a"}
    taught = Teacher.of(saved(tmp_path, teacher), student, context())
    with torch.no_grad():
        assert torch.equal(taught.logits(batch()), teacher(**batch()).logits.flip(-1))
    assert torch.equal(taught.labelled(batch())["labels"], 1 - batch()["labels"])


def test_trimmed_vocabulary_of_self() -> None:
    original = text_model().eval()
    kept = [0, 1, 2, 3, *range(10, VOCABULARY)]
    student = text_model(vocab_size=len(kept))
    one = Teacher.of(SELF, student, context(original=original, parent_ids=kept))
    ids = torch.randint(4, len(kept), (3, 5))
    with torch.no_grad():
        expected = original(input_ids=torch.tensor(kept)[ids]).logits
        assert torch.equal(one.logits({"input_ids": ids}), expected)


def test_trimmed_vocabulary_of_an_encoder_decoder() -> None:
    original = seq2seq_model().eval()
    kept = [*range(4), *range(10, VOCABULARY)]
    student = seq2seq_model()
    student.resize_token_embeddings(len(kept))
    one = Teacher.of(SELF, student, context(original=original, parent_ids=kept))
    rows = batch("seq2seq")
    small = {**rows, "input_ids": rows["input_ids"] % len(kept), "labels": rows["labels"] % len(kept)}
    small["labels"] = torch.where(rows["labels"] < 0, rows["labels"], small["labels"])
    table = torch.tensor(kept)
    labels = torch.where(small["labels"] < 0, small["labels"], table[small["labels"].clamp(min=0)])
    with torch.no_grad():
        whole = original(
            input_ids=table[small["input_ids"]], attention_mask=rows["attention_mask"], labels=labels
        ).logits
        assert torch.equal(one.logits(small), whole[..., table])


def test_trimmed_tokenizer_of_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parent = {f"t{index}": index for index in range(VOCABULARY)}
    trimmed = {f"t{index}": position for position, index in enumerate(range(8, VOCABULARY))}
    monkeypatch.setattr("hf_efficient.teacher._tokenizer", lambda source: Words(parent))
    folder = saved(tmp_path, text_model())
    one = Teacher.of(folder, text_model(vocab_size=len(trimmed)), context(processor=Words(trimmed)))
    assert one.ids is not None
    assert one.ids.tolist() == list(range(8, VOCABULARY))
    assert Teacher.of(folder, text_model(), context(processor=Words(parent))).ids is None
    with pytest.raises(ConfigError, match="another tokenizer, which does not know the student's token 'new'"):
        Teacher.of(folder, text_model(), context(processor=Words({"new": 0, **parent})))


def test_refusals(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"has 48 tokens, the student 40.*processing_class="):
        Teacher.of(saved(tmp_path / "a", text_model()), text_model(vocab_size=40), context())
    with pytest.raises(ConfigError, match="is a BertForTokenClassification, the student a BertForSequenceClass"):
        Teacher.of(saved(tmp_path / "b", token_model()), text_model(), context())
    with pytest.raises(ConfigError, match="has 3 labels, the student 2"):
        Teacher.of(saved(tmp_path / "c", text_model(num_labels=3)), text_model(), context())
    named = text_model(id2label={0: "x", 1: "y"}, label2id={"x": 0, "y": 1})
    student = text_model(id2label={0: "x", 1: "z"}, label2id={"x": 0, "z": 1})
    with pytest.raises(ConfigError, match=r"other labels than the student, e\.g\. 'y'"):
        Teacher.of(saved(tmp_path / "d", named), student, context())
    with pytest.raises(ConfigError, match="no model there"):
        Teacher.of(str(tmp_path / "none"), text_model(), context())


def test_fingerprint_is_of_what_computes(tmp_path: Path) -> None:
    model = text_model()
    folder = saved(tmp_path, model)
    one = Teacher(SELF, model)
    model(**batch())  # notes a problem type in the config
    assert one.fingerprint() == Teacher("x", BertForSequenceClassification.from_pretrained(folder)).fingerprint()
    changed = BertForSequenceClassification.from_pretrained(folder)
    with torch.no_grad():
        changed.classifier.bias[0] += 1
    assert one.fingerprint() != Teacher("x", changed).fingerprint()
    assert one.fingerprint() != Teacher("x", text_model(hidden_act="relu")).fingerprint()


@pytest.mark.parametrize("kind", ["text", "token", "seq2seq"])
def test_cached_outputs_are_the_teachers(tmp_path: Path, kind: str) -> None:
    """Half a batch is known from another one, which was padded otherwise."""
    model = KINDS[kind].model()
    stacks = [(0, 0), (1, 2)] if kind == "seq2seq" else [(0, 0), (0, 2)]
    asked = Teachers([Teacher(SELF, model), Teacher("b", model)], True, stacks, stacks[1:], None)
    cache = ExampleCache("distillation", tmp_path, 1e9)
    rows = KINDS[kind].examples(8).examples
    asked.outputs(pad(rows[:3]), cache)
    passes: list[int] = []
    model.register_forward_pre_hook(
        lambda module, args, kwargs: passes.append(len(kwargs["input_ids"])), with_kwargs=True
    )
    found = asked.outputs(pad(rows), cache)
    assert passes == [5, 5]
    again = asked.outputs(pad(rows), cache)
    assert passes == [5, 5]
    plain = asked.outputs(pad(rows), None)
    assert found.keys() == again.keys() == plain.keys()
    assert found["logits"].shape[0] == 2
    decoder, mask = pad(rows)["labels"] != -100, pad(rows)["attention_mask"].bool()
    for name, value in plain.items():
        assert torch.equal(found[name], again[name])
        if name == "logits":
            kept = slice(None) if kind == "text" else decoder
            torch.testing.assert_close(found[name][:, kept], value[:, kept], rtol=1e-4, atol=1e-5)
        else:
            kept = decoder if name.split(".")[1] == "1" else mask
            torch.testing.assert_close(found[name][kept], value[kept], rtol=2e-3, atol=1e-3)


def test_signature_depends_on_what_is_asked() -> None:
    model = text_model()
    one = Teacher(SELF, model)
    prints = {SELF: "0"}
    signatures = {
        Teachers([one], True, [(0, 0)], [], None).signature(prints),
        Teachers([one], True, [(0, 1)], [], None).signature(prints),
        Teachers([one], True, [(0, 0)], [], torch.bfloat16).signature(prints),
        Teachers([one], True, [(0, 0)], [], None).signature({SELF: "1"}),
    }
    assert len(signatures) == 4

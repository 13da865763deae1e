"""What was said is kept; feedback becomes labels; bad URLs are told."""

from pathlib import Path
from typing import Any

import pytest

from hf_efficient import ConfigError
from hf_efficient.errors import RequestError
from hf_efficient.tasks.apps.conversations import HANDOVER, Conversations, as_csv


@pytest.fixture
def kept(tmp_path: Path) -> Conversations:
    return Conversations(f"sqlite:///{tmp_path / 'new' / 'kept.sqlite'}")


def message(text: str, *intents: str, kind: str = "answer", conversation: str = "one") -> dict[str, Any]:
    told = [{"intent": name, "confidence": 0.9} for name in intents]
    return {"conversation": conversation, "text": text, "kind": kind, "intents": told, "answer": "…"}


def test_messages_outlast_the_process(kept: Conversations, tmp_path: Path) -> None:
    first, second = kept.keep([message("a <b>", "card"), message("b", "pay", conversation="two")])
    kept.close()
    again = Conversations(f"sqlite:///{tmp_path / 'new' / 'kept.sqlite'}")
    (found,) = again.conversation("one")
    assert (found["id"], found["text"], found["intents"][0]["intent"]) == (first, "a <b>", "card")
    assert first != second
    assert again.conversation("three") == []


def test_handovers_wait_until_somebody_answers(kept: Conversations) -> None:
    ids = kept.keep([message("a", kind=HANDOVER), message("b", "pay"), message("c", kind=HANDOVER)])
    assert [row["text"] for row in kept.waiting()] == ["a", "c"]
    kept.reply(ids[0], "here you are")
    assert [row["text"] for row in kept.waiting()] == ["c"]
    assert kept.conversation("one")[0]["reply"] == "here you are"


def test_feedback_becomes_labels(kept: Conversations) -> None:
    texts = ["right", "wrong", "wrong, and known", "two", "changed", "silent"]
    ids = dict(zip(texts, kept.keep([message(text, "card") for text in texts]), strict=True))
    (several,) = kept.keep([message("several", "card", "pay")])
    kept.rate(ids["right"], True)
    kept.rate(ids["wrong"], False)
    kept.rate(ids["wrong, and known"], False, "pay")
    kept.rate(ids["two"], True, "pay")  # whoever says better is believed
    kept.rate(ids["changed"], True)
    kept.rate(ids["changed"], False)
    kept.rate(several, True)
    assert kept.labelled() == [("right", "card"), ("wrong, and known", "pay"), ("two", "pay")]


def test_unknown_message(kept: Conversations) -> None:
    for change in (lambda: kept.rate("none", True), lambda: kept.reply("none", "a")):
        with pytest.raises(RequestError, match="there is none with the id 'none'"):
            change()


def test_all_or_none(kept: Conversations) -> None:
    with pytest.raises(Exception, match="NOT NULL"):
        kept.keep([message("a"), {**message("b"), "text": None}])
    assert kept.conversation("one") == []


@pytest.mark.parametrize("url", ["nonsense", "sqlite:////proc/none/x.sqlite", "oddbase://x"])
def test_bad_databases_are_told(url: str) -> None:
    with pytest.raises(ConfigError, match=r"app\.database: it cannot be opened"):
        Conversations(url)


def test_csv_of_odd_texts() -> None:
    assert as_csv([('a "b", c\nd', "pay")], ("text", "label")) == 'text,label\n"a ""b"", c\nd",pay\n'

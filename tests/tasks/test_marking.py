"""Entities of raw texts: places, windows, and words of several pieces."""

import pytest

from hf_efficient.predictor import Predictor
from tests.runs import entity_run


@pytest.fixture(scope="module")
def predictor(tmp_path_factory: pytest.TempPathFactory) -> Predictor:
    return Predictor.load(entity_run(tmp_path_factory.mktemp("run")))


def test_places(predictor: Predictor) -> None:
    text = "The APP is new?\n  my card"
    (answer,) = predictor.answers([text])
    found = answer["entities"]
    assert [(each["entity"], each["text"]) for each in found] == [("thing", "APP"), ("thing", "card")]
    assert all(text[each["start"] : each["end"]] == each["text"] for each in found)
    assert all(0.5 < each["score"] <= 1 for each in found)


def test_long_texts_are_read_whole(predictor: Predictor) -> None:
    """Windows of 16 pieces: each card is found once, wherever a window ends."""
    text = "where is my card how do i pay " * 40
    (answer,) = predictor.answers([text])
    starts = [each["start"] for each in answer["entities"]]
    assert starts == [12 + 30 * number for number in range(40)]


def test_each_text_gets_its_own(predictor: Predictor) -> None:
    answers = predictor.answers(
        ["no money", "my card", "where is the money i pay no money no money no money no money the app"]
    )
    assert [[each["text"] for each in answer["entities"]] for answer in answers] == [[], ["card"], ["app"]]


def test_first_pieces_decide(predictor: Predictor) -> None:
    """``cards`` is card and ##s: one word, marked whole."""
    (answer,) = predictor.answers(["where is my cards"])
    assert [each["text"] for each in answer["entities"]] == ["cards"]

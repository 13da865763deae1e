import json
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from hf_efficient import ConfigError
from hf_efficient.recipe import Recipe
from hf_efficient.tasks.apps import topics
from hf_efficient.tasks.apps.topics import Entities, EntitySettings, Topics, TopicSettings, export_encoder


def classifier(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run of the task ``name`` in the folder "run" that goes by the first letter."""

    class Letters:
        task = SimpleNamespace(name=name)
        labels = ("a", "b")

        def logits(self, texts: Sequence[str]) -> np.ndarray:
            return np.array([[text[0] == "a", text[0] == "b"] for text in texts], dtype=float)

        def answers(self, texts: Sequence[str]) -> list[dict[str, Any]]:
            marked = [[word for word in text.split() if word.istitle()] for text in texts]
            return [{"entities": [{"text": word} for word in words]} for words in marked]

    monkeypatch.setattr("hf_efficient.tasks.apps.topics.newest_finished", Path)
    monkeypatch.setattr("hf_efficient.tasks.apps.topics.Predictor.load", lambda run, **options: Letters())


def test_without_settings_all_is_one_topic(tmp_path: Path) -> None:
    assert Topics(TopicSettings(other="rest"), tmp_path)(["x", "y"]) == ["rest", "rest"]
    assert not list(tmp_path.iterdir())


def test_topics_of_another_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    classifier("text-classification", monkeypatch)
    assert Topics(TopicSettings(run="run"), tmp_path)(["bee", "ant"]) == ["b", "a"]
    with pytest.raises(ConfigError, match="run is a run of text-classification; name one of token-classification"):
        Entities(EntitySettings(run="run"))


def test_what_cannot_be(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="both run and labels"):
        Topics(TopicSettings(run="run", labels={"a": "b"}), tmp_path)
    with pytest.raises(ConfigError, match=r"app\.topics\.run: .*no finished run"):
        Topics(TopicSettings(run=str(tmp_path)), tmp_path)
    with pytest.raises(ConfigError, match="both run and names"):
        Entities(EntitySettings(run="run", names=["a"]))
    with pytest.raises(ConfigError, match="empty name"):
        Entities(EntitySettings(names=["a", " "]))


def test_names_are_whole_words_and_the_longest_counts() -> None:
    names = ["Bank", "Bank of Elm", "C&A", "Rose+"]
    found = Entities(EntitySettings(names=names))(
        ["Bank of Elm cuts rate", "Bankers meet at Bank", "Elm bank", "C&A and Rose+ merge", "Rose+ up", ""]
    )
    assert found == ["Bank of Elm", "Bank", None, "C&A", "Rose+", None]


def test_a_name_may_be_written_in_several_ways() -> None:
    found = Entities(EntitySettings(names={"Orbis Chips": ["ORB", "Orbis"]}))
    assert found(["ORB jumps", "Orbis falls", "Orbis Chips flat", "ORBIT"]) == ["Orbis Chips"] * 3 + [None]
    assert Entities(EntitySettings())(["x"]) == [None]


def test_entities_of_another_run(monkeypatch: pytest.MonkeyPatch) -> None:
    classifier("token-classification", monkeypatch)
    assert Entities(EntitySettings(run="run"))(["profit of Elm", "no name"]) == ["Elm", None]


@pytest.mark.slow
def test_zero_shot_topics_on_the_sample(default_model: str, tmp_path: Path) -> None:
    """The recipe's phrases and encoder, exported; phrases were chosen on the other rows."""
    app = Recipe.load("finance-sentiment").app
    assert app is not None
    settings = TopicSettings(**app["topics"])
    export_encoder(settings, tmp_path)
    made = {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*")}
    tell = Topics(settings, tmp_path)
    sample = resources.files("hf_efficient.tasks") / "data" / "finance_news" / "topics.jsonl"
    rows = [json.loads(text) for text in sample.read_text(encoding="utf-8").splitlines()]
    assert len(rows) >= 80
    assert {row["topic"] for row in rows} == set(settings.labels or {})
    test = [row for row in rows if row["split"] == "test"]
    said = tell([row["text"] for row in test])
    assert np.mean([one == row["topic"] for one, row in zip(said, test, strict=True)]) >= 0.8
    assert {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*")} == made  # read, not made again
    strict = Topics(settings.model_copy(update={"least": 0.999}), tmp_path)
    assert strict(["Oil climbs above $90"]) == ["other"]
    assert topics.encoder_folder(settings, tmp_path).is_dir()

"""A profile as a whole: what each technique can give, and how it is shown."""

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from hf_efficient.errors import ConfigError
from hf_efficient.profiling import Profile, profile
from hf_efficient.profiling.parts import PARTS
from hf_efficient.serving import KINDS
from tests.tiny import VOCABULARY, image_examples, image_model, pad, text_examples, text_model


@pytest.fixture(scope="module")
def made() -> Any:
    """Profile of the text model, with two exports only, to be quick."""
    with pytest.MonkeyPatch.context() as patch:
        few = {kind: KINDS[kind] for kind in ("torch", "onnx", "onnx-dynamic")}
        patch.setattr("hf_efficient.profiling.bounds.KINDS", few)
        patch.setattr("hf_efficient.cutting.costs.LEAST_SECONDS", 0.03)
        patch.setattr("hf_efficient.cutting.costs.ROUNDS", 3)
        examples = [
            {name: value.tolist() if hasattr(value, "tolist") else value for name, value in example.items()}
            for example in text_examples(16).examples
        ]
        steps: list[str] = []
        found = profile(text_model(hidden_size=64, intermediate_size=512), examples, pad, 8, tell=steps.append)
    return found, steps


def test_bounds_are_measured(made: Any) -> None:
    found, steps = made
    named = {bound.technique: bound for bound in found.bounds}
    assert {"export to onnx", "export to onnx int8 (dynamic)", "bf16 weights in PyTorch"} <= set(named)
    assert {"one layer left", "fewest heads and features", "all cuts: one such layer"} <= set(named)
    assert all(set(bound.speedups) == {1, 8} for bound in found.bounds if bound.speedups)
    assert named["one layer left"].speedups[8] > 0  # how much, the machine decides: other tests run beside this one
    assert named["all cuts: one such layer"].smaller > named["one layer left"].smaller > 1
    assert named["bf16 weights in PyTorch"].smaller == pytest.approx(2, rel=0.01)
    combined = [bound for name, bound in named.items() if name.startswith("all cuts, then export")]
    assert len(combined) == 1
    assert combined[0].smaller > 1
    assert {"one layer left", "export to onnx"} <= set(steps)


def test_the_fastest_comes_first(made: Any) -> None:
    ratios = [bound.speedups[8] for bound in made[0].bounds if bound.speedups]
    assert ratios == sorted(ratios, reverse=True)


def test_a_vocabulary_is_bounded_by_what_occurs(made: Any) -> None:
    bound = next(bound for bound in made[0].bounds if bound.setting == "vocabulary_trimming")
    used = len({int(token) for example in text_examples(16).examples for token in example["input_ids"]})
    assert f"use {used} of {VOCABULARY} tokens" in bound.note
    assert bound.speedups is None
    assert bound.smaller > 1


def test_what_cannot_be_measured_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hf_efficient.cutting.costs.LEAST_SECONDS", 0.03)
    monkeypatch.setattr("hf_efficient.cutting.costs.ROUNDS", 3)
    monkeypatch.setattr("hf_efficient.profiling.bounds.KINDS", {"torch": None, "openvino": KINDS["openvino"]})
    monkeypatch.setattr("hf_efficient.runtimes.OpenVINORuntime.packages", ("no_such_package",))
    found = profile(image_model(), image_examples(4).examples, pad, 4)
    assert [(bound.technique, bound.speedups) for bound in found.bounds][-1] == ("export to openvino", None)
    assert "no_such_package" in found.bounds[-1].note
    assert "no_such_package" in str(found)


def test_is_shown_as_table_json_markdown_and_picture(made: Any, tmp_path: Path) -> None:
    found: Profile = made[0]
    found.save(tmp_path / "profile")
    with open(tmp_path / "profile" / "profile.json", encoding="utf-8") as file:
        saved = json.load(file)
    assert saved["bytes"] == found.bytes
    assert saved["milliseconds"]["8"] == found.milliseconds[8]
    markdown = (tmp_path / "profile" / "profile.md").read_text(encoding="utf-8")
    for text in (str(found), markdown):
        assert all(part in text for part in PARTS)
        assert "one layer left" in text
    with Image.open(tmp_path / "profile" / "profile.png") as picture:
        assert picture.width > 800


@pytest.mark.parametrize(("examples", "size", "message"), [([], 8, "real examples"), ([{}], 0, "batch_size")])
def test_bad_input(examples: Any, size: int, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        profile(text_model(), examples, pad, size)

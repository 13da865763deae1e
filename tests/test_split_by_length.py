"""Parts of a batch: the same answers in the same order, from less padding."""

from typing import Any

import pytest
import torch

from hf_efficient import ConfigError, exported_pipeline, load_exported
from hf_efficient.split_by_length import SplitByLength
from hf_efficient.timing import TorchRuntime
from tests.exports import CASES, make_export, pad, text
from tests.tiny import KINDS


class Seen:
    """A runtime that notes the shapes that it is given."""

    name = version = "seen"
    device = "cpu"

    def __init__(self, model: Any):
        self.runtime, self.shapes = TorchRuntime(model.eval()), []

    def set_threads(self, threads: int) -> None:
        pass

    def predict(self, batch: Any) -> Any:
        self.shapes.append(tuple(batch["input_ids"].shape))
        return self.runtime.predict(batch)


def batch_of(kind: str, count: int = 20) -> dict[str, torch.Tensor]:
    tiny = KINDS[kind]
    examples = tiny.examples()
    return tiny.trainer["data_collator"]([examples[index] for index in range(count)])


@pytest.mark.parametrize("kind", ["text", "token"])
def test_answers_are_those_of_the_whole_batch(kind: str) -> None:
    model, batch = KINDS[kind].model(), batch_of(kind)
    whole, parts = Seen(model), Seen(model)
    expected, found = whole.predict(batch), SplitByLength(parts, 8).predict(batch)
    assert type(found) is type(expected)
    real = batch["attention_mask"].bool() if kind == "token" else slice(None)
    torch.testing.assert_close(found.logits[real], expected.logits[real], rtol=1e-4, atol=1e-5)
    assert found.logits.shape == expected.logits.shape
    assert sum(rows for rows, _ in parts.shapes) == 20
    computed = [sum(rows * length for rows, length in one.shapes) for one in (whole, parts)]
    assert computed[1] < computed[0]


def test_what_is_not_split() -> None:
    model, batch = KINDS["text"].model(), batch_of("text")
    few = {name: value[:8] for name, value in batch.items()}
    left = {name: value.flip(1) if value.dim() == 2 else value for name, value in batch.items()}
    bare = {name: value for name, value in batch.items() if name != "attention_mask"}
    for given in (few, left, bare):
        seen = Seen(model)
        SplitByLength(seen, 8).predict(given)
        assert seen.shapes == [tuple(given["input_ids"].shape)]


def test_size_is_checked() -> None:
    with pytest.raises(ConfigError, match="size must be at least 1, got 0"):
        SplitByLength(Seen(KINDS["text"].model()), 0)


def test_an_export_in_parts(tmp_path: Any) -> None:
    folder = make_export(tmp_path / "out", seconds=0).folder
    batch = pad(CASES["text"].examples()[:20])
    with torch.no_grad():
        expected = text()(**batch).logits
    loaded = load_exported(folder, part_size=4)
    loaded.set_threads(1)
    torch.testing.assert_close(loaded(**batch).logits, expected, rtol=1e-4, atol=1e-5)
    with pytest.raises(ConfigError, match="has no tokenizer"):
        exported_pipeline(folder, part_size=4)

"""Ranges that travel in a model's config, and are forgotten where the weights have moved on."""

from pathlib import Path

import torch
from transformers import AutoModelForSequenceClassification

from hf_efficient.trained_ranges import keep_ranges, trained_ranges
from tests.exports import text

QUERY, OUTPUT = (f"bert.encoder.layer.0.{name}" for name in ("attention.self.query", "output.dense"))
RANGES = {QUERY: torch.tensor([-1.5, 2.5]), OUTPUT: torch.tensor([-0.25, 8.0])}


def test_come_back_with_their_layers_from_disk(tmp_path: Path) -> None:
    model = text()
    keep_ranges(model, RANGES)
    model.save_pretrained(tmp_path)
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    found = list(trained_ranges(loaded))
    assert [(one.low, one.high) for one in found] == [(-1.5, 2.5), (-0.25, 8.0)]
    assert (found[0].weight == model.get_parameter(f"{QUERY}.weight").detach().numpy()).all()


def test_do_not_outlive_their_weights() -> None:
    model = text()
    keep_ranges(model, RANGES)
    with torch.no_grad():
        model.get_parameter(f"{QUERY}.weight")[0, 0] += 1
    assert [one.high for one in trained_ranges(model)] == [8.0]
    del model.bert.encoder.layer[0].output
    assert not list(trained_ranges(model))


def test_no_ranges_take_away_what_was_kept() -> None:
    model = text()
    assert not list(trained_ranges(model))
    keep_ranges(model, RANGES)
    keep_ranges(model, {})
    assert not list(trained_ranges(model))
    assert "activation_ranges" not in model.config.to_dict()
    keep_ranges(torch.nn.Linear(2, 2), RANGES)  # a model without a config

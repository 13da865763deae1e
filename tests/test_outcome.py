"""What a recipe's models are measured by."""

from pathlib import Path
from typing import Any

import pytest

from hf_efficient import outcome
from hf_efficient.job import Job
from hf_efficient.measure import Timing, bytes_on_disk, measure
from hf_efficient.recipe import Recipe
from tests.test_run import tiny_recipe
from tests.tiny import text_model


def test_models_are_timed_in_turns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job = Job.prepare(Recipe.load(tiny_recipe(tmp_path)))
    small, large = tmp_path / "model", tmp_path / "large"
    job.processor.save_pretrained(large)
    text_model(vocab_size=len(job.processor), num_hidden_layers=4).save_pretrained(large)
    timed: list[int] = []

    def noted(runtime: Any, *args: Any, **settings: Any) -> Timing:
        timed.append(runtime.model.config.num_hidden_layers)
        return measure(runtime, *args, **{**settings, "warmup": 1})

    monkeypatch.setattr(outcome, "measure", noted)
    monkeypatch.setattr(outcome, "SECONDS", 0.0)
    monkeypatch.setattr(outcome, "peak_memory_mb", lambda *args: {"process": 1.0})
    first, second = job.measurements(small, large)
    assert timed == [2, 4] * 3
    assert first.repeats == second.repeats == {"latency": 3, "throughput": 3}
    assert (first.bytes_on_disk, second.bytes_on_disk) == (bytes_on_disk(small), bytes_on_disk(large))
    assert first.latency_with_preprocessing_ms is not None

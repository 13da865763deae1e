"""Rows on disk: found again, by those who should, and never in the way."""

import logging
from pathlib import Path

import pytest
import torch

from hf_efficient.example_cache import SHARD_EXAMPLES, ExampleCache

LIMIT = 1e9


def row(value: float) -> dict[str, torch.Tensor]:
    return {"logits.0": torch.full((2,), value), "hidden.0.1": torch.full((3, 4), value, dtype=torch.float16)}


def fill(cache: ExampleCache, keys: range) -> ExampleCache:
    for key in keys:
        assert cache.get(f"{key}") is None
        cache.put(f"{key}", row(key))
    return cache


def test_rows_come_back_before_and_after_they_are_written(tmp_path: Path) -> None:
    cache = fill(ExampleCache("distillation", tmp_path, LIMIT), range(SHARD_EXAMPLES + 5))
    assert len(list(tmp_path.iterdir())) == 1
    for _ in range(2):
        for key in (0, SHARD_EXAMPLES + 4):
            found = cache.get(f"{key}")
            assert found is not None
            for name, tensor in row(key).items():
                assert torch.equal(found[name], tensor)
                assert found[name].dtype == tensor.dtype
        cache.exchange()
    assert cache.share_served == pytest.approx(4 / (SHARD_EXAMPLES + 5 + 4), abs=0.01)


def test_a_resumed_training_sees_the_shards_of_its_checkpoint(tmp_path: Path) -> None:
    cache = fill(ExampleCache("distillation", tmp_path, LIMIT), range(3))
    cache.exchange()
    state = cache.state_dict()
    fill(cache, range(3, 6)).exchange()
    resumed, anew = ExampleCache("distillation", tmp_path, LIMIT, state), ExampleCache("distillation", tmp_path, LIMIT)
    assert resumed.get("2") is not None
    assert resumed.get("4") is None
    assert anew.get("4") is not None


def test_unreadable_and_missing_shards_are_ignored(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    cache = fill(ExampleCache("distillation", tmp_path, LIMIT), range(3))
    cache.exchange()
    (shard,) = tmp_path.iterdir()
    shard.write_bytes(shard.read_bytes()[:-9])
    state = {**cache.state_dict(), "shards": [shard.name, "gone.safetensors"]}
    caplog.set_level(logging.WARNING)
    assert ExampleCache("distillation", tmp_path, LIMIT, state).get("0") is None
    assert caplog.text.count("computed again") == 2


def test_full_cache_says_so_once_and_serves_what_it_has(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    cache = ExampleCache("distillation", tmp_path, sum(tensor.nbytes for tensor in row(0).values()) * 3.5)
    for key in range(9):
        cache.put(f"{key}", row(key))
    assert [cache.get(f"{key}") is not None for key in range(9)] == [True] * 3 + [False] * 6
    assert caplog.text.count("cache_gb") == 1
    cache.exchange()
    resumed = ExampleCache("distillation", tmp_path, LIMIT, cache.state_dict())
    resumed.put("8", row(8))
    assert resumed.get("8") is None


def test_inputs_that_never_repeat_end_the_writing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    cache = ExampleCache("distillation", tmp_path, LIMIT)
    fill(cache, range(3)).end_epoch()
    assert not caplog.text
    fill(cache, range(3, 6)).end_epoch()
    assert caplog.text.count("cache: false") == 1
    cache.put("9", row(9))
    assert cache.get("9") is None
    assert cache.get("1") is not None


def test_a_disk_that_takes_nothing_costs_no_training(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("in the way")
    cache = fill(ExampleCache("distillation", tmp_path / "file" / "cache", LIMIT), range(3))
    cache.exchange()
    assert "cache: false" in caplog.text
    assert cache.get("0") is None

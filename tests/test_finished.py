"""What a trainer knows of its data; card and push as a whole are tested in test_card.py and test_hub.py."""

import logging
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset
from transformers.utils import PushInProgress

from hf_efficient import HubError
from hf_efficient.finished import about
from tests.test_report import report
from tests.test_trainer import trainer
from tests.tiny import text_examples


def dataset(**checksums: str) -> Dataset:
    """As `datasets` leaves it after loading files: their addresses are in the info."""
    loaded = Dataset.from_list([{"input_ids": [1, 2], "labels": 0}], split="test")
    loaded.info.download_checksums = {url: {} for url in checksums.values()}
    loaded.info.config_name = "plain"
    return loaded


def known(folder: Path, **data: Any) -> Any:
    one = trainer(folder, {"train_dataset": text_examples(8), **data})
    one.report = report(training={})
    return about(one)


def test_data_of_the_hub_is_named(tmp_path: Path) -> None:
    found = known(tmp_path, train_dataset=dataset(a="hf://datasets/user/name@0a1b/x.parquet"), eval_dataset=dataset())
    assert (found.data, found.split) == ("user/name:plain", "test")


@pytest.mark.parametrize("url", ["/data/x.parquet", "https://example.org/x.csv"])
def test_other_data_is_not(tmp_path: Path, url: str) -> None:
    assert known(tmp_path, train_dataset=dataset(a=url)).data is None


def test_several_evaluation_sets(tmp_path: Path) -> None:
    """The report is of the first."""
    assert known(tmp_path, eval_dataset={"dev": text_examples(4), "other": text_examples(4)}).split == "dev"
    assert known(tmp_path).split == "evaluation"
    assert known(tmp_path).data is None


def test_checkpoint_that_did_not_arrive_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Stock training does not look at what became of its pushes in the background."""
    failed: Future[None] = Future()
    failed.set_exception(OSError("the line was cut"))
    one = trainer(tmp_path, optimizations={"precision": {"dtype": "bf16"}})
    one.train()
    one.hub_model_id, one.push_in_progress = "me/model", PushInProgress([failed])
    with caplog.at_level(logging.WARNING, "hf_efficient"), pytest.raises(HubError, match="push again"):
        one.push_to_hub()
    assert "the line was cut" in caplog.text

"""When workers are proposed; what every optimization does is in `tests/test_contract.py`."""

import multiprocessing
from pathlib import Path
from typing import Any

import pytest

from hf_efficient import EfficientTrainingArguments
from hf_efficient.optimizations.data_loading import IMPORT_SECONDS, START_SECONDS, DataLoading
from hf_efficient.proposal import Observed
from tests.tiny import image_model


@pytest.mark.parametrize(("method", "seconds"), [("fork", START_SECONDS), ("spawn", IMPORT_SECONDS)])
@pytest.mark.parametrize(("length", "times"), [({"num_train_epochs": 2.5}, 3), ({"max_steps": 9}, 1)])
def test_workers_start_in_each_epoch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str, seconds: float, length: Any, times: int
) -> None:
    monkeypatch.setattr(multiprocessing, "get_start_method", lambda **_: method)
    args = EfficientTrainingArguments(str(tmp_path), use_cpu=True, **length)
    for proposal in DataLoading.proposals(Observed(args, image_model(), waiting=0.4)):
        assert proposal.gain == 0.4
        assert proposal.setup_seconds == times * seconds


def test_not_where_workers_are_asked_for_already(tmp_path: Path) -> None:
    args = EfficientTrainingArguments(str(tmp_path), use_cpu=True, dataloader_num_workers=1)
    assert not list(DataLoading.proposals(Observed(args, image_model(), waiting=0.4)))

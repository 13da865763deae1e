"""What goes wrong around a training is one message; what is not known passes as it is."""

import multiprocessing
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import TrainerCallback

from hf_efficient.cli import main
from hf_efficient.errors import TrainingError
from hf_efficient.failures import explained
from tests.test_run import default_callbacks, tiny_recipe

KNOWN: dict[str, BaseException] = {
    "as much more gradient_accumulation_steps": torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
    "or activation_checkpointing": RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate"),
    "MemoryError: out of memory": MemoryError(),
    "process 1 of 4 has waited in vain": RuntimeError("Timed out waiting 1800000ms for recv operation to complete"),
    "ddp_timeout": RuntimeError("[gloo] Connection closed by peer [127.0.0.1]:41"),
    "fewer dataloader_num_workers": RuntimeError("DataLoader worker (pid(s) 12) exited unexpectedly"),
    "loads data has died .FileNotFound": FileNotFoundError(2, "No such file or directory"),
    "loads data has died .Connection": ConnectionResetError(104, "Connection reset by peer"),
}


@pytest.mark.parametrize("said", KNOWN)
def test_known(said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "4")
    with pytest.raises(TrainingError, match=f"{said}.*; what is saved stays: continue with --resume"), explained():
        raise KNOWN[said]


NAMED = FileNotFoundError(2, "No such file or directory", "weights.bin")


@pytest.mark.parametrize(
    "error", [RuntimeError("mat1 and mat2 shapes cannot be multiplied"), ValueError("timeout"), NAMED]
)
def test_others_pass(error: Exception) -> None:
    with pytest.raises(type(error)) as caught, explained():
        raise error
    assert caught.value is error


class KillsAWorker(TrainerCallback):
    """In the second epoch, one of the processes that load data is gone."""

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 6:
            for worker in multiprocessing.active_children():
                os.kill(worker.pid or 0, signal.SIGKILL)


# Where the worker's queue breaks before its SIGCHLD arrives, the signal's error is raised once more, in the loader's
# __del__: torch's own order, of which a program sees a line on stderr.
@pytest.mark.filterwarnings(
    r"ignore:Exception ignored in[\s\S]*_MultiProcessingDataLoaderIter.__del__:pytest.PytestUnraisableExceptionWarning"
)
@pytest.mark.slow
def test_a_data_worker_that_dies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = tiny_recipe(tmp_path)
    monkeypatch.setattr("transformers.trainer.DEFAULT_CALLBACKS", [*default_callbacks(), KillsAWorker])
    workers = "stages.finetune.training={num_train_epochs: 3, dataloader_num_workers: 1, dataloader_prefetch_factor: 2}"
    assert main(["run", str(recipe), workers, "--runs", str(tmp_path / "runs")]) == 2
    assert "a process that loads data has died" in capsys.readouterr().err

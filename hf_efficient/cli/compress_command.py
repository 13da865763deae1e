"""`hf-efficient compress`: a fine-tuned model cut to a target and repaired, without training."""

import argparse
from typing import Any

from hf_efficient.cli.telling import Teller

TARGETS = ("target-speedup", "target-latency-ms", "target-size-mb", "target-parameters")
TIMED_EXAMPLES = 256
RESULT = "compressed.json"
"""In the folder that is written: what was asked for and what was done."""


def add(subparsers: Any) -> None:
    parser = subparsers.add_parser("compress", help="cut a fine-tuned model to a target, without training")
    parser.add_argument("model", help="folder of a fine-tuned model with its processor, e.g. runs/.../final")
    parser.add_argument(
        "data",
        nargs="+",
        metavar="data.key=value",
        help="labelled data: data.train=FILE to measure on, data.test=FILE to judge by",
    )
    group = parser.add_mutually_exclusive_group(required=True)
    for target in TARGETS:
        group.add_argument(f"--{target}", type=float)
    parser.add_argument("--runtime", default="torch", help="what will serve: torch, onnx-dynamic, ... (default: torch)")
    parser.add_argument("--uniform", action="store_true", help="cut only what loads with nothing imported")
    parser.add_argument("--no-repair", action="store_true", help="leave what is left as it is")
    parser.add_argument("--to", help="folder to write (default: `compressed` beside the model's folder)")
    parser.add_argument("--task", help="e.g. text-classification (default: as its run or its class tells)")
    parser.set_defaults(command=command)


def command(options: argparse.Namespace, tell: Teller) -> None:
    from hf_efficient.cli.run_command import quiet_libraries

    quiet_libraries()
    from pathlib import Path

    from hf_efficient.cli.model_and_data import judged_split, prepare
    from hf_efficient.compress import compress
    from hf_efficient.errors import ConfigError
    from hf_efficient.files import atomic_folder, refuse_other_contents, write_json
    from hf_efficient.report import Report

    folder = Path(options.to or Path(options.model).absolute().parent / "compressed")
    refuse_other_contents(folder, RESULT)
    task, model, splits = prepare(options.model, options.task, options.data)
    if "train" not in splits:
        raise ConfigError("compress measures what can go on training data: add data.train=FILE")
    small: Any
    settings = _settings(options)
    small, changes = compress(model, task.encode(splits["train"]), task.collator(), **settings)
    name, rows = judged_split(splits)
    before, metrics_before = _judged(task, model.eval(), rows)
    after, metrics_after = _judged(task, small.eval(), rows)
    report = Report(
        title="compressed without training: before and after",
        before=before,
        after=after,
        metrics_before=metrics_before,
        metrics_after=metrics_after,
        changes=[{"name": "structured_pruning", **changes}],
        notes=[f"Metrics on {name} data ({len(rows)} examples)."],
    )
    with atomic_folder(folder) as path:
        small.save_pretrained(path)
        task.processor.save_pretrained(path)
        report.save(path)
        write_json(path / RESULT, {"settings": settings, "changes": changes})
    tell(
        {"model": folder, "report": report.to_dict()},
        report,
        f"\nmodel   {folder}\nreport  {folder / 'report.md'}",
    )


def _settings(options: argparse.Namespace) -> dict[str, Any]:
    names = [name.replace("-", "_") for name in TARGETS]
    target = next(name for name in names if getattr(options, name) is not None)
    value = getattr(options, target)
    return {
        target: int(value) if target == "target_parameters" else value,
        "runtime": options.runtime,
        "uniform": options.uniform,
        "repair": not options.no_repair,
    }


def _judged(task: Any, model: Any, rows: Any) -> tuple[Any, dict[str, float]]:
    """Size and speed in PyTorch, and metrics, on the rows."""
    import tempfile

    from hf_efficient.before_after import plain_metrics
    from hf_efficient.measure import Measurement, measure

    timed = list(task.requests(rows.select(range(min(TIMED_EXAMPLES, len(rows))))))
    timing = measure(task.runtime(model), timed, task.collator(), repeats=1, seconds=1.0)
    with tempfile.TemporaryDirectory() as folder:
        quiet: dict[str, Any] = {"report_to": "none", "disable_tqdm": True, "dataloader_pin_memory": False}
        args = task.arguments_class(folder, **quiet, **task.arguments())
        said = task.trainer(model=model, args=args, processing_class=task.processor).predict(task.encode(rows))
    return Measurement.of(timing, model), plain_metrics(said.metrics, "test")

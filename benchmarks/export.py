"""What an export keeps and gains, on Banking77 with all-MiniLM-L6-v2: `python -m benchmarks.export`.

A model is fine-tuned (kept between runs of the benchmark), exported in each way, and compared with eager fp32 PyTorch
on test data: logits, accuracy, bytes, and speed, where both sides take turns on the same real sentences, each with its
best thread count.
"""

import statistics
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from transformers import AutoModelForSequenceClassification

from benchmarks.banking77 import accuracy, banking77, trainer
from benchmarks.harness import Bench, main
from hf_efficient import export as exporting
from hf_efficient import exported, guard, measure, runtimes
from hf_efficient.candidates import CANDIDATES
from hf_efficient.export import export
from hf_efficient.files import atomic_folder
from hf_efficient.measure import TorchRuntime, bytes_on_disk
from hf_efficient.measure import measure as timed

TIMED_EXAMPLES = 256
SEEDS = (0,)
GOAL = ("onnx", "dynamic")
"""The export that has to reach the targets: it needs no calibration data."""
NAMES = {"none": "fp32", "dynamic": "int8", "static": "static_int8"}


def body(bench: Bench) -> None:
    plain = [choice for choice, candidate in CANDIDATES.items() if not candidate.mixed]
    choices = [choice for choice in plain if not (bench.quick and CANDIDATES[choice].calibrated)]
    found: dict[tuple[str, str], list[dict[str, Any]]] = {choice: [] for choice in choices}
    for seed in SEEDS:
        model = finetuned(bench, seed)
        for format, quantize in choices:
            settings = {"seed": seed, "format": format, "quantize": quantize}
            values = bench.cell(settings, lambda model=model, s=settings: exported_figures(bench, model, **s))
            found[format, quantize].append(values)
    for (format, quantize), cells in found.items():
        claims(bench, format, quantize, cells)


def claims(bench: Bench, format: str, quantize: str, cells: list[dict[str, Any]]) -> None:
    exact = quantize == "none"
    name = f"{format}_{NAMES.get(quantize, quantize.replace('-', '_'))}"

    def claim(figure: str, unit: str, target: str = "") -> None:
        is_goal = exact or (format, quantize) == GOAL
        bench.claim(f"{name}_{figure}", [cell[figure] for cell in cells], unit, target if is_goal else "")

    if exact:
        claim("logit_difference", "greatest difference to PyTorch / largest logit", "<= 0.0001")
    else:
        claim("accuracy_loss", "points of test accuracy, PyTorch - export", "<= 0.5")
        claim("agreement", "share of equal predictions")
    speed = "" if exact else ">= 1.5"
    claim("speed_batch_1", "latency p50 of eager fp32 PyTorch / export", speed)
    claim("speed_batch_32", "throughput of export / eager fp32 PyTorch", speed)
    claim("bytes", "bytes of export / fp32 safetensors", "" if exact else "<= 0.3")


def finetuned(bench: Bench, seed: int) -> Path:
    """Folder of a fine-tuned model, trained where the cache lacks it."""
    folder = bench.cache / bench.name / f"{'quick' if bench.quick else 'model'}-{seed}"
    if not folder.is_dir():
        length = {"max_steps": 20} if bench.quick else {"num_train_epochs": 3}
        options = {"optimizations": {"length_batching": {}}, "bf16": True, "use_cpu": True, **length}
        with trainer(seed, **options) as made:
            made.train()
            print(f"fine-tuned with seed {seed}: accuracy {accuracy(made, 200):.4f} on 200 test rows")
            with atomic_folder(folder) as path:
                made.model.save_pretrained(path)
    return folder


def exported_figures(bench: Bench, model: Path, *, format: str, quantize: str, **_: Any) -> dict[str, Any]:
    task, data = banking77()
    test = data["test"].shuffle(seed=0).select(range(100)) if bench.quick else data["test"]
    source = AutoModelForSequenceClassification.from_pretrained(model)
    with TemporaryDirectory() as folder:
        result = export(
            source,
            Path(folder) / "exported",
            format=format,
            quantize=quantize,
            examples=test,
            collate=task.collator(),
            metrics=task.compute_metrics,
            max_drop=1,  # to be measured, not refused
            calibration=list(data["train"].shuffle(seed=0).select(range(300))),
            seconds=0,
        )
        comparison = result.comparison
        return {
            "logit_difference": comparison.max_difference / comparison.largest_logit,
            "accuracy_loss": 100 * (comparison.drop or 0.0),
            "agreement": comparison.agreement,
            "bytes": bytes_on_disk(result.folder) / bytes_on_disk(model),
            **speeds(bench, source.eval(), result.runtime()),
        }


def speeds(bench: Bench, source: Any, runtime: Any) -> dict[str, Any]:
    """Medians over turns; within one, both sides are measured one after the other."""
    task, data = banking77()
    examples = list(data["test"].shuffle(seed=1).select(range(TIMED_EXAMPLES)))
    turns, seconds = (1, 0.3) if bench.quick else (3, 3.0)
    latency, throughput = [], []
    for _ in range(turns):
        ours, eager = (
            timed(side, examples, task.collator(), repeats=1, seconds=seconds)
            for side in (runtime, TorchRuntime(source))
        )
        latency.append(eager.latency_ms["p50"] / ours.latency_ms["p50"])
        throughput.append(ours.throughput / eager.throughput)
    return {
        "speed_batch_1": statistics.median(latency),
        "speed_batch_32": statistics.median(throughput),
        "threads": {"export": ours.threads, "eager": eager.threads},
    }


if __name__ == "__main__":
    main("export", body, depends=[exporting, exported, guard, measure, runtimes])

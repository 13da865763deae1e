"""Tasks through all stages of their recipes on real sets: `python -m benchmarks.tasks_compressed`.

Trained, made smaller with the trained model as teacher, and exported where the recipe has an export: metrics on test
data, bytes and speeds before and after, by `hf_efficient.run`, one seed. Speeds are beside the uncut model in eager
fp32. Intents, entities and digits have benchmarks of their own (`compression`, `compression_tasks`).
"""

from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.compression import DEPENDS
from benchmarks.harness import Bench, main
from benchmarks.tasks import ROWS, Row
from hf_efficient import run
from hf_efficient.optimizations import quantization
from hf_efficient.task import get_task

NAMES = ("clothing_small", "fsdd_words", "fsdd_speech", "medquad_faq", "simulated_interests")
TARGETS = {"clothing_small": (">= 99", ">= 4")}
"""Row -> of the metric kept in percent, and of throughput."""


def body(bench: Bench) -> None:
    for name in NAMES:
        claims(bench, name, bench.cell({"row": name}, lambda: compressed(bench, ROWS[name])))  # noqa: B023


def claims(bench: Bench, name: str, found: dict[str, Any]) -> None:
    task = get_task(ROWS[name].load().task)
    before, after = found["before"], found["after"]
    metric = task.main_metric
    kept, throughput = TARGETS.get(name, ("", ""))
    bench.claim(f"{name}_before", before[metric], f"{metric} on test data, trained")
    if task.greater_is_better:
        bench.claim(f"{name}_kept", 100 * after[metric] / before[metric], f"% of {metric} kept", kept)
    else:
        bench.claim(f"{name}_after", after[metric], f"{metric} on test data, compressed")
    bench.claim(f"{name}_throughput", found["throughput"], "examples/s at batch 32, ours / eager fp32", throughput)
    bench.claim(f"{name}_latency", found["latency"], "ms for one example, eager fp32 / ours")
    bench.claim(f"{name}_size", found["size"], "bytes on disk, trained / ours")
    bench.notes.append(f"{name} is shipped in {found['runtime']}.")


def compressed(bench: Bench, row: Row) -> dict[str, Any]:
    """Test metrics of the trained and of the shipped model, and how they compare in speed and bytes."""
    recipe = row.load()
    if bench.quick:
        for stage in recipe.stages.values():
            stage.training["max_steps"] = 2
    with TemporaryDirectory() as folder:
        result = run.run(recipe, runs=folder)
    assert result is not None
    metrics, report = result.metrics["test"], result.report
    before, after = report.before, report.exported or report.after
    return {
        "before": metrics["before"],
        "after": metrics.get("exported", metrics["after"]),
        "throughput": after.throughput / before.throughput,
        "latency": before.latency_ms["p50"] / after.latency_ms["p50"],
        "size": before.bytes_on_disk / after.bytes_on_disk,
        "runtime": after.runtime,
    }


if __name__ == "__main__":
    main("tasks_compressed", body, (*DEPENDS, quantization, run))

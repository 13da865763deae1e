"""What merged units and codebooks keep: `python -m benchmarks.weight_fusion`.

Banking77, all-MiniLM-L6-v2. Three trainings from the same fine-tuned model: (1) all matrices in 4-bit indices, their
codebooks trained, and for comparison not trained; (2) a tenth of the feed-forward features merged into others; (3) half
of all heads and features cut, taught by the fine-tuned model, without and with both of these. (1) and (2) train on for
two epochs, so that is done with neither as well. Judged is what plain `from_pretrained` loads from the finished folder.
"""

from pathlib import Path
from typing import Any

from safetensors import safe_open
from torch import nn
from transformers import AutoModelForSequenceClassification

from benchmarks.banking77 import FAST, banking77, trainer
from benchmarks.harness import Bench, main
from benchmarks.quantization import folder_of, tuned
from hf_efficient import checkpoint
from hf_efficient.cutting import importance, merging, observation, search, shape
from hf_efficient.functional import cluster, distill, merge, structured
from hf_efficient.guard import predictions
from hf_efficient.measure import TorchRuntime, bytes_on_disk
from hf_efficient.optimizations import distillation, structured_pruning, weight_fusion
from hf_efficient.plan import Plan

BITS, MERGE = 4, 0.1
EPOCHS, RATE = 2, 1e-4
CUT_EPOCHS, CUT_RATE = 8, 6e-4
CUT = {"structured_pruning": {"keep_heads": 0.5, "keep_ffn": 0.5, "importance": "obs"}, "distillation": {}}
FUSIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "cluster": {"cluster": BITS, "start": 0.0},
    "untrained": {"cluster": BITS, "start": 1.0},
    "merge": {"merge": MERGE},
}
BOTH = {"merge": MERGE, "cluster": BITS, "start": 0.7}


def body(bench: Bench) -> None:
    cells: dict[str, list[dict[str, Any]]] = {}
    for seed in bench.seeds:
        tuned(bench, seed)
        how = {"seed": seed, "judged": "fine-tuned"}
        found = bench.cell(how, lambda seed=seed: judged(bench, folder_of(bench, seed)), peer=True)
        cells.setdefault("tuned", []).append(found)
        for name, settings in FUSIONS.items():
            how = {"seed": seed, "epochs": EPOCHS, "rate": RATE, **settings}
            found = bench.cell(how, lambda seed=seed, settings=settings: fused(bench, seed, settings))
            cells.setdefault(name, []).append(found)
        for name, settings in {"cut": {}, "both": BOTH}.items():
            how = {"seed": seed, "cut": CUT_EPOCHS, "rate": CUT_RATE, **settings}
            found = bench.cell(how, lambda seed=seed, settings=settings: cut(bench, seed, settings))
            cells.setdefault(name, []).append(found)
    claims(bench, cells)


def claims(bench: Bench, cells: dict[str, list[dict[str, Any]]]) -> None:
    def lost(name: str, reference: str = "tuned") -> list[float]:
        return [100 * (r["accuracy"] - c["accuracy"]) for r, c in zip(cells[reference], cells[name], strict=True)]

    def size(name: str) -> list[float]:
        return [r["bytes"] / c["bytes"] for r, c in zip(cells["tuned"], cells[name], strict=True)]

    share = [100 * cell["linear_share"] for cell in cells["cluster"]]
    points = "points of test accuracy lost"
    bench.claim("plain_drop", lost("plain"), f"{points} by the same training with neither")
    bench.claim("cluster_linear_bytes", share, "% of the fp32 bytes of linear weights, on disk", "<= 14")
    bench.claim("cluster_drop", lost("cluster"), points, "<= 1")
    bench.claim("cluster_drop_untrained", lost("untrained"), f"{points}, k-means after the same training")
    bench.claim("cluster_size_reduction", size("cluster"), "bytes on disk, fp32 safetensors / ours")
    bench.claim("merge_removed", [100 * c["merged_share"] for c in cells["merge"]], "% of the features", ">= 10")
    bench.claim("merge_drop", lost("merge"), points, "<= 0.5")
    bench.claim("cut_drop", lost("cut"), f"{points} by the structured cut alone")
    bench.claim("both_drop", lost("both", "cut"), f"{points} on top, merged and clustered", "<= 1")
    bench.claim("both_linear_bytes", [100 * c["linear_share"] for c in cells["both"]], "% of their fp32 bytes", "<= 14")
    bench.claim("both_size_reduction", size("both"), "bytes on disk, fine-tuned fp32 safetensors / ours")


def fused(bench: Bench, seed: int, settings: dict[str, Any]) -> dict[str, Any]:
    length = {"max_steps": 10} if bench.quick else {"num_train_epochs": EPOCHS}
    optimizations = {"weight_fusion": calibrated(bench, settings)} if settings else {}
    return trained(bench, seed, optimizations, learning_rate=RATE, **length)


def cut(bench: Bench, seed: int, settings: dict[str, Any]) -> dict[str, Any]:
    length = {"max_steps": 10} if bench.quick else {"num_train_epochs": CUT_EPOCHS}
    optimizations = {**CUT, "structured_pruning": calibrated(bench, CUT["structured_pruning"])}
    if settings:
        optimizations["weight_fusion"] = calibrated(bench, settings)
    return trained(bench, seed, optimizations, learning_rate=CUT_RATE, **length)


def calibrated(bench: Bench, settings: dict[str, Any]) -> dict[str, Any]:
    return {**settings, "calibration_batches": 8 if bench.quick else 24}


def trained(bench: Bench, seed: int, optimizations: dict[str, Any], **arguments: Any) -> dict[str, Any]:
    source = str(folder_of(bench, seed))
    with trainer(seed, model=source, optimizations={**FAST, **optimizations}, **arguments) as made:
        made.train()
        changes = {change["name"]: change for change in Plan(made.optimizations).describe()}
        told = changes.get("weight_fusion", {})
        found = judged(bench, made.finished)
    return {**found, "merged_share": told.get("merged_units", 0) / told.get("of_units", 1)}


def judged(bench: Bench, folder: Path) -> dict[str, Any]:
    """Test accuracy of the model in ``folder``, its bytes, and those of its linear weights over what fp32 takes."""
    task, data = banking77()
    rows = list(data["test"].select(range(100)) if bench.quick else data["test"])
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    accuracy = task.compute_metrics(predictions(TorchRuntime(model), rows, task.collator()))["accuracy"]
    linear = {
        f"{path}.weight": module.weight for path, module in model.named_modules() if isinstance(module, nn.Linear)
    }
    names = {*linear, *(name + checkpoint.CODEBOOK for name in linear)}
    with safe_open(folder / "model.safetensors", "pt") as opened:
        stored = sum(opened.get_tensor(name).nbytes for name in opened.keys() if name in names)  # noqa: SIM118
    return {
        "accuracy": accuracy,
        "bytes": bytes_on_disk(folder),
        "linear_share": stored / sum(4 * weight.numel() for weight in linear.values()),
    }


DEPENDS = (
    *(checkpoint, cluster, merge, merging, weight_fusion),
    *(distill, distillation, importance, observation, search, shape, structured, structured_pruning),
)

if __name__ == "__main__":
    main("weight_fusion", body, DEPENDS)

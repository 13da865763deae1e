"""What a cut costs without any training, with and without repair: `python -m benchmarks.untrained`.

Banking77, all-MiniLM-L6-v2 as `benchmarks.compression` fine-tuned it, cut to 1.5 times the speed in PyTorch.
"""

from typing import Any

from transformers import AutoModelForSequenceClassification

from benchmarks.banking77 import banking77
from benchmarks.compression import DEPENDS, finetuned, folder_of, rows
from benchmarks.harness import Bench, main
from hf_efficient import compress
from hf_efficient.guard import predictions
from hf_efficient.measure import TorchRuntime


def body(bench: Bench) -> None:
    if not folder_of(bench, "finetuned-0").is_dir():
        finetuned(bench, 0)
    for repair in (True, False):
        found = bench.cell({"seed": 0, "speedup": 1.5, "repair": repair}, lambda repair=repair: cut_only(bench, repair))
        name = "accuracy_loss_at_1.5x" + ("" if repair else "_without_repair")
        bench.claim(name, found["loss"], "points of test accuracy, no training", "<= 1" if repair else "")
        bench.claim(f"{name}_speedup", found["measured"]["speedup"], "times, measured on the shape chosen")


def cut_only(bench: Bench, repair: bool) -> dict[str, Any]:
    task, data = banking77()
    source = AutoModelForSequenceClassification.from_pretrained(folder_of(bench, "finetuned-0")).eval()
    train, test = list(data["train"]), data["test"].select(range(rows(bench) or len(data["test"])))
    small, changes = compress.compress(
        source, train, task.collator(), target_speedup=1.5, repair=repair, importance="obs", calibration_batches=24
    )
    scores = [
        task.compute_metrics(predictions(TorchRuntime(one), list(test), task.collator()))["accuracy"]
        for one in (source, small)
    ]
    return {"loss": 100 * (scores[0] - scores[1]), "measured": changes["measured"]}


if __name__ == "__main__":
    main("untrained", body, (*DEPENDS, compress))

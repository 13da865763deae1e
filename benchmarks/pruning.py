"""What models keep of their accuracy without most of their weights: `python -m benchmarks.pruning`.

Banking77, all-MiniLM-L6-v2. A fine-tuned model is trained on while weights of the linear layers in its blocks become
zero, learning from itself as it was: 80 % by movement and by magnitude, and two in every four (2:4). Zeros make none of
them faster in dense kernels; on a GPU with sparse tensor cores, the 2:4 model is timed there beside dense bf16.
"""

from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForSequenceClassification

from benchmarks.banking77 import FAST, banking77, trainer
from benchmarks.comparison import in_turns
from benchmarks.harness import Bench, alone, main
from benchmarks.quantization import accuracy, folder_of, tuned
from hf_efficient import ConfigError
from hf_efficient import low_bit as low_bit_module
from hf_efficient.files import atomic_folder
from hf_efficient.functional import masks
from hf_efficient.low_bit import load_low_bit, require_low_bit
from hf_efficient.measure import TorchRuntime
from hf_efficient.optimizations import pruning

EPOCHS, RATE = 6, 3e-4
WAYS = {
    "movement_80": {"method": "movement", "sparsity": 0.8},
    "magnitude_80": {"method": "magnitude", "sparsity": 0.8},
    "2_of_4": {"pattern": "2:4"},
}
TARGETS = {"movement_80": ">= 97", "2_of_4": ">= 99"}
SPARSE = "2_of_4"
DEVICE = str(torch.accelerator.current_accelerator() or "cpu")


def body(bench: Bench) -> None:
    found: dict[str, list[dict[str, Any]]] = {way: [] for way in WAYS}
    full_models = []
    for seed in bench.seeds:
        full_models.append(whole(bench, seed))
        for way in WAYS:
            settings = {"seed": seed, "way": way, "epochs": EPOCHS, "rate": RATE, **WAYS[way]}
            found[way].append(bench.cell(settings, lambda seed=seed, way=way: pruned(bench, seed, way)))
    for way, cells in found.items():
        kept = [100 * cell["accuracy"] / full["accuracy"] for full, cell in zip(full_models, cells, strict=True)]
        bench.claim(f"{way}_kept", kept, "% of the fine-tuned model's test accuracy", TARGETS.get(way, ""))
        bench.claim(f"{way}_zeros", [100 * cell["sparsity"] for cell in cells], "% of the weights of linear layers")
    speed(bench)


def model_of(bench: Bench, way: str) -> Path:
    return bench.cache / "pruning" / f"{way}{'-quick' if bench.quick else ''}"


def whole(bench: Bench, seed: int) -> dict[str, Any]:
    """Test accuracy of the fine-tuned model."""
    tuned(bench, seed)
    source = folder_of(bench, seed)

    def compute() -> dict[str, Any]:
        return {"accuracy": accuracy(bench, AutoModelForSequenceClassification.from_pretrained(source).to(DEVICE))}

    return bench.cell({"seed": seed, "judged": "fine-tuned"}, compute, peer=True)


def pruned(bench: Bench, seed: int, way: str) -> dict[str, Any]:
    length = {"max_steps": 20} if bench.quick else {"num_train_epochs": EPOCHS}
    optimizations = {**FAST, "distillation": {}, "pruning": WAYS[way]}
    source = str(folder_of(bench, seed))
    with trainer(seed, model=source, learning_rate=RATE, optimizations=optimizations, **length) as made:
        made.train()
        with atomic_folder(model_of(bench, way)) as path:
            made.model.save_pretrained(path)
        told = next(one for one in made.optimizations if one.name == "pruning").describe()
        return {"accuracy": accuracy(bench, made.model), "sparsity": told["sparsity"]}


def speed(bench: Bench) -> None:
    """Claims about the 2:4 model on sparse tensor cores, or a note that there are none."""
    try:
        require_low_bit("sparse24", torch.device(DEVICE))
    except ConfigError as error:
        bench.notes.append(f"Not timed: {error}.")
        return
    found = bench.cell({"speed": SPARSE, "device": DEVICE}, lambda: alone(timed, bench))
    throughput = found["sparse"]["throughput"] / found["dense"]["throughput"]
    bench.claim(f"{SPARSE}_throughput", throughput, "examples/s at batch 32, sparse24 / eager bf16")
    latency = found["dense"]["latency_ms"] / found["sparse"]["latency_ms"]
    bench.claim(f"{SPARSE}_latency", latency, "ms at batch 1, eager bf16 / sparse24")


def timed(bench: Bench) -> dict[str, dict[str, float]]:
    folder = model_of(bench, SPARSE)
    dense = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.bfloat16).eval().to(DEVICE)
    runtimes = {"dense": TorchRuntime(dense), "sparse": TorchRuntime(load_low_bit(folder, "sparse24", DEVICE))}
    task, data = banking77()
    rows = list(data["test"].shuffle(seed=1).select(range(64 if bench.quick else 256)))
    return in_turns(bench, runtimes, {"": rows}, task.collator())


DEPENDS = (low_bit_module, masks, pruning)

if __name__ == "__main__":
    main("pruning", body, DEPENDS)

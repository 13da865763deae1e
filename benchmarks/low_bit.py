"""Low-bit layers beside floats, on an accelerator where there is one: `python -m benchmarks.low_bit`.

all-MiniLM-L6-v2, fine-tuned on Banking77, in each kind of `load_low_bit` that computes here: accuracy, bytes of its
weights, and speed beside eager fp32 and, on an accelerator, bf16.
"""

from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForSequenceClassification

from benchmarks.banking77 import FAST, banking77, trainer
from benchmarks.comparison import in_turns
from benchmarks.harness import Bench, alone, main
from hf_efficient import ConfigError, MissingDependencyError
from hf_efficient import low_bit as low_bit_module
from hf_efficient.files import atomic_folder
from hf_efficient.guard import predictions
from hf_efficient.low_bit import LOW_BIT, load_low_bit, require_low_bit
from hf_efficient.measure import TorchRuntime

FLOATS = {"fp32": torch.float32, "bf16": torch.bfloat16}


def body(bench: Bench) -> None:
    bench.cell({"model": "fine-tuned"}, lambda: finetuned(bench), peer=True)
    device = str(torch.accelerator.current_accelerator() or "cpu")
    kinds = []
    for kind in (kind for kind in LOW_BIT if kind != "sparse24"):  # for zeros that this model has not
        try:
            require_low_bit(kind, torch.device(device))
            kinds.append(kind)
        except (ConfigError, MissingDependencyError) as error:
            bench.notes.append(f"{kind}: {error}.")
    floats = ["fp32"] if device == "cpu" else list(FLOATS)  # a CPU without 16-bit products only slows down
    found = bench.cell(
        {"device": device, "kinds": floats + kinds}, lambda: alone(compared, bench, device, floats + kinds)
    )
    fp32 = found["fp32"]
    for kind in floats[1:] + kinds:
        each = found[kind]
        bench.claim(f"{kind}_drop", 100 * (fp32["accuracy"] - each["accuracy"]), "points of test accuracy lost")
        bench.claim(f"{kind}_size", fp32["bytes"] / each["bytes"], f"bytes of all weights, fp32 / {kind}")
        for peer in floats:
            if peer != kind:
                throughput = each["throughput"] / found[peer]["throughput"]
                bench.claim(f"{kind}_throughput_{peer}", throughput, f"examples/s at batch 32, {kind} / eager {peer}")
                latency = found[peer]["latency_ms"] / each["latency_ms"]
                bench.claim(f"{kind}_latency_{peer}", latency, f"ms at batch 1, eager {peer} / {kind}")


def folder_of(bench: Bench) -> Path:
    return bench.cache / "low_bit" / f"finetuned{'-quick' if bench.quick else ''}"


def finetuned(bench: Bench) -> dict[str, Any]:
    length = {"max_steps": 40} if bench.quick else {"num_train_epochs": 3}
    with trainer(0, optimizations=FAST, **length) as made:
        made.train()
        with atomic_folder(folder_of(bench)) as path:
            made.model.save_pretrained(path)
    return {}


def compared(bench: Bench, device: str, kinds: list[str]) -> dict[str, dict[str, float]]:
    """Accuracy, bytes and speeds of each kind."""
    folder = folder_of(bench)
    models = {kind: loaded(folder, kind, device) for kind in kinds}
    runtimes = {kind: TorchRuntime(model) for kind, model in models.items()}
    task, data = banking77()
    test = data["test"].shuffle(seed=1)
    rows, timed = (list(test.select(range(count))) for count in ((100, 64) if bench.quick else (len(test), 256)))
    speeds = in_turns(bench, runtimes, {"": timed}, task.collator())
    return {
        kind: {
            "accuracy": task.compute_metrics(predictions(runtime, rows, task.collator()))["accuracy"],
            "bytes": held(models[kind]),
            **speeds[kind],
        }
        for kind, runtime in runtimes.items()
    }


def loaded(folder: Path, kind: str, device: str) -> Any:
    if kind in LOW_BIT:
        return load_low_bit(folder, kind, device)
    return AutoModelForSequenceClassification.from_pretrained(folder, dtype=FLOATS[kind]).eval().to(device)


def held(model: torch.nn.Module) -> int:
    """Bytes that a model's parameters and buffers hold, packed ones as what they are packed in."""
    return sum(_bytes(tensor) for tensor in (*model.parameters(), *model.buffers()))


def _bytes(tensor: torch.Tensor) -> int:
    if hasattr(tensor, "__tensor_flatten__"):  # torchao's
        return sum(_bytes(getattr(tensor, name)) for name in tensor.__tensor_flatten__()[0])
    beside = [getattr(tensor, "SCB", None), getattr(getattr(tensor, "quant_state", None), "absmax", None)]
    return tensor.nbytes + sum(scales.nbytes for scales in beside if scales is not None)  # bitsandbytes' scales


DEPENDS = (low_bit_module,)

if __name__ == "__main__":
    main("low_bit", body, DEPENDS)

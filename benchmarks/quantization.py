"""What training for int8 and int4 keeps: `python -m benchmarks.quantization`.

Banking77, all-MiniLM-L6-v2. (1) A fine-tuned model is trained on with the rounding of each target, and exported or
loaded there: on test data, how often the rounded PyTorch model and what serves predict the same, and how far apart
their accuracies are. (2) Four-bit weights in groups, rounded after training (PTQ) and trained for (QAT): the share of
lost accuracy that QAT brings back. Both trainings start from the same fine-tuned model.
"""

import copy
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from transformers import AutoModelForSequenceClassification

from benchmarks.banking77 import FAST, banking77, trainer
from benchmarks.harness import Bench, main
from hf_efficient import candidates, export, quantizers, rounding, sensitivity, trained_ranges
from hf_efficient import low_bit as low_bit_module
from hf_efficient.files import atomic_folder
from hf_efficient.functional import fake_quant
from hf_efficient.guard import predictions
from hf_efficient.low_bit import load_low_bit
from hf_efficient.measure import TorchRuntime
from hf_efficient.optimizations import quantization
from hf_efficient.optimizations.quantization import TARGETS
from hf_efficient.rounding import Rounding, Scheme, readers

FINETUNE_EPOCHS, EPOCHS, RATE = 3, 1, 5e-5
EXPORTS = {
    "onnx-dynamic": ("onnx", "dynamic"),
    "onnx-dynamic-per-channel": ("onnx", "dynamic-per-channel"),
    "onnx-static": ("onnx", "static"),
    "onnx-static-matmul": ("onnx", "static-matmul"),
    "openvino-static": ("openvino", "static"),
    "torchao-int8": None,
    "torchao-int4": None,
}
"""Target of the training -> format and quantization of its export; None: layers that `load_low_bit` makes."""
GROUP = 384
"""Weights that share a scale: a row of most layers of this model. Groups of 64 hardly hurt it."""


def body(bench: Bench) -> None:
    for target in list(EXPORTS)[:1] if bench.quick else EXPORTS:
        tuned(bench, 0)
        found = bench.cell({"target": target}, lambda target=target: agreement(bench, target))
        bench.claim(
            f"{target}_agreement", 100 * found["agreement"], "% of test predictions, rounded = export", ">= 99.5"
        )
        apart = 100 * abs(found["rounded"] - found["exported"])
        bench.claim(f"{target}_accuracy_difference", apart, "points of test accuracy, rounded - export", "<= 0.2")
        bench.claim(f"{target}_accuracy", found["exported"], "test accuracy of the export")
    cells = []
    for seed in bench.seeds:
        tuned(bench, seed)
        cells.append(bench.cell({"seed": seed, "int4": GROUP}, lambda seed=seed: four_bits(bench, seed)))
    bench.claim("int4_drop_ptq", [100 * (c["float"] - c["ptq"]) for c in cells], "points of test accuracy lost")
    bench.claim("int4_drop_qat", [100 * (c["float"] - c["qat"]) for c in cells], "points of test accuracy lost")
    recovered = [100 * (c["qat"] - c["ptq"]) / max(c["float"] - c["ptq"], 1e-9) for c in cells]
    bench.claim("int4_recovered", recovered, "% of the PTQ drop that QAT brings back", ">= 50")


def folder_of(bench: Bench, seed: int) -> Path:
    return bench.cache / "quantization" / f"finetuned-{seed}{'-quick' if bench.quick else ''}"


def tuned(bench: Bench, seed: int) -> dict[str, Any]:
    def compute() -> dict[str, Any]:
        length = {"max_steps": 40} if bench.quick else {"num_train_epochs": FINETUNE_EPOCHS}
        with trainer(seed, optimizations=FAST, **length) as made:
            made.train()
            with atomic_folder(folder_of(bench, seed)) as path:
                made.model.save_pretrained(path)
        return {}

    return bench.cell({"seed": seed, "model": "fine-tuned"}, compute, peer=True, of="quantization")


def accuracy(bench: Bench, model: Any) -> float:
    return float(judged(bench, TorchRuntime(model.float().eval()))[0])


def judged(bench: Bench, runtime: Any) -> tuple[float, Any]:
    """Test accuracy, and the classes predicted."""
    task, data = banking77()
    rows = list(data["test"].select(range(100)) if bench.quick else data["test"])
    said = predictions(runtime, rows, task.collator())
    return task.compute_metrics(said)["accuracy"], torch.as_tensor(said.predictions).argmax(-1)


def trained(bench: Bench, seed: int, settings: dict[str, Any]) -> Any:
    """A trainer after one more epoch from the fine-tuned model, rounded all the way."""
    length = {"max_steps": 10} if bench.quick else {"num_train_epochs": EPOCHS}
    optimizations = {**FAST, "quantization": {"start": 0.0, **settings}}
    source = str(folder_of(bench, seed))
    return trainer(seed, model=source, use_cpu=True, learning_rate=RATE, optimizations=optimizations, **length)


def agreement(bench: Bench, target: str) -> dict[str, Any]:
    with trained(bench, 0, {"target": target}) as made, TemporaryDirectory() as folder:
        made.train()
        exported, theirs = judged(bench, served(made, target, Path(folder)))
        model = copy.deepcopy(made.model).float().eval()
        state = next(one for one in made.optimizations if one.name == "quantization").state_dict()
        packed = readers(model, made.collate(made.examples(made.eval_dataset, 2)))
        Rounding(TARGETS[target], state.get("ranges", {}), packed).attach(model)
        rounded, ours = judged(bench, TorchRuntime(model))
    return {"exported": exported, "rounded": rounded, "agreement": (ours == theirs).float().mean().item()}


def served(made: Any, target: str, folder: Path) -> Any:
    """What serves the model of a trainer: its export, or its low-bit layers."""
    if EXPORTS[target] is None:
        made.model.save_pretrained(folder / "model")
        return TorchRuntime(load_low_bit(folder / "model", target))
    format, quantize = EXPORTS[target]
    return export.export(
        made.model,
        folder / "export",
        format=format,
        quantize=quantize,
        examples=made.examples(made.eval_dataset, 300),
        calibration=made.examples(made.train_dataset, 300),
        collate=made.collate,
        metrics=made.compute_metrics,
        max_drop=1,
        seconds=0,
    ).runtime()


def four_bits(bench: Bench, seed: int) -> dict[str, Any]:
    source = AutoModelForSequenceClassification.from_pretrained(folder_of(bench, seed))
    found = {"float": accuracy(bench, source)}
    Rounding(Scheme("group", bits=4, group=GROUP)).fold(source)
    found["ptq"] = accuracy(bench, source)
    with trained(bench, seed, {"scheme": "int4", "group_size": GROUP}) as made:
        made.train()
        found["qat"] = accuracy(bench, made.model)
    return found


DEPENDS = (
    *(candidates, export, fake_quant, low_bit_module, quantization),
    *(quantizers, rounding, sensitivity, trained_ranges),
)

if __name__ == "__main__":
    main("quantization", body, DEPENDS)

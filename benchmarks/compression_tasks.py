"""Compression on other tasks than intents: `python -m benchmarks.compression_tasks`.

Entities: CrossNER, all five domains, all-MiniLM-L6-v2; trained on the set's test part, which is the largest, judged on
its validation part. Images: scikit-learn's digits, 8 x 8 pixels, and a small ViT trained from scratch. One seed, three
targets each; compared as in `benchmarks.compression`, with eager fp32 PyTorch and the best int8 export of the uncut
model.
"""

import copy
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from datasets import Dataset, Features, Sequence, Value
from sklearn.datasets import load_digits
from transformers import (
    AutoModelForTokenClassification,
    AutoTokenizer,
    EvalPrediction,
    PreTrainedModel,
    PrinterCallback,
    ViTConfig,
    ViTForImageClassification,
    default_data_collator,
    set_seed,
)

from benchmarks.banking77 import folder_of_data
from benchmarks.comparison import PEERS, best_of, in_turns, int8_exports
from benchmarks.compression import DEPENDS, EXPORTS, RUNTIME
from benchmarks.harness import Bench, alone, main
from hf_efficient import EfficientTrainer, EfficientTrainingArguments, export
from hf_efficient.data import load
from hf_efficient.guard import predictions
from hf_efficient.measure import TorchRuntime, bytes_on_disk
from hf_efficient.pretrained import DEFAULT_MODEL
from hf_efficient.runtimes import load_runtime
from hf_efficient.task import Task, get_task

SEED, TARGETS = 0, (1.5, 2.5, 4.0)
"""Targets are speed-ups over the uncut model, both in OpenVINO int8."""
TIMED_EXAMPLES, CHECKED_EXAMPLES, CALIBRATION = 256, 500, 300


@dataclass(frozen=True)
class Case:
    """A task with its data.

    Attributes:
        model: a new one, to be trained.
        encode: (part, processor) -> model-ready examples; part is train or test.
        epochs, rate: of the training of the uncut model, and of the one that cuts and distils.
    """

    metric: str
    model: Callable[[], PreTrainedModel]
    loads: type[Any]
    processor: Any
    encode: Callable[[str, Any], Dataset]
    collate: Callable[[Any], Any]
    metrics: Callable[[EvalPrediction], dict[str, float]]
    epochs: tuple[int, int]
    rate: tuple[float, float]
    extras: dict[str, dict[str, Any]]


def entities() -> Case:
    folder = folder_of_data("crossner")
    task_class = get_task("token-classification")
    settings = task_class.data_settings(train=str(folder / "test.jsonl"), test=str(folder / "validation.jsonl"))
    task, data = task_class(settings), load(settings)
    task.check(data)

    def using(processor: Any) -> Task:
        made = copy.copy(task)
        made.processor = processor
        return made

    return Case(
        task.main_metric,
        lambda: task.load_model(DEFAULT_MODEL),
        AutoModelForTokenClassification,
        task.load_processor(DEFAULT_MODEL),
        lambda part, processor: using(processor).encode(data[part]),
        lambda processor: using(processor).collator(),
        task.compute_metrics,
        (8, 14),
        (5e-4, 6e-4),
        {"length_batching": {}},  # the vocabulary stays: with 12,000 tokens F1 falls by 2.9 points, names get spelled
    )


def digits() -> Case:
    found = load_digits()
    pixels = (found.images[:, None] / 8 - 1).astype(np.float32)
    order = np.random.default_rng(0).permutation(len(pixels))
    parts = {"train": order[360:], "test": order[:360]}
    features = Features({"pixel_values": Sequence(Sequence(Sequence(Value("float32")))), "labels": Value("int64")})

    def encode(part: str, processor: Any) -> Dataset:
        rows = parts[part]
        return Dataset.from_dict({"pixel_values": pixels[rows], "labels": found.target[rows]}, features=features)

    def metrics(said: EvalPrediction) -> dict[str, float]:
        return {"accuracy": float((np.asarray(said.predictions).argmax(-1) == said.label_ids).mean())}

    def model() -> PreTrainedModel:
        size = {"hidden_size": 128, "num_hidden_layers": 6, "num_attention_heads": 4, "intermediate_size": 512}
        return ViTForImageClassification(ViTConfig(image_size=8, patch_size=2, num_channels=1, num_labels=10, **size))

    return Case(
        *("accuracy", model, ViTForImageClassification, None, encode, lambda processor: default_data_collator, metrics),
        *((40, 60), (1e-3, 1e-3), {}),
    )


CASES = {"crossner": entities, "digits": digits}


def body(bench: Bench) -> None:
    for name, make in CASES.items():
        case = make()
        tuned = bench.cell({"set": name, "model": "fine-tuned"}, lambda: finetuned(bench, name, case))  # noqa: B023
        bench.claim(f"{name}_{case.metric}", tuned["metric"], f"{case.metric} of the uncut model")
        targets = TARGETS[:1] if bench.quick else TARGETS
        made = [
            bench.cell({"set": name, "target": target}, lambda: compressed(bench, name, case, target))  # noqa: B023
            for target in targets
        ]
        found = bench.cell({"set": name, "speeds": targets}, lambda: alone(compared, bench, name, targets))  # noqa: B023
        for target, each in zip(targets, made, strict=True):
            claims(bench, f"{name}_{target:g}", case, tuned, {**each, **found, "ours": f"{target:g}"})


def claims(bench: Bench, point: str, case: Case, tuned: dict[str, Any], made: dict[str, Any]) -> None:
    speeds = made["speeds"]
    ours, eager, best = (speeds[each] for each in (made["ours"], "eager", made["best"]))
    throughput = "examples/s at batch 32, ours / "
    bench.claim(f"{point}_vs_eager", ours["throughput"] / eager["throughput"], f"{throughput}eager fp32")
    bench.claim(f"{point}_vs_int8", ours["throughput"] / best["throughput"], f"{throughput}{made['best']}")
    bench.claim(f"{point}_latency", eager["latency_ms"] / ours["latency_ms"], "ms at batch 1, eager fp32 / ours")
    bench.claim(f"{point}_size", tuned["bytes"] / made["bytes"], "bytes on disk, fp32 safetensors / ours")
    bench.claim(f"{point}_kept", 100 * made["metric"] / tuned["metric"], f"% of {case.metric} kept")
    bench.claim(f"{point}_cost", 1 + made["seconds"] / tuned["seconds"], "seconds, whole run / fine-tuning")


def folder_of(bench: Bench, name: str) -> Path:
    return bench.cache / "compression_tasks" / f"{name}{'-quick' if bench.quick else ''}"


def trained(bench: Bench, case: Case, model: Any, folder: str, stage: int, optimizations: Any) -> Any:
    length = {"max_steps": 20} if bench.quick else {"num_train_epochs": case.epochs[stage]}
    arguments = EfficientTrainingArguments(
        folder,
        learning_rate=case.rate[stage],
        warmup_steps=0.1,
        per_device_train_batch_size=32,
        save_strategy="no",
        logging_strategy="no",
        report_to="none",
        disable_tqdm=True,
        dataloader_pin_memory=False,
        measure_seconds=0,
        seed=SEED,
        use_cpu=True,
        optimizations=optimizations,
        **length,
    )
    made = EfficientTrainer(
        model=model,
        args=arguments,
        train_dataset=case.encode("train", case.processor),
        data_collator=case.collate(case.processor),
        processing_class=case.processor,
    )
    made.remove_callback(PrinterCallback)
    made.train()
    return made


def judged(bench: Bench, case: Case, runtime: Any, processor: Any) -> float:
    test = case.encode("test", processor)
    rows = list(test.select(range(100 if bench.quick else len(test))))
    return case.metrics(predictions(runtime, rows, case.collate(processor)))[case.metric]


def finetuned(bench: Bench, name: str, case: Case) -> dict[str, Any]:
    set_seed(SEED)
    with TemporaryDirectory() as folder:
        start = time.perf_counter()
        extras = {key: each for key, each in case.extras.items() if key == "length_batching"}
        made = trained(bench, case, case.model(), folder, 0, {**extras, "precision": {"dtype": "bf16"}})
        seconds = time.perf_counter() - start
    target = folder_of(bench, f"finetuned-{name}")
    made.model.save_pretrained(target)
    metric = judged(bench, case, TorchRuntime(made.model.float().eval()), case.processor)
    return {"seconds": seconds, "metric": metric, "bytes": bytes_on_disk(target)}


def compressed(bench: Bench, name: str, case: Case, speedup: float) -> dict[str, Any]:
    set_seed(SEED)
    source = case.loads.from_pretrained(folder_of(bench, f"finetuned-{name}"))
    optimizations = {
        **case.extras,
        "precision": {"dtype": "bf16"},
        "structured_pruning": {
            "target_speedup": speedup,
            "runtime": RUNTIME,
            "calibration_batches": 24,
            "importance": "obs",
        },
        "distillation": {"teacher": "self"},
    }
    with TemporaryDirectory() as folder:
        start = time.perf_counter()
        made = trained(bench, case, source, folder, 1, optimizations)
        result = export.export(
            made.model,
            folder_of(bench, f"compressed-{name}-{speedup:g}"),
            format=EXPORTS["batches"][0],
            quantize=EXPORTS["batches"][1],
            examples=made.examples(case.encode("test", made.processing_class), CHECKED_EXAMPLES),
            calibration=made.examples(made.train_dataset, CALIBRATION),
            collate=made.collate,
            metrics=case.metrics,
            main_metric=case.metric,
            max_drop=1,
            processor=made.processing_class,
            seconds=0,
        )
        seconds = time.perf_counter() - start
    changes = {one.name: one.describe() for one in made.optimizations}
    return {
        "seconds": seconds,
        "metric": judged(bench, case, result.runtime(), made.processing_class),
        "bytes": bytes_on_disk(result.folder),
        "widths": changes["structured_pruning"]["widths"],
        "layers": changes["structured_pruning"]["kept_layers"],
        "measured": changes["structured_pruning"]["measured"],
    }


def compared(bench: Bench, name: str, targets: tuple[float, ...]) -> dict[str, Any]:
    case = CASES[name]()
    source = case.loads.from_pretrained(folder_of(bench, f"finetuned-{name}")).eval()
    ours = {f"{target:g}": folder_of(bench, f"compressed-{name}-{target:g}") for target in targets}
    rows = {"": timed_rows(case, case.processor)}
    for each, folder in ours.items():
        rows[each] = timed_rows(case, None if case.processor is None else AutoTokenizer.from_pretrained(folder))
    with TemporaryDirectory() as folder:
        exports, drops = int8_exports(
            *(source, folder, PEERS),
            examples=list(case.encode("test", case.processor).select(range(100 if bench.quick else 360))),
            calibration=list(case.encode("train", case.processor).select(range(CALIBRATION))),
            collate=case.collate(case.processor),
            metrics=case.metrics,
            main_metric=case.metric,
        )
        runtimes = {"eager": TorchRuntime(source), **exports, **{key: load_runtime(each) for key, each in ours.items()}}
        speeds = in_turns(bench, runtimes, rows, case.collate(case.processor))
    return {"speeds": speeds, "drops": drops, "best": best_of(drops, speeds)}


def timed_rows(case: Case, processor: Any) -> list[Any]:
    return list(case.encode("test", processor).shuffle(seed=1).select(range(TIMED_EXAMPLES)))


if __name__ == "__main__":
    main("compression_tasks", body, DEPENDS)

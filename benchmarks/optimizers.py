"""Optimizers with 8-bit state against 32-bit AdamW: bytes of state, accuracy after the same epochs, time of a step.

MiniLM on Banking77, length_batching, the same batches for each optimizer. State is what `optimizer.pt` of the last
checkpoint holds outside embeddings (those keep 32 bits). Speed: five steps at batch 32. Accuracy: three epochs in bf16
at batch 256, since an update costs more than fused AdamW's.
"""

import time
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

from benchmarks.banking77 import accuracy, trainer
from benchmarks.harness import Bench, main
from hf_efficient.functional import optimizer_state
from hf_efficient.functional.optimizer_state import optimizer_state_bytes
from hf_efficient.optimizations import optimizer

BASELINE = "adamw_fused"
KINDS = ("adamw_8bit", "torchao_adamw_8bit", "torchao_adamw_fp8")
ACCURACY_KINDS = ("adamw_8bit", "torchao_adamw_fp8")
ACCURACY = {"num_train_epochs": 3, "per_device_train_batch_size": 256, "learning_rate": 8e-4, "bf16": True}
SEEDS = (0,)
WARM_UP = 2
"""Steps that are not timed: torchao compiles in the first."""
FEW = WARM_UP + 5
"""Steps where state and speed are measured alone."""


class StepTimer(TrainerCallback):
    """Seconds of all steps after the first `WARM_UP`."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._start = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step > WARM_UP:
            self.seconds += time.perf_counter() - self._start


def train(kind: str, seed: int, steps: int) -> dict[str, float]:
    """One training of ``steps`` steps, or of 3 epochs if 0: accuracy on test (in [0, 1]), seconds of the timed steps,
    bytes of saved optimizer state.
    """
    arguments: dict[str, Any] = (
        {"max_steps": steps} if steps else {**ACCURACY, "use_cpu": not torch.cuda.is_available()}
    )
    arguments["optimizations"] = {"length_batching": {}}
    if kind == BASELINE:
        arguments["optim"] = "adamw_torch_fused"
    else:
        arguments["optimizations"]["optimizer"] = {"kind": kind}
    arguments |= {"save_strategy": "epoch", "save_total_limit": 1}
    timer = StepTimer()
    with trainer(seed, **arguments) as made:
        made.add_callback(timer)
        made.train()
        (path,) = Path(str(made.args.output_dir)).glob("checkpoint-*/optimizer.pt")
        saved = torch.load(path, map_location="cpu", weights_only=True)
        live = getattr(made.optimizer, "optimizer", made.optimizer)
        state = optimizer_state_bytes(live, made.model, saved)
        right = accuracy(made, 200 if steps else None)
    return {"accuracy": right, "seconds": timer.seconds, **{f"bytes_{place}": size for place, size in state.items()}}


def body(bench: Bench) -> None:
    for kind in KINDS[:1] if bench.quick else KINDS:  # compiling torchao's step takes a minute
        pairs = [(cell(bench, kind, seed, FEW), cell(bench, BASELINE, seed, FEW)) for seed in SEEDS]
        share = [ours["bytes_other"] / stock["bytes_other"] for ours, stock in pairs]
        bench.claim(f"{kind}_state", share, f"bytes outside embeddings, {kind} / {BASELINE}", "<= 0.3")
        speed = [stock["seconds"] / ours["seconds"] for ours, stock in pairs]
        bench.claim(f"{kind}_speed", speed, f"steps/s, {kind} / {BASELINE}")
    for kind in () if bench.quick else ACCURACY_KINDS:
        pairs = [(cell(bench, kind, seed, 0), cell(bench, BASELINE, seed, 0)) for seed in SEEDS]
        change = [100 * (ours["accuracy"] - stock["accuracy"]) for ours, stock in pairs]
        bench.claim(f"{kind}_accuracy", change, f"points of test accuracy, {kind} - {BASELINE}", ">= -0.5")


def cell(bench: Bench, kind: str, seed: int, steps: int) -> dict[str, Any]:
    return bench.cell({"kind": kind, "seed": seed, "steps": steps}, lambda: train(kind, seed, steps))


if __name__ == "__main__":
    main("optimizers", body, depends=[optimizer, optimizer_state])

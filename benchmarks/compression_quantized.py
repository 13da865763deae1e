"""The same compression, trained for the rounding of int8: `python -m benchmarks.compression_quantized`.

As `benchmarks.compression`, with the last fifth of the one training rounded as OpenVINO's int8 rounds, and shipped in
OpenVINO alone. Three seeds at the target there; then, one seed each, how far one can go.
"""

from functools import partial
from typing import Any

from benchmarks.compression import DEPENDS, HOW, RUNTIME, SEEDS, SPEEDUP, compared, compressed, uncut
from benchmarks.harness import Bench, alone, main
from hf_efficient import rounding
from hf_efficient.functional import fake_quant
from hf_efficient.optimizations import quantization

ROUNDED = {"quantization": {"target": RUNTIME, "start": 0.8}}
FURTHER = (5.5, 11.0)
"""Speed-ups over the uncut model, both in OpenVINO int8."""


def body(bench: Bench) -> None:
    points = [point(bench, seed, SPEEDUP) for seed in (SEEDS[:1] if bench.quick else SEEDS)]
    for name, (unit, target, _) in FIGURES.items():
        bench.claim(name, [each[name] for each in points], unit, target)
    for speedup in () if bench.quick else FURTHER:
        found = point(bench, 0, speedup)
        bench.claim(
            f"accuracy_kept_at_target_{speedup:g}",
            found["accuracy_kept"],
            f"% kept at {found['throughput_vs_eager']:.1f}x the throughput of eager fp32, "
            f"{found['size_reduction']:.1f}x smaller",
        )


FIGURES: dict[str, tuple[str, str, Any]] = {
    "throughput_vs_eager": (
        "examples/s at batch 32, ours / eager fp32",
        ">= 15",
        lambda tuned, made, found: found["ours"]["throughput"] / found["eager"]["throughput"],
    ),
    "throughput_vs_int8_export": (
        "examples/s at batch 32, ours / best int8 export",
        ">= 4",
        lambda tuned, made, found: found["ours"]["throughput"] / found["best"]["throughput"],
    ),
    "latency_vs_eager": (
        "ms at batch 1, eager fp32 / ours",
        ">= 5",
        lambda tuned, made, found: found["eager"]["latency_ms"] / found["ours"]["latency_ms"],
    ),
    "size_reduction": (
        "bytes on disk, fp32 safetensors / ours",
        ">= 10",
        lambda tuned, made, found: tuned["bytes"] / made["bytes"],
    ),
    "accuracy_kept": (
        "% of the fine-tuned test accuracy",
        ">= 99",
        lambda tuned, made, found: 100 * made["accuracy"] / tuned["accuracy"],
    ),
    "cost_vs_finetuning": (
        "seconds, whole run / fine-tuning",
        "<= 3",
        lambda tuned, made, found: 1 + made["seconds"] / tuned["seconds"],
    ),
}
"""Name -> unit, target, and how it comes of a seed's cells."""


def point(bench: Bench, seed: int, speedup: float) -> dict[str, float]:
    tuned, given = uncut(bench, seed), {"seed": seed, **HOW}
    ships = ("batches",)
    made = bench.cell({**given, "target": speedup}, lambda: compressed(bench, seed, speedup, ROUNDED, ships))
    timed = partial(compared, more=ROUNDED, ships=ships)
    found = bench.cell({**given, "speeds": speedup}, lambda: alone(timed, bench, seed, speedup))
    speeds = {
        "ours": found["speeds"]["batches"],
        "eager": found["speeds"]["eager"],
        "best": found["speeds"][found["best"]],
    }
    return {name: figure(tuned, made, speeds) for name, (_, _, figure) in FIGURES.items()}


if __name__ == "__main__":
    main("compression_quantized", body, (*DEPENDS, fake_quant, quantization, rounding))

"""The same compression, trained for the rounding of int8: `python -m benchmarks.compression_quantized`.

As `benchmarks.compression`, with the last fifth of the one training rounded as OpenVINO's int8 rounds, and shipped in
OpenVINO alone. Three seeds at the target there; then, one seed each, how far one can go.
"""

from functools import partial
from typing import Any

from benchmarks.compression import (
    DEPENDS,
    HOW,
    RUNTIME,
    SEEDS,
    SPEEDUP,
    claim_targets,
    compared,
    compressed,
    kept,
    ratios,
    uncut,
)
from benchmarks.harness import Bench, alone, main
from hf_efficient import rounding
from hf_efficient.functional import fake_quant
from hf_efficient.optimizations import quantization

ROUNDED = {"quantization": {"target": RUNTIME, "start": 0.8}}
SHIPS = ("batches",)
FURTHER = (5.5, 11.0)
"""Speed-ups over the uncut model, both in OpenVINO int8."""


def body(bench: Bench) -> None:
    cells = [cell(bench, seed, SPEEDUP) for seed in (SEEDS[:1] if bench.quick else SEEDS)]
    claim_targets(bench, cells, single=SHIPS[0])
    for speedup in () if bench.quick else FURTHER:
        found = cell(bench, 0, speedup)
        throughput = ratios([found], SHIPS[0], "throughput", "eager")[0]
        size = found["tuned"]["bytes"] / found["bytes"]
        unit = f"% kept at {throughput:.1f}x the throughput of eager fp32, {size:.1f}x smaller"
        bench.claim(f"accuracy_kept_at_target_{speedup:g}", kept([found]), unit)


def cell(bench: Bench, seed: int, speedup: float) -> dict[str, Any]:
    """As `claim_targets` takes it."""
    tuned, given = uncut(bench, seed), {"seed": seed, **HOW}
    made = bench.cell({**given, "target": speedup}, lambda: compressed(bench, seed, speedup, ROUNDED, SHIPS))
    timed = partial(compared, more=ROUNDED, ships=SHIPS)
    speeds = bench.cell({**given, "speeds": speedup}, lambda: alone(timed, bench, seed, speedup))
    return {**made, **speeds, "tuned": tuned}


if __name__ == "__main__":
    main("compression_quantized", body, (*DEPENDS, fake_quant, quantization, rounding))

"""Accuracy kept at other speeds than `benchmarks.compression` aims at: `python -m benchmarks.compression_curve`.

The same training, export and measurement, one seed; each point takes some eight minutes.
"""

from benchmarks.compression import DEPENDS, HOW, compared, compressed, uncut
from benchmarks.harness import Bench, alone, main

TARGETS = (1.25, 2.5, 3.5, 7.0, 9.5)
"""Speed-ups over the uncut model, both in OpenVINO int8, which is itself some three times as fast as eager fp32."""


def body(bench: Bench) -> None:
    tuned = uncut(bench, 0)
    for target in TARGETS[:1] if bench.quick else TARGETS:
        made = bench.cell({**HOW, "target": target}, lambda target=target: compressed(bench, 0, target))
        found = bench.cell({**HOW, "speeds": target}, lambda target=target: alone(compared, bench, 0, target, ()))
        ratio = found["speeds"]["batches"]["throughput"] / found["speeds"]["eager"]["throughput"]
        name = f"accuracy_kept_at_target_{target:g}"
        kept = 100 * made["accuracy"] / tuned["accuracy"]
        bench.claim(name, kept, f"% kept at {ratio:.1f}x the throughput of eager fp32")


if __name__ == "__main__":
    main("compression_curve", body, DEPENDS)

"""Steps a second and loss over a slow link, by what two processes send each other (`communication`), on Banking77.

all-MiniLM-L6-v2 (91 MB of gradients), two processes of one thread each, 16 examples each a step, over a loopback device
that Linux's traffic control limits to 1 Gbit/s altogether, in a network namespace of its own (root's right). Everything
else is equal. Timed is each whole training, from its eighth step on; its loss is that on 500 rows that it did not see.
"""

import functools
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

import hf_efficient.communication
from benchmarks.banking77 import banking77, trainer
from benchmarks.harness import Bench, main, ratios

EXACT = "exact"
PERIOD = 8
"""Steps after which local steps meet. Timed is from the end of the first such to the end of the last, the averages in
between included: one in so many steps."""
WAYS: dict[str, dict[str, Any] | None] = {
    EXACT: None,
    "bf16": {"gradients": "bf16"},
    "fp16": {"gradients": "fp16"},
    "power_sgd": {"gradients": "power_sgd", "rank": 4},
    "local_steps": {"local_steps": PERIOD},
}
STEPS, QUICK_STEPS = 96, 16
RATE = "1gbit"
JUDGED = 500
SLOW_LINK = (
    f"ip link set lo up && tc qdisc add dev lo root handle 1: htb default 1 && "
    f"tc class add dev lo parent 1: classid 1:1 htb rate {RATE}"
)


def body(bench: Bench) -> None:
    steps = QUICK_STEPS if bench.quick else STEPS
    found = {
        way: [
            bench.cell(
                {"way": way, "seed": seed, "steps": steps}, functools.partial(over_a_slow_link, way, seed, steps)
            )
            for seed in bench.seeds
        ]
        for way in WAYS
    }
    for way, cells in found.items():
        bench.claim(f"{way}_loss", [each["loss"] for each in cells], f"validation loss after {steps} steps")
        if way != EXACT:
            speeds = ratios([each["steps_per_s"] for each in cells], [each["steps_per_s"] for each in found[EXACT]])
            bench.claim(f"{way}_speedup", speeds, f"steps/s of {way} / all gradients of every step")


def over_a_slow_link(way: str, seed: int, steps: int) -> dict[str, Any]:
    """What a training on two processes came to, as `worker` tells."""
    with tempfile.TemporaryDirectory() as folder:
        told = Path(folder) / "told.json"
        launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
        command = [*launch, "-m", "benchmarks.communication", "--worker", way, str(seed), str(steps), str(told)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", "CUDA_VISIBLE_DEVICES": ""}
        slowed = ["unshare", "-n", "sh", "-c", f'{SLOW_LINK} && exec "$@"', "sh", *command]
        subprocess.run(slowed, env=environment, check=True)
        return json.loads(told.read_text(encoding="utf-8"))  # type: ignore[no-any-return]


class Marks(TrainerCallback):
    """When each step ended."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.seconds.append(time.perf_counter())


def worker(way: str, seed: int, steps: int, told: Path) -> None:
    train = banking77()[1]["train"].shuffle(seed=0)
    judged, rows = train.select(range(JUDGED)), train.select(range(JUDGED, len(train)))
    marks = Marks()
    settings = {
        "communication": WAYS[way],
        "max_steps": steps,
        "per_device_train_batch_size": 16,
        "use_cpu": True,
        # Else stock takes the loss of a model that averages by itself times the number of processes
        "average_tokens_across_devices": False,
    }
    with trainer(seed=seed, train=rows, **settings) as made:
        made.add_callback(marks)
        made.train()
        loss = made.evaluate(judged)["eval_loss"]
        if made.is_world_process_zero():
            speed = (steps - PERIOD) / (marks.seconds[steps - 1] - marks.seconds[PERIOD - 1])
            told.write_text(json.dumps({"steps_per_s": speed, "loss": loss}), encoding="utf-8")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        worker(sys.argv[2], int(sys.argv[3]), int(sys.argv[4]), Path(sys.argv[5]))
    else:
        main("communication", body, depends=[hf_efficient.communication])

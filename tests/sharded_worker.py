"""Trainings on parts of weights (FSDP2) that `tests/test_sharded.py` runs on two processes and, to compare, on one.

Accelerate shards on accelerators alone, so this is the Trainer's loop by hand, around torch's own `fully_shard`.
"""

import os
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from transformers import TrainerState, set_seed

from hf_efficient.blocks import share_out
from hf_efficient.gradient_guard import finite
from hf_efficient.optimization import Context
from hf_efficient.plan import build_optimizations
from tests.distributed_worker import RATE, without_dropout
from tests.tiny import pad, text_examples

STEPS, STOP, BATCH = 8, 4, 6
RAMP = {"start": 0.0, "end": 0.75, "every": 1}
CASES: dict[str, dict[str, Any]] = {
    "magnitude": {"pruning": RAMP},
    "movement-global": {"pruning": {**RAMP, "method": "movement", "scope": "global"}},
    "2:4": {"pruning": {**RAMP, "pattern": "2:4", "head": True}},
    "dynamic": {"quantization": {"start": 0.5}},
    "static": {"quantization": {"start": 0.25, "target": "onnx-static"}},
    "int4": {"quantization": {"start": 0.5, "scheme": "int4", "group_size": 8}},
    "fixed_point": {"quantization": {"start": 0.5, "scheme": "fixed_point", "step": 2**-10}},
}


@dataclass
class Result:
    """What a training leaves, whole tensors of it: at its end, and in a checkpoint after `STOP` steps."""

    weights: dict[str, torch.Tensor]
    told: dict[str, Any]
    ranges: dict[str, list[float]]
    stopped_weights: dict[str, torch.Tensor]
    stopped_state: dict[str, Any]


def train(case: str, rank: int, processes: int, begin: Result | None = None) -> tuple[Any, Result]:
    """The model, and what its training left; one that goes on from the checkpoint of ``begin``."""
    (one,) = build_optimizations(CASES[case])
    set_seed(0)
    model = without_dropout("text")["model"].train()
    args: Any = SimpleNamespace(world_size=processes, process_index=rank)
    state = TrainerState(max_steps=STEPS, global_step=0 if begin is None else STOP)
    if begin is not None:
        model.load_state_dict(begin.stopped_weights)
        one.load_state_dict(begin.stopped_state)
    one.attach()
    examples = pad([text_examples()[index] for index in range(BATCH * STEPS)])
    calibration = {name: values[:BATCH] for name, values in examples.items()}
    model = one.prepare_model(model, Context(args=args, model=model, calibration=lambda count: [calibration]))
    if processes > 1:
        share_out(model, "cpu")
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE)
    told: Any = (args, state, None)
    one.on_train_begin(*told, model=model, optimizer=optimizer)
    stopped: tuple[Any, Any] = ({}, {})
    for step in range(state.global_step, STEPS):
        rows = slice(step * BATCH + rank, (step + 1) * BATCH, processes)
        model(**{name: values[rows] for name, values in examples.items()}).loss.backward()
        one.on_pre_optimizer_step(*told, model=model)
        optimizer.step()
        one.on_optimizer_step(*told, model=model)
        optimizer.zero_grad()
        state.global_step += 1
        one.on_step_end(*told, model=model, optimizer=optimizer)
        if state.global_step == STOP:
            stopped = (whole_state(model), one.state_dict())
    model = one.finalize(model)
    ranges = getattr(model.config, "activation_ranges", {})
    return model, Result(whole_state(model), one.describe(), ranges, *stopped)


def whole_state(model: Any) -> dict[str, torch.Tensor]:
    found = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, broadcast_from_rank0=False))
    return {name: tensor.clone() for name, tensor in found.items()}


def guards(rank: int, model: Any) -> tuple[bool, bool]:
    """What the guard says of finite gradients, and when those of one process are not."""
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    fine = finite(model.parameters())
    if rank == 1:
        next(model.parameters()).grad.to_local().fill_(float("inf"))
    return fine, finite(model.parameters())


def main(folder: Path, rank: int, processes: int) -> None:
    torch.distributed.init_process_group("gloo")
    for case in CASES:
        model, result = train(case, rank, processes)
        torch.save(asdict(result), folder / f"{case}-rank{rank}.pt")
        if rank == 0:
            model.save_pretrained(folder / case, state_dict=result.weights)
        _, resumed = train(case, rank, processes, result)
        torch.save(resumed.weights, folder / f"{case}-resumed-rank{rank}.pt")
    torch.save(guards(rank, model), folder / f"guards-rank{rank}.pt")
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]))

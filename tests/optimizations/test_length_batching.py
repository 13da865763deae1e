"""length_batching: its batches, settings and what it refuses."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import TrainerCallback

from hf_efficient import ConfigError, EfficientTrainer, EfficientTrainingArguments, LengthBatching
from hf_efficient.optimizations.length_batching import LengthBatches
from tests.test_parity import build
from tests.tiny import arguments


class Lengths(TrainerCallback):
    """Batches as the model sees them: (examples, tokens)."""

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        self.shapes: list[tuple[int, int]] = []
        model.register_forward_pre_hook(self.note, with_kwargs=True)

    def note(self, module: Any, args: Any, kwargs: Any) -> None:
        if module.training:  # the trainer tries the loss out once, in eval mode
            self.shapes.append(tuple(kwargs["input_ids"].shape))


def shapes(folder: Path, settings: dict[str, Any] | None, **options: Any) -> tuple[Any, list[tuple[int, int]]]:
    seen = Lengths()
    trainer = build(
        EfficientTrainer,
        EfficientTrainingArguments,
        folder,
        given={"callbacks": [seen]},
        optimizations=None if settings is None else {"length_batching": settings},
        measure_seconds=0,
        **options,
    )
    trainer.train()
    return trainer, seen.shapes


def test_same_steps_less_padding(tmp_path: Path) -> None:
    stock, random = shapes(tmp_path / "stock", None)
    ours, batched = shapes(tmp_path / "ours", {})
    assert ours.state.global_step == stock.state.global_step == 12
    assert sum(examples for examples, _ in batched[:6]) == 48
    assert sum(examples * tokens for examples, tokens in batched) < sum(e * t for e, t in random)
    assert len({examples for examples, _ in batched}) > 1
    (told,) = [change for change in ours.optimizations[0].describe().items() if change[0] == "padding_share"]
    assert 0 <= told[1] < 0.2


def test_token_budget(tmp_path: Path) -> None:
    trainer, batched = shapes(tmp_path, {"tokens_per_batch": 40})
    within = [examples * tokens <= 40 * 1.1 for examples, tokens in batched]
    assert sum(within) >= 0.9 * len(within)
    assert trainer.state.global_step == len(batched)
    assert len(batched) == pytest.approx(2 * 48 * 5.5 / 40, rel=0.35)  # lengths from 3 to 8


def test_budget_below_the_longest(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"tokens_per_batch=4 is less than the longest example has \(8 tokens\)"):
        shapes(tmp_path, {"tokens_per_batch": 4})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"tokens_per_batch": 0}, "tokens_per_batch must be at least 1, got 0"),
        ({"window_batches": 0}, "window_batches must be at least 1, got 0"),
    ],
)
def test_settings_out_of_range(settings: dict[str, int], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        LengthBatching(**settings)


def test_another_sampling_strategy_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="drop train_sampling_strategy=group_by_length"):
        shapes(tmp_path, {}, train_sampling_strategy="group_by_length")


class Fake:
    """Two processes that each take two micro-batches a step."""

    world_size, gradient_accumulation_steps, seed, data_seed = 2, 2, 7, None

    def __init__(self, process_index: int):
        self.process_index = process_index


def test_processes_share_the_batches_out() -> None:
    lengths = torch.randint(3, 30, (203,), generator=torch.Generator().manual_seed(0))
    ranks = [LengthBatches(lengths, Fake(rank), steps=5, window_batches=8) for rank in (0, 1)]
    for rank in ranks:
        rank.set_epoch(3)
        assert len(rank) == len(list(rank)) == 10
    indices = sorted(index for rank in ranks for batch in rank for index in batch)
    assert indices == list(range(203))
    costs = [[len(batch) * int(lengths[batch].max()) for batch in rank] for rank in ranks]
    assert all(0.6 < left / right < 1.6 for left, right in zip(*costs, strict=True))


def test_in_a_small_set_others_meet_in_the_next_epoch() -> None:
    lengths = torch.randint(5, 100, (64 * 8,), generator=torch.Generator().manual_seed(0))
    sampler = LengthBatches(lengths, Fake(0), steps=16, window_batches=50)  # 64 batches
    met = [{(one, other) for batch in sampler.batches(epoch) for one in batch for other in batch} for epoch in (0, 1)]
    again = len(met[0] & met[1]) - len(lengths), len(met[0]) - len(lengths)
    assert again[0] / again[1] < 0.3


def test_epochs_differ(tmp_path: Path) -> None:
    _, batched = shapes(tmp_path, {"window_batches": 3})
    assert batched[:6] != batched[6:]


@pytest.mark.parametrize("stop", [7, 6])
def test_resumes_within_an_epoch_on_the_same_batches(tmp_path: Path, stop: int) -> None:
    class Stop(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            control.should_training_stop = control.should_training_stop or state.global_step >= stop

    _, whole = shapes(tmp_path / "whole", {"window_batches": 3})
    given = {"callbacks": [Stop()]}
    options = {"optimizations": {"length_batching": {"window_batches": 3}}, "measure_seconds": 0, "save_steps": stop}
    build(EfficientTrainer, EfficientTrainingArguments, tmp_path / "cut", given=given, **options).train()
    seen = Lengths()
    resumed = build(
        EfficientTrainer, EfficientTrainingArguments, tmp_path / "cut", given={"callbacks": [seen]}, **options
    )
    resumed.train(resume_from_checkpoint=str(tmp_path / "cut" / f"checkpoint-{stop}"))
    assert seen.shapes == whole[stop:]


def test_arguments_round_trip() -> None:
    args = arguments(EfficientTrainingArguments, "out", optimizations={"length_batching": {"tokens_per_batch": 512}})
    assert args.optimizations == {"length_batching": {"tokens_per_batch": 512}}

"""The contract that every optimization keeps, one table row each, on text, token and vision models.

off = bit-equal · trains · resumes to equal weights · reloads in one plain line · settings round-trip · has an effect or
warns · works on 2 processes (tests/test_distributed.py runs the same rows).
"""

import dataclasses
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import Trainer, TrainingArguments

from hf_efficient import EfficientTrainer, EfficientTrainingArguments, NoEffectWarning
from hf_efficient.plan import OPTIMIZATIONS, build_optimizations
from tests import effects
from tests.effects import train
from tests.test_parity import Stop, assert_same_tensors, build
from tests.tiny import LAYERS

MODELS = ("text", "token", "vision")


@dataclass(frozen=True)
class Row:
    """One optimization.

    Attributes:
        settings: on, with an effect.
        neutral: on, but as good as off; None where no such setting exists.
        effect: from (trainer before training, trainer after) whether the named quantity changed.
        arguments: training arguments it needs.
        idle_on: kinds of model on which it has no effect, and says so.
        accumulates: whether one process takes the same global batches as several in as many micro-batches.
        distributed: training arguments on top, where several processes are compared with one.
        tolerance: how far the weights of those may be apart.
    """

    settings: dict[str, Any]
    neutral: dict[str, Any] | None
    effect: Callable[[Any, Any], bool]
    arguments: dict[str, Any] = field(default_factory=dict)
    idle_on: tuple[str, ...] = ()
    accumulates: bool = False
    distributed: dict[str, Any] = field(default_factory=dict)
    tolerance: dict[str, float] = field(default_factory=lambda: {"rtol": 1e-5, "atol": 1e-6})


class StopMain(Stop):
    """Stops the main phase after seven steps."""

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if not args.output_dir.endswith("dense"):
            super().on_step_end(args, state, control, **kwargs)


ROWS = {
    "activation_checkpointing": Row({}, None, effects.less_memory),
    "adapters": Row({"rank": 2, "alpha": 8.0}, None, effects.thin_difference),
    "attention": Row({"implementation": "eager"}, {"implementation": "sdpa"}, effects.another_kernel),
    "channels_last": Row({}, None, effects.pixels_side_by_side, idle_on=("text", "token")),
    "compile": Row({"backend": "eager"}, None, effects.compiles),
    "data_loading": Row({"workers": 1, "pin_memory": False}, {"workers": 0, "pin_memory": False}, effects.a_worker),
    "data_pruning": Row(
        {"ending": 0.0},
        {"ratio": 0.0},
        effects.fewer_steps,
        distributed={"train_sampling_strategy": "random"},
    ),
    "deduplication": Row(
        {"near": 0.25, "ngram": 1},
        {"near": 1.0},
        effects.fewer_examples,
        idle_on=("token", "vision"),
        # 34 examples are left: stock fills the last batch up with others on two processes
        distributed={"dataloader_drop_last": True},
    ),
    "distillation": Row(
        {"alpha": 0.5, "hidden": 0.5, "attention": 0.5},
        {"alpha": 0.0, "hidden": 0.0},
        effects.closer_to_the_teacher,
        {"dense_epochs": 2},
        distributed={"dense_epochs": 6},  # plain gradient descent teaches more slowly
        tolerance={"rtol": 1e-3, "atol": 5e-4},  # the teacher's hidden states are kept in 16 bits
    ),
    "dropout_masks": Row({}, None, effects.other_masks, idle_on=("vision",)),
    "layer_freezing": Row({"every": 2, "threshold": 1.0, "start": 0.0}, {"layers": 0}, effects.settled_layers),
    "layerwise_learning_rates": Row({}, {"decay": 1.0, "head": 1.0}, effects.rates_by_layer),
    "length_batching": Row(
        {"window_batches": 4},
        None,
        effects.less_padding,
        distributed={"train_sampling_strategy": "random"},
        idle_on=("vision",),
        accumulates=True,
    ),
    "optimizer": Row(
        {"kind": "adamw_8bit", "min_size": 64},
        {"kind": "adamw_fused"},
        effects.small_optimizer_state,
        distributed={"learning_rate": 5e-3, "adam_epsilon": 1e-3},
        tolerance={"rtol": 1e-3, "atol": 1e-4},  # one code of 256 may round the other way
    ),
    "packing": Row({}, None, effects.padding_left_out, idle_on=("vision",)),
    "precision": Row(
        {"dtype": "bf16"}, {"dtype": "fp32"}, effects.computes_in_bf16, tolerance={"rtol": 0.05, "atol": 0.02}
    ),
    "progressive_resizing": Row({}, {"until": 0.0}, effects.smaller_images_first, idle_on=("text", "token")),
    "pruning": Row(
        {"method": "movement", "sparsity": 0.5, "end": 0.75, "every": 2},
        {"sparsity": 0.0},
        effects.half_zeros,
    ),
    "quantization": Row(
        {"scheme": "int4", "group_size": 8, "start": 0.25},
        {"start": 1.0},
        effects.few_weights,
        tolerance={"rtol": 1e-3, "atol": 0.02},  # a weight near the middle of two grid points may go to either
    ),
    "sparse_embeddings": Row({"min_rows": 8}, {"min_rows": 1000}, effects.unseen_rows_rest, idle_on=("vision",)),
    "structured_pruning": Row(
        # A choice among layers or importances is close to a tie on so small a model: rounding would decide it
        {"keep_layers": [0, LAYERS - 1], "importance": "obs", "keep_heads": 0.5, "keep_ffn": 0.5},
        {"keep_layers": LAYERS},
        effects.fewer_parameters,
        {"dense_epochs": 6},
        # least squares multiplies the rounding by which the dense phases of one and two processes differ
        tolerance={"rtol": 1e-3, "atol": 1e-3},
    ),
    "threads": Row({"count": 2}, {"count": 1}, effects.two_threads),
    "vocabulary_trimming": Row({"size": 32}, {"min_count": 0}, effects.fewer_tokens, idle_on=("vision",)),
    "weight_averaging": Row({"every": 1}, None, effects.averaged_weights),
    "weight_fusion": Row(
        {"merge": 0.25, "cluster": 4, "start": 0.25},
        {},
        effects.fused_weights,
        {"dense_epochs": 2},
        distributed={"dense_epochs": 6},  # plain gradient descent needs longer until there is something to merge
        tolerance={"rtol": 1e-3, "atol": 1e-3},  # as for structured_pruning
    ),
}


def trainer(
    folder: Path, name: str, kind: str, settings: dict[str, Any] | None = None, callbacks: Any = (), **options: Any
) -> Any:
    row = ROWS[name]
    settings = row.settings if settings is None else settings
    return build(
        EfficientTrainer,
        EfficientTrainingArguments,
        folder,
        kind=kind,
        given={"callbacks": list(callbacks)},
        optimizations={name: settings},
        measure_seconds=0,
        **{**row.arguments, **options},
    )


def cases(models: tuple[str, ...]) -> Any:
    """Every optimization on every kind of model on which it has an effect."""
    return pytest.mark.parametrize(
        ("name", "kind"), [(name, kind) for name, row in ROWS.items() for kind in models if kind not in row.idle_on]
    )


IDLE = [(name, kind) for name, row in ROWS.items() for kind in row.idle_on]


def test_every_optimization_has_a_row() -> None:
    assert set(ROWS) == set(OPTIMIZATIONS)


@cases(MODELS)
def test_trains_and_has_an_effect(tmp_path: Path, name: str, kind: str) -> None:
    before = build(Trainer, TrainingArguments, tmp_path / "before", kind=kind)
    after = train(trainer(tmp_path / "after", name, kind, callbacks=[effects.OutputTypes]))
    assert ROWS[name].effect(before, after)
    json.dumps(after.optimizations[0].describe())
    losses = [entry["loss"] for entry in after.state.log_history if "loss" in entry]
    assert losses[0] > losses[-1]


@cases(MODELS)
def test_neutral_setting_is_bit_equal(tmp_path: Path, name: str, kind: str) -> None:
    neutral = ROWS[name].neutral
    if neutral is None:
        pytest.skip("has no neutral setting")
    stock = train(build(Trainer, TrainingArguments, tmp_path / "stock", kind=kind))
    with pytest.warns(NoEffectWarning, match=name):
        ours = train(trainer(tmp_path / "ours", name, kind, neutral, dense_epochs=0))
    assert_same_tensors(dict(stock.model.state_dict()), dict(ours.model.state_dict()))


@pytest.mark.parametrize(("name", "kind"), IDLE)
def test_without_effect_it_warns_and_is_bit_equal(tmp_path: Path, name: str, kind: str) -> None:
    stock = train(build(Trainer, TrainingArguments, tmp_path / "stock", kind=kind))
    with pytest.warns(NoEffectWarning, match=name):
        ours = train(trainer(tmp_path / "ours", name, kind, dense_epochs=0))
    assert_same_tensors(dict(stock.model.state_dict()), dict(ours.model.state_dict()))


@cases(MODELS)
def test_resumes_to_equal_weights(tmp_path: Path, name: str, kind: str) -> None:
    undisturbed = train(trainer(tmp_path / "undisturbed", name, kind))
    train(trainer(tmp_path / "stopped", name, kind, callbacks=[StopMain]))
    resumed = trainer(tmp_path / "stopped", name, kind)
    train(resumed, resume_from_checkpoint=str(tmp_path / "stopped" / "checkpoint-4"))
    assert_same_tensors(dict(undisturbed.model.state_dict()), dict(resumed.model.state_dict()))


@cases(MODELS)
def test_reloads_in_one_plain_line(tmp_path: Path, name: str, kind: str) -> None:
    trained = train(trainer(tmp_path, name, kind))
    for folder in (trained.finished, tmp_path / "checkpoint-4"):
        loaded = type(trained.model).from_pretrained(folder)
        assert {key: value.shape for key, value in loaded.state_dict().items()} == {
            key: value.shape for key, value in trained.model.state_dict().items()
        }
    loaded = type(trained.model).from_pretrained(trained.finished).eval()
    batch = trained.collate(trained.examples(trained.eval_dataset, 4))
    with torch.no_grad():
        assert torch.equal(loaded(**batch).logits, trained.model.eval()(**batch).logits)


@pytest.mark.parametrize("name", ROWS)
def test_settings_round_trip(name: str) -> None:
    for settings in filter(None, (ROWS[name].settings, ROWS[name].neutral)):
        (built,) = build_optimizations({name: settings})
        values = dataclasses.asdict(built)
        assert settings.items() <= values.items()
        (again,) = build_optimizations(json.loads(json.dumps({name: values})))
        assert dataclasses.asdict(again) == values
        args = EfficientTrainingArguments("out", use_cpu=True, optimizations={name: settings})
        assert dataclasses.replace(args, seed=1).optimizations == {name: settings}


@pytest.mark.parametrize("name", ROWS)
def test_one_instance_serves_two_trainings(tmp_path: Path, name: str) -> None:
    kind = next(kind for kind in MODELS if kind not in ROWS[name].idle_on)
    (instance,) = build_optimizations({name: ROWS[name].settings})
    results = []
    for folder in ("first", "second"):
        options = {"dense_epochs": ROWS[name].arguments.get("dense_epochs", 0), "measure_seconds": 0}
        given = {"callbacks": [instance]}
        results.append(
            train(build(EfficientTrainer, EfficientTrainingArguments, tmp_path / folder, kind, given, **options))
        )
    assert_same_tensors(dict(results[0].model.state_dict()), dict(results[1].model.state_dict()))

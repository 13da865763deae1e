"""The contract that every optimization keeps, one table row each, on text, token and vision models.

off = bit-equal · trains · resumes to equal weights · reloads in one plain line · settings round-trip · has an effect or
warns · works on 2 processes (tests/test_distributed.py runs the same rows).
"""

import dataclasses
import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file
from transformers import Trainer, TrainerCallback, TrainingArguments, set_seed

from hf_efficient import EfficientTrainer, EfficientTrainingArguments, NoEffectWarning
from hf_efficient.functional.memory import TensorBytes
from hf_efficient.functional.optimizer_state import adamw_state_bytes, optimizer_state_bytes
from hf_efficient.plan import OPTIMIZATIONS, build_optimizations
from tests.test_parity import Stop, assert_same_tensors, build
from tests.tiny import LAYERS, VOCABULARY

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
        one_process: training arguments with which one process takes the same global batches as two.
        distributed: training arguments on top, where two processes are compared with one.
        tolerance: how far the weights of those may be apart.
    """

    settings: dict[str, Any]
    neutral: dict[str, Any] | None
    effect: Callable[[Any, Any], bool]
    arguments: dict[str, Any] = field(default_factory=dict)
    idle_on: tuple[str, ...] = ()
    one_process: dict[str, Any] = field(default_factory=dict)
    distributed: dict[str, Any] = field(default_factory=dict)
    tolerance: dict[str, float] = field(default_factory=lambda: {"rtol": 1e-5, "atol": 1e-6})


class OutputTypes(TrainerCallback):
    """Number types that the first attention projection puts out while the model trains."""

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        self.dtypes: set[torch.dtype] = set()
        layer = next(module for name, module in model.named_modules() if name.endswith(("query", "q_proj")))
        layer.register_forward_hook(self._note)

    def _note(self, module: torch.nn.Module, inputs: Any, output: torch.Tensor) -> None:
        if module.training:
            self.dtypes.add(output.dtype)


class StopMain(Stop):
    """Stops the main phase after seven steps."""

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if not args.output_dir.endswith("dense"):
            super().on_step_end(args, state, control, **kwargs)


def fewer_parameters(before: Any, after: Any) -> bool:
    saved = transformers.AutoConfig.from_pretrained(after.finished)
    kept = sum(parameter.numel() for parameter in after.model.parameters())
    return saved.num_hidden_layers == 2 and kept < sum(p.numel() for p in before.model.parameters())


def fewer_tokens(before: Any, after: Any) -> bool:
    saved = transformers.AutoConfig.from_pretrained(after.finished)
    rows = [one.model.get_input_embeddings().weight.shape[0] for one in (before, after)]
    return rows == [VOCABULARY, 32] and saved.vocab_size == 32


def half_zeros(before: Any, after: Any) -> bool:
    """Half of the weights of linear layers in the saved model's blocks are zero, none were before."""

    def shares(model: Any) -> list[float]:
        inside = [module for blocks in model.modules() if isinstance(blocks, torch.nn.ModuleList) for module in blocks]
        layers = [layer for block in inside for layer in block.modules() if isinstance(layer, torch.nn.Linear)]
        return [(layer.weight == 0).float().mean().item() for layer in layers]

    saved = type(after.model).from_pretrained(after.finished)
    return set(shares(before.model)) == {0.0} and set(shares(saved)) == {0.5}


def few_weights(before: Any, after: Any) -> bool:
    """Groups of eight weights of every linear layer hold at most 15 values each, those of a plain training do not."""

    def on_grid(model: Any) -> bool:
        layers = [module for module in model.modules() if isinstance(module, torch.nn.Linear)]
        groups = torch.cat([layer.weight.detach().reshape(-1, 8) for layer in layers])
        steps = groups / (groups.abs().amax(1, keepdim=True) / 7).clamp_min(1e-12)
        return bool((steps - steps.round()).abs().max() < 1e-3)

    return on_grid(after.model) and not on_grid(before.model)


def thin_difference(before: Any, after: Any) -> bool:
    """Weights of an attention projection moved by a matrix of rank 2, embeddings not at all."""
    name = next(name for name in before.model.state_dict() if name.endswith(("query.weight", "q_proj.weight")))
    table = next(name for name in before.model.state_dict() if "embeddings" in name)
    old, new = before.model.state_dict(), after.model.state_dict()
    moved = torch.linalg.matrix_rank(new[name] - old[name], rtol=1e-3)
    return moved.item() == 2 and torch.equal(new[table], old[table])


def fused_weights(before: Any, after: Any) -> bool:
    """A quarter of the features is gone; every matrix is stored in 4 bits, but for those too small to gain by it."""
    saved = load_file(after.finished / "model.safetensors").values()
    dense, packed = ([t.numel() for t in saved if (t.dtype == torch.uint8) == small] for small in (False, True))
    kept, all_weights = (sum(p.numel() for p in one.model.parameters()) for one in (after, before))
    features = sum(m.out_features for n, m in after.model.named_modules() if n.endswith(("intermediate.dense", "fc1")))
    return kept < all_weights and features == 72 and 2 * sum(packed) > 0.7 * kept and sum(dense) < 0.3 * kept


def computes_in_bf16(before: Any, after: Any) -> bool:
    kinds = [c.dtypes for c in after.callback_handler.callbacks if isinstance(c, OutputTypes)]
    return kinds == [{torch.bfloat16}]


def small_optimizer_state(before: Any, after: Any) -> bool:
    """Outside embeddings at most 0.4 of what 32-bit AdamW saves, inside exactly as much."""
    saved = torch.load(Path(after.args.output_dir) / "checkpoint-12" / "optimizer.pt", weights_only=True)
    ours = optimizer_state_bytes(after.optimizer.optimizer, after.model, saved)
    adamw = adamw_state_bytes(after.model)
    return ours["other"] <= 0.4 * adamw["other"] and ours["embeddings"] == adamw["embeddings"]


def compiles(before: Any, after: Any) -> bool:
    return after.optimizations[0].describe()["graphs"] > 0


def less_memory(before: Any, after: Any) -> bool:
    """At most 0.75 of the bytes alive at once in a forward and backward pass of the first batch."""
    peaks = []
    for one in (before, after):
        batch = one.data_collator([one.train_dataset[index] for index in range(8)])
        with TensorBytes() as counted:
            one.model.train()(**batch).loss.backward()
        peaks.append(counted.peak)
    return peaks[1] <= 0.75 * peaks[0]


def settled_layers(before: Any, after: Any) -> bool:
    """The first two of three layers, and what comes before them, moved in the first four of twelve steps alone."""

    def moved(old: dict[str, torch.Tensor], new: dict[str, torch.Tensor]) -> set[str]:
        names = {name for name, weight in old.items() if not torch.equal(weight, new[name])}
        return {match[0][-1] for match in (re.search(r"embeddings|layers?\.\d", name) for name in names) if match}

    folders = Path(after.args.output_dir) / "checkpoint-4", after.finished
    early, late = (type(after.model).from_pretrained(folder).state_dict() for folder in folders)
    return moved(before.model.state_dict(), early) == {*"s012"} and moved(early, late) == {"2"}


def fewer_steps(before: Any, after: Any) -> bool:
    """Of two passes of six steps the second has four: 18 of 48 examples are left out."""
    return after.state.global_step == 10 and after.optimizations[0].describe()["examples_spared"] == 18 / 96


def fewer_examples(before: Any, after: Any) -> bool:
    """Of 48 texts 14 have a quarter of their tokens in common with one of the same class: two steps fewer."""
    return after.state.global_step == 10 and after.optimizations[0].describe()["near_duplicates"] == 14


def less_padding(before: Any, after: Any) -> bool:
    masks = [batch["attention_mask"] for batch in before.get_train_dataloader()]
    random = 1 - sum(int(mask.sum()) for mask in masks) / sum(mask.numel() for mask in masks)
    return after.optimizations[0].describe()["padding_share"] < 0.6 * random


def closer_to_the_teacher(before: Any, after: Any) -> bool:
    """What the model says is nearer to its teacher, the dense model, than after the same training on labels alone."""
    dense = type(before.model).from_pretrained(Path(after.args.output_dir) / "dense" / "final").eval()
    before.model.load_state_dict(dense.state_dict())
    train(before)
    batch = before.data_collator([before.eval_dataset[index] for index in range(len(before.eval_dataset))])
    with torch.no_grad():
        taught, *said = (one.eval()(**batch).logits.log_softmax(-1) for one in (dense, before.model, after.model))
    counted = batch["labels"] != -100
    alone, ours = (
        torch.nn.functional.kl_div(one[counted], taught[counted], log_target=True, reduction="batchmean")
        for one in said
    )
    return bool(ours < 0.8 * alone)


ROWS = {
    "activation_checkpointing": Row({}, None, less_memory),
    "adapters": Row({"rank": 2, "alpha": 8.0}, None, thin_difference),
    "compile": Row({"backend": "eager"}, None, compiles),
    "data_pruning": Row(
        {"ending": 0.0},
        {"ratio": 0.0},
        fewer_steps,
        distributed={"train_sampling_strategy": "random"},
    ),
    "deduplication": Row(
        {"near": 0.25, "ngram": 1},
        {"near": 1.0},
        fewer_examples,
        idle_on=("token", "vision"),
        # 34 examples are left: stock fills the last batch up with others on two processes
        distributed={"dataloader_drop_last": True},
    ),
    "distillation": Row(
        {"alpha": 0.5, "hidden": 0.5, "attention": 0.5},
        {"alpha": 0.0, "hidden": 0.0},
        closer_to_the_teacher,
        {"dense_epochs": 2},
        distributed={"dense_epochs": 6},  # plain gradient descent teaches more slowly
        tolerance={"rtol": 1e-3, "atol": 5e-4},  # the teacher's hidden states are kept in 16 bits
    ),
    "layer_freezing": Row({"every": 2, "threshold": 1.0, "start": 0.0}, {"layers": 0}, settled_layers),
    "length_batching": Row(
        {"window_batches": 4},
        None,
        less_padding,
        distributed={"train_sampling_strategy": "random"},
        idle_on=("vision",),
        # the tiny classifier's loss ignores the number of items, so that stock adds micro-batches up: half the rate
        one_process={
            "gradient_accumulation_steps": 2,
            "per_device_train_batch_size": 4,
            "learning_rate": 0.15,
            "max_grad_norm": 2.0,
        },
    ),
    "optimizer": Row(
        {"kind": "adamw_8bit", "min_size": 64},
        {"kind": "adamw_fused"},
        small_optimizer_state,
        distributed={"learning_rate": 5e-3, "adam_epsilon": 1e-3},
        tolerance={"rtol": 1e-3, "atol": 1e-4},  # one code of 256 may round the other way
    ),
    "precision": Row({"dtype": "bf16"}, {"dtype": "fp32"}, computes_in_bf16, tolerance={"rtol": 0.05, "atol": 0.02}),
    "pruning": Row(
        {"method": "movement", "sparsity": 0.5, "end": 0.75, "every": 2},
        {"sparsity": 0.0},
        half_zeros,
    ),
    "quantization": Row(
        {"scheme": "int4", "group_size": 8, "start": 0.25},
        {"start": 1.0},
        few_weights,
        tolerance={"rtol": 1e-3, "atol": 0.02},  # a weight near the middle of two grid points may go to either
    ),
    "structured_pruning": Row(
        # A choice among layers or importances is close to a tie on so small a model: rounding would decide it
        {"keep_layers": [0, LAYERS - 1], "importance": "obs", "keep_heads": 0.5, "keep_ffn": 0.5},
        {"keep_layers": LAYERS},
        fewer_parameters,
        {"dense_epochs": 6},
        # least squares multiplies the rounding by which the dense phases of one and two processes differ
        tolerance={"rtol": 1e-3, "atol": 1e-3},
    ),
    "vocabulary_trimming": Row({"size": 32}, {"min_count": 0}, fewer_tokens, idle_on=("vision",)),
    "weight_fusion": Row(
        {"merge": 0.25, "cluster": 4, "start": 0.25},
        {},
        fused_weights,
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


def train(one: Any, **options: Any) -> Any:
    set_seed(0)
    one.train(**options)
    return one


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
    after = train(trainer(tmp_path / "after", name, kind, callbacks=[OutputTypes]))
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
    (instance,) = build_optimizations({name: ROWS[name].settings})
    results = []
    for folder in ("first", "second"):
        options = {"dense_epochs": ROWS[name].arguments.get("dense_epochs", 0), "measure_seconds": 0}
        given = {"callbacks": [instance]}
        results.append(
            train(build(EfficientTrainer, EfficientTrainingArguments, tmp_path / folder, given=given, **options))
        )
    assert_same_tensors(dict(results[0].model.state_dict()), dict(results[1].model.state_dict()))

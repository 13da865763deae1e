"""Zeros while a model trains and after it; what every optimization does is in `tests/test_contract.py`."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoModelForSequenceClassification, TrainerCallback, set_seed

from hf_efficient import ConfigError, EfficientTrainer, EfficientTrainingArguments, NoEffectWarning, Pruning
from hf_efficient.functional.fake_quant import fake_quantize_weight
from hf_efficient.functional.masks import cubic_ramp
from hf_efficient.optimization import Context
from hf_efficient.plan import build_optimizations
from tests.test_parity import Stop, assert_same_tensors, build

BLOCKS = 3 * (4 * 16 * 16 + 2 * 16 * 32)
"""Weights of linear layers in the blocks of the tiny models."""
WHOLE = {"start": 0.0, "end": 0.75, "every": 2}
"""Of 12 steps: masks after steps 2, 4, 6, 8 and 9."""


def trainer(folder: Path, kind: str = "text", given: Any = None, more: Any = None, **settings: Any) -> Any:
    optimizations = {"pruning": {**WHOLE, **settings}, **(more or {})}
    return build(
        EfficientTrainer,
        EfficientTrainingArguments,
        folder,
        kind,
        given,
        optimizations=optimizations,
        measure_seconds=0,
    )


def trained(folder: Path, kind: str = "text", given: Any = None, more: Any = None, **settings: Any) -> Any:
    made = trainer(folder, kind, given, more, **settings)
    set_seed(0)
    made.train()
    return made


def linears(model: Any) -> dict[str, torch.Tensor]:
    found = {path: module for path, module in model.named_modules() if isinstance(module, nn.Linear)}
    return {path: module.weight.detach() for path, module in found.items()}


def in_blocks(model: Any) -> dict[str, torch.Tensor]:
    return {path: weight for path, weight in linears(model).items() if ".layer." in path or ".layers." in path}


def zeros(model: Any) -> int:
    return sum(int((weight == 0).sum()) for weight in in_blocks(model).values())


class Zeros(TrainerCallback):
    """Where weights are zero after each optimizer step, seen before the next one."""

    def __init__(self) -> None:
        self.seen: list[torch.Tensor] = []

    def on_step_begin(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        self.seen.append(torch.cat([(weight == 0).flatten() for weight in in_blocks(model).values()]))

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.on_step_begin(args, state, control, **kwargs)


@pytest.mark.parametrize("method", ["magnitude", "movement"])
@pytest.mark.parametrize("optimizer", [torch.optim.AdamW, torch.optim.SGD])
def test_zeros_follow_the_ramp_whatever_momentum_does(method: str, optimizer: Any, tmp_path: Path) -> None:
    seen = Zeros()
    momentum = {"momentum": 0.9} if optimizer is torch.optim.SGD else {}
    built = (optimizer, {"lr": 5e-3, "weight_decay": 0.1, **momentum})
    made = build(
        EfficientTrainer,
        EfficientTrainingArguments,
        tmp_path,
        given={"callbacks": [seen], "optimizer_cls_and_kwargs": built},
        optimizations={"pruning": {**WHOLE, "method": method, "sparsity": 0.7}},
        measure_seconds=0,
    )
    made.train()
    masked_at = [0, 0, 2, 2, 4, 4, 6, 6, 8, 9, 9, 9, 9]
    for mask, step in zip(seen.seen, masked_at, strict=True):
        assert mask.float().mean().item() == pytest.approx(0.7 * cubic_ramp(step, 0, 9), abs=2e-3)
    for step in range(1, 13):
        if masked_at[step] == masked_at[step - 1]:
            assert torch.equal(seen.seen[step], seen.seen[step - 1])


@pytest.mark.parametrize(
    "settings",
    [{"method": "movement"}, {"scope": "global"}, {"pattern": "2:4"}, {"method": "movement", "pattern": "4:8"}],
    ids=json.dumps,
)
def test_stopped_in_mid_ramp_and_resumed_it_ends_bit_equal(settings: dict[str, Any], tmp_path: Path) -> None:
    settings = {**settings, "end": 1.0}
    undisturbed = trained(tmp_path / "undisturbed", **settings)
    trained(tmp_path / "stopped", given={"callbacks": [Stop]}, **settings)
    checkpoint = tmp_path / "stopped" / "checkpoint-4"
    assert 0 < zeros(AutoModelForSequenceClassification.from_pretrained(checkpoint)) < zeros(undisturbed.model)
    resumed = trainer(tmp_path / "stopped", **settings)
    set_seed(0)
    resumed.train(resume_from_checkpoint=str(checkpoint))
    assert_same_tensors(dict(undisturbed.model.state_dict()), dict(resumed.model.state_dict()))
    assert undisturbed.optimizations[0].describe() == resumed.optimizations[0].describe()


def test_movement_keeps_what_moves_away_from_zero(tmp_path: Path) -> None:
    """In this order of the smallest; the gradient is that of the optimizer step: clipped, of all micro-batches."""

    class Moved(TrainerCallback):
        total: Any = 0
        travel: Any = 0

        def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
            weight = model.bert.encoder.layer[0].output.dense.weight
            step = weight.detach() * weight.grad
            self.total, self.travel = self.total - step, self.travel + step.abs()

        def on_optimizer_step(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
            self.size = model.bert.encoder.layer[0].output.dense.weight.detach().abs().clone()

    moved = Moved()
    made = build(
        EfficientTrainer,
        EfficientTrainingArguments,
        tmp_path,
        given={"callbacks": [moved]},
        optimizations={"pruning": {"method": "movement", "start": 1.0, "end": 1.0, "sparsity": 0.5}},
        gradient_accumulation_steps=2,
        per_device_train_batch_size=4,
        max_grad_norm=0.1,
        measure_seconds=0,
    )
    made.train()
    gone = made.model.bert.encoder.layer[0].output.dense.weight == 0
    scores = moved.size * (1 + moved.total / moved.travel)
    assert scores[gone].max() <= scores[~gone].min()
    assert moved.size[gone].max() > moved.size[~gone].min()  # magnitude alone would have chosen others


@pytest.mark.parametrize("kind", ["text", "token", "vision", "seq2seq"])
def test_embeddings_and_heads_stay(kind: str, tmp_path: Path) -> None:
    made = trained(tmp_path / "blocks", kind, sparsity=0.6)
    pruned = {path for path, weight in linears(made.model).items() if (weight == 0).any()}
    assert pruned == set(in_blocks(made.model))
    head = trained(tmp_path / "head", kind, sparsity=0.6, head=True)
    tied = {"lm_head"} if kind == "seq2seq" else set()
    pruned = {path for path, weight in linears(head.model).items() if (weight == 0).any()}
    assert pruned == set(linears(head.model)) - tied
    for one in (made, head):
        tables = (module.weight for module in one.model.modules() if isinstance(module, nn.Embedding))
        assert all((table != 0).any(1).all() for table in list(tables)[1:])


@pytest.mark.parametrize("method", ["magnitude", "movement"])
def test_n_of_m(method: str, tmp_path: Path) -> None:
    made = trained(tmp_path, pattern="2:4", method=method)
    for weight in in_blocks(made.model).values():
        assert (weight.reshape(-1, 4) == 0).sum(1).eq(2).all()
    assert made.optimizations[0].describe()["asked"] == 0.5


def test_scopes(tmp_path: Path) -> None:
    layers, together = (
        trained(tmp_path / scope, scope=scope, sparsity=0.5).optimizations[0].describe()
        for scope in ("layer", "global")
    )
    assert list(layers["least_sparsity"].values()) == list(layers["greatest_sparsity"].values()) == [0.5]
    assert min(together["least_sparsity"].values()) < 0.48
    assert max(together["greatest_sparsity"].values()) > 0.52
    assert layers["zeros"] == together["zeros"] == BLOCKS // 2


def test_description_and_report_say_what_zeros_do_not(tmp_path: Path) -> None:
    settings = {"pruning": {**WHOLE, "sparsity": 0.5, "method": "movement"}}
    made = build(EfficientTrainer, EfficientTrainingArguments, tmp_path, optimizations=settings, measure_seconds=0.01)
    made.train()
    said = made.optimizations[0].describe()
    assert said == json.loads(json.dumps(said))
    everything = sum(parameter.numel() for parameter in made.model.parameters())
    assert (said["sparsity"], said["zeros"]) == (0.5, BLOCKS // 2)
    assert said["share_of_all_parameters"] == pytest.approx(BLOCKS / 2 / everything, abs=1e-4)
    for text in (made.report.to_markdown(), (made.finished / "README.md").read_text()):
        assert "a dense kernel is not faster by zeros" in text


def test_all_at_once_before_the_first_step(tmp_path: Path) -> None:
    seen = Zeros()
    trained(tmp_path, given={"callbacks": [seen]}, start=0, end=0, sparsity=0.25)
    assert all(torch.equal(mask, seen.seen[0]) for mask in seen.seen)
    assert seen.seen[0].float().mean() == 0.25


def test_the_best_model_is_one_with_all_zeros(tmp_path: Path) -> None:
    made = build(
        EfficientTrainer,
        EfficientTrainingArguments,
        tmp_path,
        optimizations={"pruning": {**WHOLE, "sparsity": 0.9}},
        load_best_model_at_end=True,
        eval_strategy="steps",
        eval_steps=1,
        save_steps=1,
        learning_rate=1e-9,  # the fewer zeros, the better
        measure_seconds=0,
    )
    made.train()
    assert made.state.best_global_step >= 9
    assert zeros(made.model) == pytest.approx(0.9 * BLOCKS, abs=20)


@pytest.mark.parametrize("method", ["magnitude", "movement"])
def test_with_all_others_in_one_training(method: str, tmp_path: Path) -> None:
    others = {
        "distillation": {},
        "length_batching": {},
        "precision": {"dtype": "bf16"},
        "quantization": {"target": "weights"},
        "structured_pruning": {"keep_layers": 2, "keep_ffn": 0.5, "importance": "obs", "calibration_batches": 4},
        "vocabulary_trimming": {"size": 40},
    }
    made = build(
        EfficientTrainer,
        EfficientTrainingArguments,
        tmp_path,
        optimizations={"pruning": {**WHOLE, "method": method, "sparsity": 0.6}, **others},
        dense_epochs=6,
        num_train_epochs=3,
        measure_seconds=0,
    )
    made.train()
    loaded = AutoModelForSequenceClassification.from_pretrained(made.finished).eval()
    blocks = in_blocks(loaded)
    assert {tuple(weight.shape) for weight in blocks.values()} == {(16, 16), (16, 16), (16, 16)}
    for weight in blocks.values():
        assert (weight == 0).float().mean() >= 0.6 - 1e-2
        assert torch.allclose(fake_quantize_weight(weight), weight, atol=1e-7)
    assert {one.name for one in made.optimizations if one.describe()} == {"pruning", *others}
    batch = made.collate(made.examples(made.eval_dataset, 4))
    with torch.no_grad():
        assert torch.equal(loaded(**batch).logits, made.model.eval()(**batch).logits)


def test_nothing_to_prune(tmp_path: Path) -> None:
    with pytest.warns(
        NoEffectWarning, match="pruning finds no linear layers that train, with inputs in multiples of 5"
    ):
        made = trained(tmp_path, pattern="3:5")
    assert zeros(made.model) == 0
    assert made.optimizations[0].describe() == {}


def test_frozen_layers_stay(tmp_path: Path) -> None:
    made = trainer(tmp_path, sparsity=0.5)
    made.model.bert.encoder.layer[0].requires_grad_(False)
    made.train()
    full = [path for path, weight in in_blocks(made.model).items() if (weight != 0).all()]
    assert len(full) == 6
    assert all(".layer.0." in path for path in full)


def test_refusals() -> None:
    with pytest.raises(ConfigError, match="PEFT adapters; merge them first"):
        Pruning().check(Context(args=None, model=SimpleNamespace(peft_config={})))  # type: ignore[arg-type]


@pytest.mark.parametrize(("given", "meant"), [(124, "2:4"), (248, "4:8"), ("1:4", "1:4")])
def test_yaml_without_quotes(given: Any, meant: str) -> None:
    (built,) = build_optimizations({"pruning": {"pattern": given}})
    assert built.pattern == meant


BAD = {
    "sparsity": ({"sparsity": 1.0}, r"sparsity must be in \[0, 1\), got 1"),
    "end": ({"start": 0.5, "end": 0.4}, "in this order, got 0.5 and 0.4"),
    "every": ({"every": 0}, "every must be at least 1"),
    "pattern": ({"pattern": "4:2"}, "N from 1 to M - 1, as \"2:4\", got '4:2'"),
    "words": ({"pattern": "two of four"}, "pattern must be unstructured or N:M"),
    "both": ({"pattern": "2:4", "sparsity": 0.5}, "pattern=2:4 says how many zeros there are"),
    "scope": ({"pattern": "2:4", "scope": "global"}, "drop sparsity and scope"),
    "movement": ({"method": "movement", "start": 0, "end": 0}, "known after some training only"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_settings(case: str) -> None:
    settings, message = BAD[case]
    with pytest.raises(ConfigError, match=message):
        Pruning(**settings)

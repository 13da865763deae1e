"""autotune: which ways are tried, and which is taken."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import Trainer, TrainingArguments

from hf_efficient import ConfigError, EfficientTrainer, EfficientTrainingArguments, autotune
from hf_efficient.autotune import Training, Tuner, Way, value_of_knowing
from hf_efficient.optimizations import compile as compiling
from hf_efficient.optimizations import precision
from hf_efficient.proposal import Proposal
from hf_efficient.trial import OUT_OF_MEMORY, Trial
from tests.tiny import image_model, text_model

SHARES = {"forward": 0.4, "backward": 0.5, "optimizer": 0.1, "waiting for data": 0.0, "rest": 0.0}
LENGTHS = torch.tensor([4, 64] * 32)


def listed(args: TrainingArguments) -> dict[str, Any]:
    return dict(getattr(args, "optimizations", None) or {})


@pytest.fixture
def tuner(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Tuner]:
    """``tuner(step, ...)``: with trials that take ``step(args)`` seconds a step, or the Trial that it returns."""

    def make(
        step: Callable[[TrainingArguments], Any],
        *,
        steps: int = 1000,
        decided: Any = None,
        model: Any = None,
        **given: Any,
    ) -> Tuner:
        def trial(build: Any, args: TrainingArguments, count: int) -> Trial:
            found = step(args)
            if isinstance(found, Trial):
                return found
            padding = 0.0 if "length_batching" in listed(args) else 0.4
            return Trial([found] * count, [1.0] * count, steps, SHARES, padding, setup_seconds=0.5)

        monkeypatch.setattr(autotune, "run_trial", trial)
        args = EfficientTrainingArguments(str(tmp_path), use_cpu=True, **given)
        return Tuner(lambda args: None, args, model or text_model(), LENGTHS, decided or {})  # type: ignore[arg-type, return-value]

    return make


def speedups(monkeypatch: pytest.MonkeyPatch, bf16: float) -> None:
    """A machine whose bf16 products are so many times as fast as those in fp32."""
    monkeypatch.setattr(precision, "matmul_speedup", lambda dtype, **_: bf16)


def by_precision(bf16: float) -> Callable[[TrainingArguments], float]:
    return lambda args: 0.1 / bf16 if "precision" in listed(args) else 0.1


def test_bf16_where_it_is_faster(tuner: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    speedups(monkeypatch, 3.0)
    tuning = tuner(by_precision(2.0)).tune()
    assert tuning.optimizations == {"precision": {"dtype": "bf16"}}
    assert tuning.before_s == pytest.approx(100)
    assert tuning.expected_s == pytest.approx(50)
    assert tuning.expected_error_s == pytest.approx(2 * 0.1 * 50), "steps are equal: the machine may change"


@pytest.mark.parametrize("products", [3.0, 0.5], ids=["though its products are faster", "as its products are"])
def test_fp32_where_bf16_is_slower(tuner: Any, monkeypatch: pytest.MonkeyPatch, products: float) -> None:
    speedups(monkeypatch, products)
    tuning = tuner(by_precision(0.6)).tune()
    assert tuning.optimizations == {}
    assert tuning.args == {}
    (row, *_) = [row for row in tuning.rows if row.way.startswith("precision")]
    assert row.verdict == ("tried" if products > 1 else "skipped")


def test_ways_are_combined(tuner: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    speedups(monkeypatch, 3.0)

    def step(args: TrainingArguments) -> float:
        return 0.1 * (0.5 if "precision" in listed(args) else 1) * (0.6 if "length_batching" in listed(args) else 1)

    tuning = tuner(step).tune()
    assert tuning.optimizations == {"length_batching": {}, "precision": {"dtype": "bf16"}}
    assert tuning.expected_s == pytest.approx(30)
    assert [row.way for row in tuning.rows if row.verdict == "taken"] == ["precision (dtype=bf16)", "length_batching"]


class TestTogether:
    """A machine whose bf16 pays with another attention alone."""

    TOGETHER = "precision (dtype=bf16) with attention (implementation=eager)"

    @staticmethod
    def step(args: TrainingArguments) -> float:
        return 0.05 if {"precision", "attention"} <= set(listed(args)) else 0.1

    def test_what_pays_only_together_is_tried_together(self, tuner: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        speedups(monkeypatch, 3.0)
        tuning = tuner(self.step, model=image_model()).tune()
        assert tuning.optimizations == {"precision": {"dtype": "bf16"}, "attention": {"implementation": "eager"}}
        assert [row.way for row in tuning.rows if row.verdict == "taken"] == [self.TOGETHER]
        assert not [row.way for row in tuning.rows if row.way.startswith("attention")], "it is decided"

    def test_not_where_the_user_has_decided_about_one(self, tuner: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        speedups(monkeypatch, 3.0)
        tuning = tuner(self.step, model=image_model(), decided={"attention": False}).tune()
        assert tuning.optimizations == {}
        assert self.TOGETHER not in [row.way for row in tuning.rows]

    def test_not_where_dropout_keeps_the_fused_kernel_away(self, tuner: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        speedups(monkeypatch, 3.0)
        model = image_model()
        model.config.attention_probs_dropout_prob = 0.1
        assert self.TOGETHER not in [row.way for row in tuner(self.step, model=model).tune().rows]


@pytest.mark.parametrize("compiled", [0.4, 0.9])
def test_what_conflicts_with_the_way_so_far_is_tried_in_its_place(
    tuner: Any, monkeypatch: pytest.MonkeyPatch, compiled: float
) -> None:
    speedups(monkeypatch, 0.5)
    monkeypatch.setattr(compiling, "compiler_missing", lambda device: "")

    def step(args: TrainingArguments) -> float:
        names = set(listed(args))
        assert not {"packing", "compile"} <= names
        return 0.1 * (0.6 if "packing" in names else 1) * (compiled if "compile" in names else 1)

    tuning = tuner(step, steps=10**5).tune()
    assert set(tuning.optimizations) == {"compile" if compiled < 0.6 else "packing"}
    (row, *_) = [row for row in tuning.rows if row.way.startswith("compile")]
    assert row.way.endswith("in place of packing")
    assert "packing" not in row.settings["optimizations"]


def test_what_the_user_has_decided_is_left_alone(tuner: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    speedups(monkeypatch, 3.0)
    seen = []

    def step(args: TrainingArguments) -> float:
        seen.append(listed(args))
        return by_precision(2.0)(args)

    given = {"precision": {"dtype": "fp32"}, "structured_pruning": {"keep_layers": 1}}
    tuning = tuner(step, decided=given, optimizations=given, train_sampling_strategy="group_by_length").tune()
    assert "precision" not in tuning.optimizations
    assert "length_batching" not in tuning.optimizations
    assert all(one["precision"] == {"dtype": "fp32"} for one in seen)
    assert not any("structured_pruning" in one for one in seen)  # its work before the first step is no part of a trial


@pytest.mark.parametrize(
    ("listed", "proposed"), [({}, True), ({"quantization": False}, True), ({"quantization": {}}, False)]
)
def test_what_conflicts_with_the_users_own_is_not_proposed(tuner: Any, listed: dict[str, Any], proposed: bool) -> None:
    """Also where trials leave the user's own out."""
    tuning = tuner(lambda args: 0.1, decided=listed, optimizations=listed, model=text_model(vocab_size=4096)).tune()
    assert ("sparse_embeddings" in [row.way for row in tuning.rows]) == proposed


@pytest.mark.parametrize(("steps", "expected"), [(10_000, [4, 8, 16]), (1000, [4])])
def test_a_gain_within_the_noise_is_not_taken(
    tuner: Any, monkeypatch: pytest.MonkeyPatch, steps: int, expected: list[int]
) -> None:
    speedups(monkeypatch, 3.0)
    tuning = tuner(by_precision(1.02), steps=steps).tune()
    assert tuning.optimizations == {}
    rounds = [row.found["steps_timed"] for row in tuning.rows if row.way.startswith("precision")]
    assert rounds == expected  # of 100 s, to know it for certain saves a second, and takes two


class TestValueOfKnowing:
    uneven = Trial([0.1, 0.2, 0.3, 0.4], [1.0] * 4, 1000)

    def test_of_two_that_seem_equal(self) -> None:
        error = ((self.uneven.error_of_seconds / 2) ** 2 + (0.03 * 250) ** 2) ** 0.5 * 2**0.5
        assert value_of_knowing(0.0, self.uneven, self.uneven) == pytest.approx(error / (2 * torch.pi) ** 0.5)

    def test_is_what_taking_the_one_that_seems_faster_loses(self) -> None:
        drift = 0.03 * 100 * 2**0.5
        even = Trial([0.1] * 4, [1.0] * 4, 1000)
        truth = 2.0 + drift * torch.randn(1_000_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        assert value_of_knowing(2.0, even, even) == pytest.approx(truth.neg().clamp(min=0).mean().item(), rel=0.01)

    def test_nothing_where_nothing_varies(self) -> None:
        assert value_of_knowing(0.0, Trial([0.0] * 4, [1.0] * 4, 1000)) == 0


def test_what_cannot_pay_is_skipped_with_the_reason(tuner: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    speedups(monkeypatch, 3.0)
    monkeypatch.setattr(compiling, "compiler_missing", lambda device: "")
    skipped = {
        row.way: row.reason for row in tuner(by_precision(2.0), steps=100).tune().rows if row.verdict == "skipped"
    }
    assert skipped["compile (dynamic=True)"].startswith(
        "it could save 1.4 s at most, and trying it takes 80.7 s, setting it up twice"
    )
    assert any(row.verdict == "tried" and row.way.startswith("compile") for row in tuner(lambda _: 1.0).tune().rows)


def test_a_loss_that_is_off_is_rejected(tuner: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    speedups(monkeypatch, 3.0)
    for wrong in (2.0, float("nan")):

        def step(args: TrainingArguments, wrong: float = wrong) -> Any:
            return Trial([0.01] * 4, [wrong] * 4, 1000, SHARES) if "precision" in listed(args) else 0.1

        tuning = tuner(step).tune()
        assert tuning.optimizations == {}
        (row,) = [row for row in tuning.rows if row.way.startswith("precision")]
        assert row.verdict == "rejected"
        assert f"its loss is {wrong:.4g}, where it was 1" in row.reason


def test_a_refused_combination_is_a_row(tuner: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    speedups(monkeypatch, 3.0)
    tuning = tuner(lambda args: Trial(error="cannot") if "precision" in listed(args) else 0.1).tune()
    assert [(row.verdict, row.reason) for row in tuning.rows if row.way.startswith("precision")] == [
        ("rejected", "cannot")
    ]


def test_out_of_memory_is_mended(tuner: Any) -> None:
    def step(args: TrainingArguments) -> Any:
        if args.per_device_train_batch_size > 4:
            return Trial(error=OUT_OF_MEMORY)
        return 0.1 * args.gradient_accumulation_steps

    tuning = tuner(step, per_device_train_batch_size=16).tune()
    assert tuning.args == {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 4}
    assert tuning.before_s is None
    assert (
        any(row.way == "activation_checkpointing" for row in tuner(step, per_device_train_batch_size=5).rows) is False
    )


def test_memory_that_nothing_mends_is_an_error(tuner: Any) -> None:
    with pytest.raises(ConfigError, match=r"fails .out of memory.*smaller per_device_train_batch_size"):
        tuner(lambda args: Trial(error=OUT_OF_MEMORY)).tune()


def test_what_is_refused_as_given_is_an_error(tuner: Any) -> None:
    with pytest.raises(ConfigError, match="not like this"):
        tuner(lambda args: Trial(error="not like this")).tune()


def test_halving_drops_the_slower_half(tuner: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = {"a": 0.091, "b": 0.09, "c": 0.2, "": 0.1}

    def step(args: TrainingArguments) -> float:
        return seconds[listed(args).get("threads", {}).get("count", "")]

    one = tuner(step, steps=10_000)
    one.best = one._try("as given", Way(), 4)
    one._choose("threads", [Proposal({"count": name}) for name in "abc"])
    timed = {
        name: [row.found["steps_timed"] for row in one.rows if row.way == f"threads (count={name})"] for name in "abc"
    }
    assert timed == {"a": [4, 8], "b": [4, 8, 16], "c": [4]} or timed == {"a": [4, 8, 16], "b": [4, 8, 16], "c": [4]}
    assert one.way.optimizations == {"threads": {"count": "b"}}


@pytest.mark.parametrize("changed", ["lengths", "model", "batch", "listed", "trainer"])
def test_circumstances_tell_apart(changed: str, tmp_path: Path) -> None:
    args = functools.partial(EfficientTrainingArguments, str(tmp_path), use_cpu=True)
    usual = {
        "trainer_class": Trainer,
        "args": args(),
        "model": text_model(),
        "examples": 64,
        "lengths": LENGTHS,
        "listed": {},
    }
    other = {
        "lengths": {"lengths": LENGTHS + 1},
        "model": {"model": torch.nn.Linear(2, 2)},
        "batch": {"args": args(per_device_train_batch_size=2)},
        "listed": {"listed": {"compile": False}},
        "trainer": {"trainer_class": EfficientTrainer},
    }[changed]
    assert Training(**usual).circumstances() == Training(**usual).circumstances()
    assert Training(**usual).circumstances() != Training(**{**usual, **other}).circumstances()

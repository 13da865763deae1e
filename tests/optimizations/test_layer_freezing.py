"""When layers freeze and what that spares; what every optimization does is in `tests/test_contract.py`."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import TrainerCallback, set_seed

from hf_efficient import ConfigError, EfficientTrainer, EfficientTrainingArguments, LayerFreezing, NoEffectWarning
from hf_efficient.functional.memory import TensorBytes
from tests.test_parity import build
from tests.tiny import pad, text_examples, text_model

SOON = {"every": 2, "threshold": 1.0, "start": 0.0}


class Seen(TrainerCallback):
    """What trains after each step, and what a step has gradients of."""

    def __init__(self) -> None:
        self.training: list[set[str]] = []
        self.gradients: list[set[str]] = []

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        named = kwargs["model"].named_parameters()
        self.gradients.append({name for name, parameter in named if parameter.grad is not None})

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        named = kwargs["model"].named_parameters()
        self.training.append({name for name, parameter in named if parameter.requires_grad})


def trained(folder: Path, given: Any = None, arguments: Any = None, **settings: Any) -> tuple[Any, Seen]:
    seen = Seen()
    options = {"optimizations": {"layer_freezing": {**SOON, **settings}}, "measure_seconds": 0, **(arguments or {})}
    given = {"callbacks": [seen], **(given or {})}
    made = build(EfficientTrainer, EfficientTrainingArguments, folder, given=given, **options)
    set_seed(0)
    made.train()
    return made, seen


def test_layers_freeze_one_after_the_other(tmp_path: Path) -> None:
    made, seen = trained(tmp_path)
    assert made.optimizations[0].describe()["after_steps"] == [2, 4]
    everything = {name for name, _ in made.model.named_parameters()}
    first = {name for name in everything if "embeddings" in name or "layer.0." in name}
    second = {name for name in everything if "layer.1." in name}
    assert seen.gradients[1] == everything
    assert seen.gradients[2] == seen.gradients[3] == everything - first
    assert seen.gradients[4] == seen.gradients[-1] == everything - first - second
    assert all(parameter.requires_grad for parameter in made.model.parameters())
    told = made.optimizations[0].describe()
    assert (told["frozen_layers"], told["of_layers"]) == (2, 3)
    assert told["layer_steps_spared"] == pytest.approx((10 + 8) / (3 * 12), abs=1e-4)
    frozen = sum(parameter.numel() for name, parameter in made.model.named_parameters() if name in first | second)
    assert told["frozen_share_of_parameters"] == pytest.approx(frozen / made.model.num_parameters(), abs=1e-4)


def test_a_layer_that_still_moves_holds_up_those_above(tmp_path: Path) -> None:
    """Only the first layer goes on as fast as at first: its weights are pushed one way at every step."""

    class Push(TrainerCallback):
        def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            rate = kwargs["optimizer"].param_groups[0]["lr"]
            with torch.no_grad():
                for parameter in kwargs["model"].bert.encoder.layer[0].parameters():
                    parameter.add_(10 * rate * state.global_step)

    with pytest.warns(NoEffectWarning, match=r"no layer slowed down to threshold=0.9 .*raise threshold"):
        made, _ = trained(tmp_path, {"callbacks": [Push()]}, threshold=0.9)
    assert made.optimizations[0].describe()["frozen_layers"] == 0


def test_the_schedule_does_not_look_like_settling(tmp_path: Path) -> None:
    """Steps of one size and direction, by a learning rate that falls: no layer slows down."""

    class March(TrainerCallback):
        def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            for parameter in kwargs["model"].parameters():
                parameter.grad = torch.ones_like(parameter)

    arguments = {"optim": "sgd", "learning_rate": 0.1, "lr_scheduler_type": "linear", "max_grad_norm": 0.0}
    with pytest.warns(NoEffectWarning, match="no layer slowed down"):
        trained(tmp_path, {"callbacks": [March()]}, arguments, threshold=0.99)


@pytest.mark.parametrize("layers", [1, 3])
def test_how_many_may_freeze(tmp_path: Path, layers: int) -> None:
    made, seen = trained(tmp_path, layers=layers)
    assert made.optimizations[0].describe()["frozen_layers"] == layers
    left = {name.partition(".layer.")[2][:1] for name in seen.training[-1] if ".layer." in name}
    assert left == {str(index) for index in range(layers, 3)}


def test_none_before_the_start(tmp_path: Path) -> None:
    made, _ = trained(tmp_path, start=0.5)
    assert made.optimizations[0].describe()["after_steps"] == [6, 8]


def test_frozen_layers_keep_no_activations() -> None:
    model = text_model(num_hidden_layers=6)
    batch = pad(text_examples(8).examples)
    peaks = []
    for frozen in (0, 5):
        for parameter in [*model.bert.embeddings.parameters(), *model.bert.encoder.layer[:frozen].parameters()]:
            parameter.requires_grad_(frozen == 0)
        with TensorBytes() as counted:
            model.train()(**batch).loss.backward()
        peaks.append(counted.peak)
    assert peaks[1] < 0.6 * peaks[0]


def test_with_a_cache_the_result_is_the_same(tmp_path: Path) -> None:
    """And most of the frozen layers' outputs come from it; nothing of it stays."""
    dropout = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    arguments = {"num_train_epochs": 8, "save_strategy": "no"}
    results = {}
    for cache in (True, False):
        made, _ = trained(tmp_path / str(cache), {"model": text_model(**dropout)}, arguments, layers=1, cache=cache)
        results[cache] = made.model.state_dict()
        share = made.optimizations[0].describe().get("share_from_cache", 0.0)
        assert (share > 0.6) == cache
        assert not list((tmp_path / str(cache)).rglob("_frozen_layers"))
    torch.testing.assert_close(results[True], results[False], rtol=1e-4, atol=1e-5)


def test_what_another_training_left_is_not_read(tmp_path: Path) -> None:
    """A training that was killed leaves its cache behind, of other weights."""
    (tmp_path / "_frozen_layers").mkdir(parents=True)
    (tmp_path / "_frozen_layers" / "old.safetensors").write_bytes(b"not read")
    trained(tmp_path, cache=True)


def test_what_stood_still_before_stays_so(tmp_path: Path) -> None:
    model = text_model()
    model.bert.embeddings.requires_grad_(False)
    made, _ = trained(tmp_path, {"model": model})
    assert not any(parameter.requires_grad for parameter in made.model.bert.embeddings.parameters())


def test_a_training_that_broke_off_freezes_nothing_for_good(tmp_path: Path) -> None:
    class Break(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == 5:
                raise KeyboardInterrupt

    model = text_model()
    options = {"optimizations": {"layer_freezing": SOON}, "measure_seconds": 0}
    given = {"model": model, "callbacks": [Break()]}
    made = build(EfficientTrainer, EfficientTrainingArguments, tmp_path, given=given, **options)
    with pytest.raises(KeyboardInterrupt):
        made.train()
    made.optimizations[0].reset()
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_refusals(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="layers=4, but the model has 3 layers"):
        trained(tmp_path, layers=4)
    with pytest.raises(ConfigError, match="PEFT adapters; merge them first"):
        LayerFreezing().check(SimpleNamespace(model=SimpleNamespace(peft_config={})))  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="supported families"):
        LayerFreezing().check(SimpleNamespace(model=torch.nn.Linear(2, 2)))  # type: ignore[arg-type]


BAD = {
    "layers": ({"layers": -1}, "layers must be at least 0, got -1"),
    "threshold": ({"threshold": 1.5}, "threshold must be from 0 to 1, got 1.5"),
    "start": ({"start": -0.1}, "start must be from 0 to 1, got -0.1"),
    "every": ({"every": 0}, "every must be at least 1, got 0"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_settings(case: str) -> None:
    settings, words = BAD[case]
    with pytest.raises(ConfigError, match=words):
        LayerFreezing(**settings)  # type: ignore[arg-type]

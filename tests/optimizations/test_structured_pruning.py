"""Which layers go, and what is refused."""

import contextlib
import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForSequenceClassification, Trainer, TrainingArguments

from hf_efficient import ConfigError, EfficientTrainer, EfficientTrainingArguments, NoEffectWarning, timing
from hf_efficient.cutting import costs, target
from hf_efficient.cutting.observation import divergence, logits_on
from hf_efficient.optimization import Served
from hf_efficient.optimizations import structured_pruning
from hf_efficient.optimizations.structured_pruning import StructuredPruning
from hf_efficient.plan import build_optimizations
from tests.clock import Clock, clock_of
from tests.exports import widened
from tests.kill import assert_survives_a_kill
from tests.test_parity import assert_same_tensors, build, train
from tests.tiny import KINDS


def trainer(folder: Path, kind: str = "text", given: Any = None, dense_epochs: float = 6, **settings: Any) -> Any:
    options = {"optimizations": {"structured_pruning": settings}, "dense_epochs": dense_epochs, "measure_seconds": 0}
    return build(EfficientTrainer, EfficientTrainingArguments, folder, kind, given, **options)


def test_drops_the_layer_that_is_missed_least(tmp_path: Path) -> None:
    one = trainer(tmp_path, keep_layers=2, calibration_batches=8, repair=False)
    train(one)
    chosen = one.optimizations[0].describe()["kept_layers"]["encoder.layer"]
    dense = AutoModelForSequenceClassification.from_pretrained(tmp_path / "dense" / "final").eval()
    judging = one.context().calibration(8)[-2:]
    reference = logits_on(dense, judging)
    layers, errors = dense.bert.encoder.layer, {}
    for kept in itertools.combinations(range(3), 2):
        dense.bert.encoder.layer = torch.nn.ModuleList(layers[index] for index in kept)
        errors[kept] = divergence(dense, judging, reference)
    assert tuple(chosen) == min(errors, key=lambda kept: errors[kept])


def test_description_is_plain(tmp_path: Path) -> None:
    one = trainer(tmp_path, keep_layers=1, keep_ffn=0.25, calibration_batches=4)
    train(one)
    said = one.optimizations[0].describe()
    assert said["widths"] == {"encoder.layer": {"ffn": [8]}}
    assert len(said["kept_layers"]["encoder.layer"]) == 1
    assert said["divergence"] >= 0
    assert {each["importance"] for each in said["tried"]} == {"obs", "taylor", "fisher", "activation"}
    assert said == json.loads(json.dumps(said))


@pytest.mark.parametrize("kind", ["text", "token", "vision", "seq2seq"])
def test_cut_model_is_an_ordinary_one(tmp_path: Path, kind: str) -> None:
    """Other widths in each layer: it reloads equal in one line, is saved again, halved, trained on by stock."""
    wished = 0.85 * sum(parameter.numel() for parameter in KINDS[kind].model().parameters())
    one = trainer(tmp_path, kind, target_parameters=int(wished), calibration_batches=4, importance="obs")
    train(one)
    kept = sum(parameter.numel() for parameter in one.model.parameters())
    assert 0.4 * wished < kept <= 1.01 * wished  # whole layers may be the best to go
    loaded = type(one.model).from_pretrained(one.finished)
    batch = one.collate(one.examples(one.eval_dataset, 4))
    with torch.no_grad():
        assert torch.equal(loaded.eval()(**batch).logits, one.model.eval()(**batch).logits)
    loaded.save_pretrained(tmp_path / "again")
    again = type(one.model).from_pretrained(tmp_path / "again")
    assert_same_tensors(dict(again.state_dict()), dict(loaded.state_dict()))
    stock = build(Trainer, TrainingArguments, tmp_path / "stock", kind, {"model": again})
    train(stock)
    assert stock.model.half().dtype == torch.float16


def test_uniform_cut_needs_no_import(tmp_path: Path) -> None:
    one = trainer(tmp_path, target_size_mb=0.026, uniform=True, calibration_batches=4, importance="obs")
    train(one)
    assert "quantization_config" not in (one.finished / "config.json").read_text()
    size = sum(parameter.numel() * 4 for parameter in one.model.parameters()) / 1e6
    assert 0.02 < size <= 0.0261


class Paced:
    """A runtime that takes a time of its own for each parameter, and a little for each batch."""

    name, version, device = "Paced", "1", "cpu"

    def __init__(self, model: Any, clock: Clock):
        layers = sum(parameter.numel() for parameter in model.base_model.encoder.parameters())
        self.seconds = 0.0005 + 1e-6 * layers
        self.clock = clock

    def set_threads(self, threads: int) -> None:
        pass

    def predict(self, batch: Any) -> None:
        self.clock.sleep(self.seconds)


@pytest.fixture
def clock() -> Iterator[Clock]:
    yield from clock_of(timing)


def served_by(clock: Clock) -> Any:
    """`Context.serving` whose runtime is `Paced`."""

    def served(model: Any, kind: str) -> Any:
        assert kind == "onnx"
        return contextlib.nullcontext(Served(Paced(model, clock), list(range(64)), list))

    return served


@pytest.mark.parametrize("wish", [{"target_speedup": 2}, {"target_latency_ms": 3.0, "batch_size": 8}])
def test_meets_a_target_of_time(
    tmp_path: Path, wish: dict[str, Any], clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = trainer(tmp_path, dense_epochs=0, runtime="onnx", calibration_batches=4, importance="obs", **wish)
    model, context = widened(KINDS["text"].model()), one.context()
    context.serving = served_by(clock)
    monkeypatch.setattr(structured_pruning, "require_trained", lambda *args: None)
    uncut = 1000 * Paced(model, clock).seconds
    made = one.optimizations[0].prepare_model(model, context)
    milliseconds = 1000 * Paced(made, clock).seconds
    wanted = uncut / 2 if "target_speedup" in wish else 3.0
    assert milliseconds == pytest.approx(wanted, rel=0.1)
    measured = one.optimizations[0].describe()["measured"]
    assert measured["cut_ms"] == pytest.approx(milliseconds, rel=0.2)


def test_a_table_that_was_disturbed_is_no_verdict(
    tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Something else ran while the table was measured: by it, nothing is fast enough."""

    def disturbed(*given: Any) -> costs.Costs:
        table = costs.time_costs(*given)
        slow = {
            path: {kind: {n: 9 * ms for n, ms in row.items()} for kind, row in kinds.items()}
            for path, kinds in table.units.items()
        }
        return costs.Costs(table.unit, 9 * table.rest, {path: 9 * ms for path, ms in table.layers.items()}, slow)

    monkeypatch.setattr(target, "time_costs", disturbed)
    test_meets_a_target_of_time(tmp_path, {"target_speedup": 2}, clock, monkeypatch)


def test_a_target_beyond_reach_names_the_best(tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    one = trainer(tmp_path, dense_epochs=0, runtime="onnx", calibration_batches=4, target_speedup=1000)
    monkeypatch.setattr(structured_pruning, "require_trained", lambda *args: None)
    monkeypatch.setattr(costs, "LEAST_SECONDS", 0.01)
    context = one.context()
    context.serving = served_by(clock)
    model = widened(KINDS["text"].model())
    with pytest.raises(
        ConfigError, match=r"target_speedup=1000 cannot be met: the smallest shape reaches [0-9.]+ times"
    ):
        one.optimizations[0].prepare_model(model, context)
    assert model.config.num_hidden_layers == 3
    with pytest.raises(ConfigError, match="the smallest shape has"):
        trainer(tmp_path, target_parameters=10, calibration_batches=4).train()


def test_kill_between_measuring_and_cutting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings: dict[str, Any] = {"keep_ffn": 0.5, "calibration_batches": 4}
    assert_survives_a_kill(trainer, StructuredPruning, structured_pruning, tmp_path, monkeypatch, **settings)


def test_named_layers_need_no_training(tmp_path: Path) -> None:
    one = trainer(tmp_path, dense_epochs=0, keep_layers=[0, 2])
    before = {name: value.clone() for name, value in one.model.state_dict().items()}
    one.args.learning_rate = 0.0
    train(one)
    after = one.model.state_dict()
    assert one.model.config.num_hidden_layers == 2
    key = "attention.self.query.weight"
    assert torch.equal(after[f"bert.encoder.layer.1.{key}"], before[f"bert.encoder.layer.2.{key}"])


def test_both_stacks_of_an_encoder_decoder(tmp_path: Path) -> None:
    one = trainer(tmp_path, "seq2seq", keep_layers=2, calibration_batches=4)
    train(one)
    assert (one.model.config.encoder_layers, one.model.config.decoder_layers) == (2, 2)
    type(one.model).from_pretrained(one.finished)


@pytest.mark.parametrize("kind", ["text", "token", "vision"])
def test_untrained_model_is_refused(tmp_path: Path, kind: str) -> None:
    model = KINDS[kind].model()
    torch.nn.init.zeros_(model.classifier.weight)  # always the same class
    with pytest.raises(ConfigError, match="dense_epochs"):
        trainer(tmp_path, kind, {"model": model}, dense_epochs=0, keep_layers=2).train()
    assert model.config.num_hidden_layers == 3


@pytest.mark.parametrize("settings", [{}, {"keep_layers": None}])
def test_default_changes_nothing(tmp_path: Path, settings: dict[str, Any]) -> None:
    one = trainer(tmp_path, dense_epochs=0, **settings)
    with pytest.warns(NoEffectWarning, match="cuts nothing"):
        train(one)
    assert one.model.config.num_hidden_layers == 3


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"keep_layers": 0}, "at least 1"),
        ({"keep_layers": [2, 1]}, "ascending"),
        ({"keep_layers": []}, "ascending"),
        ({"keep_layers": [-1, 0]}, "ascending"),
        ({"keep_layers": "many"}, "keep_layers"),
        ({"keep_layers": 1.5}, "keep_layers"),
        ({"calibration_batches": 0}, "at least 1"),
        ({"batch_size": 0}, "at least 1"),
        ({"keep_heads": 0}, r"in \(0, 1\]"),
        ({"keep_ffn": 1.5}, r"in \(0, 1\]"),
        ({"target_speedup": 0}, "above 0"),
        ({"target_speedup": 2, "target_size_mb": 1}, "cannot be set together"),
        ({"target_speedup": 2, "keep_ffn": 0.5}, "cannot be set together"),
        ({"uniform": True, "keep_heads": 0.5}, "uniform"),
        ({"importance": "ob"}, "obs"),
    ],
)
def test_bad_settings(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build_optimizations({"structured_pruning": settings})


@pytest.mark.parametrize("keep", [4, [0, 3]])
def test_more_layers_than_there_are(tmp_path: Path, keep: Any) -> None:
    with pytest.raises(ConfigError, match="3 layers"):
        trainer(tmp_path, keep_layers=keep)


def test_adapters_have_to_be_merged_first(tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    model = peft.get_peft_model(KINDS["text"].model(), peft.LoraConfig(r=2, target_modules=["query"]))
    with pytest.raises(ConfigError, match="merge_and_unload"):
        trainer(tmp_path, given={"model": model}, keep_layers=2)


def test_calibration_needs_training_data(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="calibration needs training data"):
        trainer(tmp_path, given={"train_dataset": None}, dense_epochs=0, keep_layers=2).train()

"""Which layers go, and what is refused."""

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForSequenceClassification

from hf_efficient import ConfigError, EfficientTrainer, EfficientTrainingArguments, NoEffectWarning
from hf_efficient.plan import build_optimizations
from tests.test_parity import build, train
from tests.tiny import KINDS


def trainer(folder: Path, kind: str = "text", given: Any = None, dense_epochs: float = 6, **settings: Any) -> Any:
    options = {"optimizations": {"structured_pruning": settings}, "dense_epochs": dense_epochs, "measure_seconds": 0}
    return build(EfficientTrainer, EfficientTrainingArguments, folder, kind, given, **options)


def test_drops_the_layer_that_is_missed_least(tmp_path: Path) -> None:
    one = trainer(tmp_path, keep_layers=2, calibration_batches=6)
    train(one)
    chosen = one.optimizations[0].describe()["kept_layers"]["encoder.layer"]
    dense = AutoModelForSequenceClassification.from_pretrained(tmp_path / "dense" / "final").eval()
    batch = one.collate(one.examples(one.train_dataset, 48))
    layers, losses = dense.bert.encoder.layer, {}
    for kept in itertools.combinations(range(3), 2):
        dense.bert.encoder.layer = torch.nn.ModuleList(layers[index] for index in kept)
        with torch.no_grad():
            losses[kept] = dense(**batch).loss.item()
    assert tuple(chosen) == min(losses, key=lambda kept: losses[kept])


def test_description_tells_what_went(tmp_path: Path) -> None:
    one = trainer(tmp_path, keep_layers=1, calibration_batches=2)
    train(one)
    said = one.optimizations[0].describe()
    assert said["layers_before"] == {"encoder.layer": 3}
    assert len(said["dropped_in_turn"]) == 2
    assert said == json.loads(json.dumps(said))


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
    one = trainer(tmp_path, "seq2seq", keep_layers=2, calibration_batches=2)
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
    with pytest.warns(NoEffectWarning, match="keep_layers"):
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

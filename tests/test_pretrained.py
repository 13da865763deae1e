"""Folders, Hub ids, and what cannot be loaded."""

from pathlib import Path

import pytest
from transformers import AutoConfig, AutoModelForImageClassification, AutoModelForSequenceClassification, AutoTokenizer

from hf_efficient.errors import ConfigError
from hf_efficient.pretrained import DEFAULT_MODEL, load_pretrained, new_model, resolve_model
from tests.tasks.conftest import tiny_checkpoint


@pytest.fixture
def checkpoint(tmp_path: Path) -> str:
    return tiny_checkpoint(tmp_path / "model")


def test_default_model_is_the_installed_package(default_model: str) -> None:
    assert resolve_model(DEFAULT_MODEL) == default_model


def test_default_model_without_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert resolve_model(DEFAULT_MODEL) == DEFAULT_MODEL
    with pytest.raises(ConfigError, match=r"cannot load 'sentence.*pip install 'hf-efficient\[embedded\]'"):
        load_pretrained(AutoModelForSequenceClassification, DEFAULT_MODEL)


def test_folders_and_hub_ids(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "runs" / "final").mkdir(parents=True)
    assert resolve_model("runs/final") == "runs/final"
    assert resolve_model("~/runs/final") == str(tmp_path / "runs/final")
    assert resolve_model("bert-base-uncased") == "bert-base-uncased"
    assert resolve_model("google/electra-small-discriminator") == "google/electra-small-discriminator"


@pytest.mark.parametrize("name", ["./gone", "/gone", "~/gone", "runs/gone", "a/b/c", ""])
def test_path_without_a_model(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    with pytest.raises(ConfigError, match=f"no model there: '{name}'"):
        resolve_model(name)


def test_path_of_a_file(checkpoint: str) -> None:
    with pytest.raises(ConfigError, match=r"model.safetensors' is a file; name the folder"):
        resolve_model(f"{checkpoint}/model.safetensors")


def test_model_of_another_kind(checkpoint: str) -> None:
    with pytest.raises(ConfigError, match=r"AutoModelForImageClassification cannot load .*for a model of this kind"):
        load_pretrained(AutoModelForImageClassification, checkpoint)


def test_hub_model_that_cannot_be_reached() -> None:
    with pytest.raises(ConfigError, match=r"cannot load 'nobody/nothing' .*huggingface.co/nobody/nothing exists"):
        load_pretrained(AutoTokenizer, "nobody/nothing")


def test_new_models_have_the_shape_and_other_weights(checkpoint: str) -> None:
    assert resolve_model(f"new:{checkpoint}") == checkpoint
    assert AutoConfig.from_pretrained(resolve_model("new:vit-tiny")).model_type == "vit"
    for nothing in ("new:", "new:./gone"):
        with pytest.raises(ConfigError, match="no model there"):
            resolve_model(nothing)
    config = AutoConfig.from_pretrained(checkpoint)
    made = new_model(AutoModelForSequenceClassification, config)
    old = AutoModelForSequenceClassification.from_pretrained(checkpoint)
    ours, theirs = (model.get_input_embeddings().weight for model in (made, old))
    assert ours.shape == theirs.shape
    assert not (ours == theirs).any(dim=1).all()
    with pytest.raises(ConfigError, match="AutoModelForImageClassification makes no 'bert' model"):
        new_model(AutoModelForImageClassification, config)

"""Packed weights on disk: exact, expanded by plain `from_pretrained`, and refused where they are damaged."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModel, AutoModelForImageClassification, AutoModelForSequenceClassification

from hf_efficient.checkpoint import CODEBOOK, ManifestConfig, build, manifest_of, pack_weights
from hf_efficient.errors import ConfigError
from hf_efficient.functional.cluster import BITS, kmeans
from tests.golden import make
from tests.test_checkpoint import edit_manifest, load_without_the_import, logits
from tests.tiny import image_examples, image_model, text_model

WEIGHT = "bert.encoder.layer.0.attention.self.query.weight"


def shared(model: Any, bits: int = 4) -> Any:
    """``model`` with as many different numbers in each matrix as a codebook holds."""
    for parameter in model.parameters():
        if parameter.dim() == 2:
            codebook, index = kmeans(parameter, 2**bits)
            parameter.data.copy_(codebook[index.long()])
    return model.eval()


@pytest.fixture
def packed(tmp_path: Path) -> tuple[Any, Path]:
    """A model of changed shapes and shared weights, and the folder in which it is packed."""
    model = shared(make.model())
    model.save_pretrained(tmp_path / "packed")
    assert pack_weights(tmp_path / "packed", 4)[WEIGHT] == 4
    return model, tmp_path / "packed"


@pytest.mark.parametrize("bits", BITS)
def test_weights_load_bit_equal(bits: int, tmp_path: Path) -> None:
    """Of odd sizes, too: the last byte is not full."""
    model = shared(text_model(hidden_size=15, num_attention_heads=3, intermediate_size=33), bits)
    model.save_pretrained(tmp_path)
    codebooks = pack_weights(tmp_path, bits)
    saved = load_file(tmp_path / "model.safetensors")
    weights = model.state_dict()
    assert any(weights[name].numel() % 2 for name in codebooks)
    for name in codebooks:
        assert saved[name].dtype == torch.uint8
        assert len(saved[name]) == -(-weights[name].numel() * bits // 8)
        assert saved[name + CODEBOOK].shape == (2**bits,)
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    for name, weight in weights.items():
        assert torch.equal(loaded.state_dict()[name], weight), name


def test_file_names_of_another_kind_are_kept(tmp_path: Path) -> None:
    """A ViT's names in the file are not those of its modules."""
    model = shared(image_model())
    model.save_pretrained(tmp_path)
    before = set(load_file(tmp_path / "model.safetensors"))
    codebooks = pack_weights(tmp_path, 4)
    assert len(codebooks) == 19
    assert set(load_file(tmp_path / "model.safetensors")) == before | {name + CODEBOOK for name in codebooks}
    loaded = AutoModelForImageClassification.from_pretrained(tmp_path)
    for name, weight in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], weight), name
    pixels = image_examples(2)[0]["pixel_values"][None]
    with torch.no_grad():
        assert torch.equal(loaded(pixels).logits, model(pixels).logits)


def test_loads_as_the_bare_encoder_and_in_other_dtypes(packed: tuple[Any, Path]) -> None:
    model, folder = packed
    encoder = AutoModel.from_pretrained(folder).eval()
    with torch.no_grad():
        expected = model.bert(make.INPUT, make.MASK).last_hidden_state
        assert torch.equal(encoder(make.INPUT, make.MASK).last_hidden_state, expected)
    halved = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.bfloat16)
    for name, weight in model.state_dict().items():
        if weight.is_floating_point():
            assert torch.equal(halved.state_dict()[name], weight.bfloat16()), name


def test_more_labels_get_a_new_head(packed: tuple[Any, Path]) -> None:
    model, folder = packed
    loaded = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=5, ignore_mismatched_sizes=True)
    assert loaded.classifier.weight.shape == (5, 16)
    assert torch.equal(loaded.bert.pooler.dense.weight, model.bert.pooler.dense.weight)


def test_reloaded_is_an_ordinary_model(packed: tuple[Any, Path], tmp_path: Path) -> None:
    """Saved again, its weights are whole and nothing claims codebooks."""
    model, folder = packed
    loaded = AutoModelForSequenceClassification.from_pretrained(folder)
    assert manifest_of(loaded.config).modules == make.SHAPES
    loaded.save_pretrained(tmp_path / "again")
    assert "codebooks" not in json.loads((tmp_path / "again" / "config.json").read_text())["quantization_config"]
    assert load_file(tmp_path / "again" / "model.safetensors")[WEIGHT].shape == (16, 16)
    again = AutoModelForSequenceClassification.from_pretrained(tmp_path / "again")
    assert torch.equal(logits(again), logits(model))
    assert loaded.half().dtype == torch.float16


def test_random_weights_in_its_shapes_claim_no_codebooks(packed: tuple[Any, Path]) -> None:
    config = AutoConfig.from_pretrained(packed[1])
    assert manifest_of(config).codebooks
    assert not manifest_of(build(config, AutoModelForSequenceClassification).config).codebooks


def test_without_codebooks_the_manifest_is_as_before() -> None:
    assert ManifestConfig(make.SHAPES).to_dict() == {
        "quant_method": "hf_efficient",
        "version": 1,
        "modules": make.SHAPES,
    }


def test_nothing_to_pack_leaves_the_folder_alone(tmp_path: Path) -> None:
    make.model().save_pretrained(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert pack_weights(tmp_path, 2) == {}
    assert before == {path.name: path.read_bytes() for path in tmp_path.iterdir()}


def test_fails_loudly_without_the_import(packed: tuple[Any, Path]) -> None:
    done = load_without_the_import(packed[1])
    assert done.returncode == 1
    assert "mismatch" in done.stderr.lower()


DAMAGE: dict[str, tuple[Callable[[dict[str, torch.Tensor]], Any], str]] = {
    "codebook missing": (lambda saved: saved.pop(WEIGHT + CODEBOOK), "has no codebook"),
    "indices missing": (lambda saved: saved.pop(WEIGHT), "is not there"),
    "weights whole": (lambda saved: saved.update({WEIGHT: torch.zeros(16, 16)}), "F32, not indices"),
    "codebook cut": (lambda saved: saved.update({WEIGHT + CODEBOOK: torch.zeros(9)}), "damaged codebook"),
    "codebook of integers": (lambda s: s.update({WEIGHT + CODEBOOK: torch.ones(16).int()}), "damaged codebook"),
    "codebook not finite": (lambda s: s.update({WEIGHT + CODEBOOK: torch.full((16,), torch.nan)}), "16 finite floats"),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_damage_is_refused(case: str, packed: tuple[Any, Path]) -> None:
    damage, message = DAMAGE[case]
    file = packed[1] / "model.safetensors"
    saved = load_file(file)
    damage(saved)
    save_file(saved, file, {"format": "pt"})
    with pytest.raises(ConfigError, match=rf"packed.*that '{WEIGHT}' is packed, but it .*{message}"):
        AutoModelForSequenceClassification.from_pretrained(packed[1])


def test_bits_that_cannot_be_are_refused(packed: tuple[Any, Path]) -> None:
    edit_manifest(packed[1], codebooks={WEIGHT: 3})
    with pytest.raises(ConfigError, match="indices of 3 bits, and 2, 4, 8 can be"):
        AutoModelForSequenceClassification.from_pretrained(packed[1])


def test_weights_in_several_files_are_not_packed(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="where one file holds them"):
        pack_weights(tmp_path, 4)

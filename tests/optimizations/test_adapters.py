"""Adapters as users set them up; what every optimization does is in `tests/test_contract.py`."""

from pathlib import Path
from typing import Any

import pytest
import torch

from hf_efficient import ConfigError, EfficientTrainer, EfficientTrainingArguments
from hf_efficient.optimizations.adapters import Adapters
from tests.test_parity import build
from tests.tiny import text_model


def trainer(folder: Path, settings: dict[str, Any], **options: Any) -> Any:
    given = {"optimizations": {"adapters": settings}, "measure_seconds": 0, **options}
    return build(EfficientTrainer, EfficientTrainingArguments, folder, **given)


class Watching(Adapters):
    """Notes what the adapted model says just before it is merged."""

    def finalize(self, model: torch.nn.Module) -> torch.nn.Module:
        self.adapted = [dict(model.named_parameters()), self.answer(model)]
        return super().finalize(model)


@pytest.mark.parametrize("dora", [False, True])
def test_the_merged_model_says_what_the_adapted_one_did(dora: bool, tmp_path: Path) -> None:
    watching = Watching(rank=4, alpha=32, dora=dora)
    one = trainer(tmp_path, {}, optimizations=None, given={"callbacks": [watching]})
    batch = one.collate(one.examples(one.eval_dataset, 4))

    def answer(model: Any) -> torch.Tensor:
        with torch.no_grad():
            return model.eval()(**batch).logits

    watching.answer = answer
    flags = {name: parameter.requires_grad for name, parameter in one.model.named_parameters()}
    one.train()
    names, said = watching.adapted
    assert any("lora_A" in name for name in names)
    assert any("magnitude" in name for name in names) == dora
    torch.testing.assert_close(answer(one.model), said, rtol=1e-4, atol=1e-5)
    assert {name: parameter.requires_grad for name, parameter in one.model.named_parameters()} == flags
    assert type(one.model.base_model.encoder.layer[0].attention.self.query) is torch.nn.Linear
    assert not hasattr(one.model.base_model, "peft_config")


def test_the_best_checkpoint_can_be_loaded_at_the_end(tmp_path: Path) -> None:
    options = {"load_best_model_at_end": True, "eval_strategy": "steps", "eval_steps": 4, "save_steps": 4}
    one = trainer(tmp_path, {"rank": 2}, **options)
    one.train()
    best = type(one.model).from_pretrained(one.state.best_model_checkpoint)
    kept = dict(one.model.state_dict())
    for name, value in best.state_dict().items():
        torch.testing.assert_close(kept[name], value, msg=name)


def test_head_learns_and_the_rest_stands_still(tmp_path: Path) -> None:
    one = trainer(tmp_path, {"rank": 2})
    before = {name: value.clone() for name, value in one.model.state_dict().items()}
    one.train()
    moved = {name for name, value in one.model.state_dict().items() if not torch.equal(value, before[name])}
    assert "classifier.weight" in moved
    assert {name.rsplit(".", 1)[-1] for name in moved - {"classifier.weight", "classifier.bias"}} == {"weight"}
    assert not any("LayerNorm" in name or "embeddings" in name for name in moved)
    described = one.optimizations[0].describe()
    assert described["trained_parameters"] < 0.5 * one.model.num_parameters()


def test_with_a_teacher_and_smaller_numbers(tmp_path: Path) -> None:
    both = {"adapters": {"rank": 2}, "distillation": {"hidden": 0.5}, "precision": {"dtype": "bf16"}}
    one = trainer(tmp_path, {}, optimizations=both, dense_epochs=2)
    one.train()
    shipped = type(one.model).from_pretrained(one.finished).eval()
    batch = one.collate(one.examples(one.eval_dataset, 4))
    with torch.no_grad():
        assert torch.equal(shipped(**batch).logits, one.model.eval()(**batch).logits)


def test_four_bits_stand_still(tmp_path: Path) -> None:
    wide = {"model": text_model(hidden_size=64, intermediate_size=128)}
    settings = {"adapters": {"rank": 2, "alpha": 0.01, "frozen": "bitsandbytes-nf4"}, "precision": {"dtype": "bf16"}}
    one = trainer(tmp_path, {}, given=wide, optimizations=settings)
    table = one.model.bert.embeddings.word_embeddings.weight.detach().clone()
    before = one.model.bert.encoder.layer[0].output.dense.weight.detach().clone()
    one.train()
    after = one.model.bert.encoder.layer[0].output.dense.weight.detach()
    assert {parameter.dtype for parameter in one.model.parameters()} == {torch.float32}
    assert 0.02 < ((after - before).abs().mean() / before.abs().mean()) < 0.2  # what rounding to 16 numbers costs
    assert torch.equal(one.model.bert.embeddings.word_embeddings.weight, table)


def test_four_bits_need_layers_that_fit(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="takes inputs in multiples of 64; no layer"):
        trainer(tmp_path, {"frozen": "bitsandbytes-nf4"}).train()


def test_four_bits_and_the_best_checkpoint_are_refused(tmp_path: Path) -> None:
    options = {"load_best_model_at_end": True, "eval_strategy": "steps", "eval_steps": 4, "save_steps": 4}
    with pytest.raises(ConfigError, match="load_best_model_at_end"):
        trainer(tmp_path, {"frozen": "bitsandbytes-nf4"}, **options)


@pytest.mark.parametrize(
    ("settings", "words"), [({"rank": 0}, "rank"), ({"alpha": 0.0}, "alpha"), ({"dropout": 1.0}, "dropout")]
)
def test_bad_settings(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        Adapters(**settings)

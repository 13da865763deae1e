"""Which trainings packing serves; what layers compute on packed batches is in tests/functional/test_packing.py."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import (
    DebertaV2Config,
    DebertaV2ForSequenceClassification,
    GPT2Config,
    GPT2ForSequenceClassification,
    MPNetConfig,
    MPNetForSequenceClassification,
    Trainer,
    TrainingArguments,
    set_seed,
)

from hf_efficient import ConfigError, EfficientTrainer, EfficientTrainingArguments
from hf_efficient.optimizations.packing import Packing
from hf_efficient.proposal import Observed
from tests.test_parity import build
from tests.tiny import SMALL, VOCABULARY, image_model, seq2seq_model, text_model

NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


def packed_training(folder: Path, model: Any, **options: Any) -> Any:
    options = {"optimizations": {"packing": {}}, "measure_seconds": 0, "save_strategy": "no", **options}
    return build(EfficientTrainer, EfficientTrainingArguments, folder, given={"model": model}, **options)


@pytest.mark.parametrize("options", [{}, {"gradient_accumulation_steps": 2}, {"gradient_checkpointing": True}])
def test_a_training_comes_to_the_weights_of_stock(tmp_path: Path, options: dict[str, Any]) -> None:
    options = {"optim": "sgd", "learning_rate": 0.3, "save_strategy": "no", **options}
    given = {"model": text_model(**NO_DROPOUT)}
    stock = build(Trainer, TrainingArguments, tmp_path / "stock", given=given, **options)
    ours = packed_training(tmp_path / "ours", text_model(**NO_DROPOUT), **options)
    for trainer in (stock, ours):
        set_seed(0)
        trainer.train()
    for name, weight in stock.model.state_dict().items():
        torch.testing.assert_close(ours.model.state_dict()[name], weight, rtol=1e-4, atol=1e-6)
    assert ours.optimizations[0].describe()["padding_left_out"] > 0.1


def small(config: Any, **more: Any) -> Any:
    return config(vocab_size=VOCABULARY, max_position_embeddings=16, **SMALL, **more)


REFUSED = {
    "mpnet": (lambda: MPNetForSequenceClassification(small(MPNetConfig)), "lets attention be exchanged"),
    "deberta": (lambda: DebertaV2ForSequenceClassification(small(DebertaV2Config)), "lets attention be exchanged"),
    "gpt2": (
        lambda: GPT2ForSequenceClassification(
            GPT2Config(vocab_size=VOCABULARY, n_positions=16, n_embd=16, n_layer=2, n_head=2, pad_token_id=0)
        ),
        "packing does not work with this 'gpt2' model",
    ),
}


@pytest.mark.parametrize("family", REFUSED)
def test_models_that_cannot_are_refused(family: str, tmp_path: Path) -> None:
    make, reason = REFUSED[family]
    model = make()
    with pytest.raises(ConfigError, match=reason):
        packed_training(tmp_path, model).train()
    assert model.config._attn_implementation != "packed"


def test_encoders_with_decoders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="one stack of equal layers, and 'bart' is not"):
        packed_training(tmp_path, seq2seq_model())


def test_layers_that_mix_positions_are_found_out(tmp_path: Path) -> None:
    """As a convolution over positions would."""

    class Mixing(nn.Module):
        def forward(self, hidden: torch.Tensor) -> torch.Tensor:
            return hidden + hidden.roll(1, dims=1)

    model = text_model()
    intermediate: Any = model.bert.encoder.layer[0].intermediate
    intermediate.intermediate_act_fn = nn.Sequential(intermediate.intermediate_act_fn, Mixing())
    with pytest.raises(ConfigError, match="layers mix positions by more than attention"):
        packed_training(tmp_path, model).train()
    assert model.config._attn_implementation == "sdpa"


def test_it_is_proposed_by_the_padding_that_batches_have(tmp_path: Path) -> None:
    args = EfficientTrainingArguments(str(tmp_path), use_cpu=True, per_device_train_batch_size=16)
    lengths = torch.tensor([8, 4] * 8)  # a quarter of a random batch is padding
    for seen, padding in ((0.0, 0.0), (0.1, 0.1), (0.5, 0.25)):
        (proposal,) = Packing.proposals(Observed(args, text_model(), lengths, computing=0.8, padding=seen))
        assert proposal.gain == pytest.approx(0.8 * padding)
    assert not list(Packing.proposals(Observed(args, image_model(), computing=0.8)))

"""layerwise_learning_rates: which parameter learns at which rate."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import (
    GPT2Config,
    GPT2ForSequenceClassification,
    GPT2LMHeadModel,
    ResNetConfig,
    ResNetForImageClassification,
)

from hf_efficient import ConfigError, EfficientTrainer, EfficientTrainingArguments, NoEffectWarning
from hf_efficient.optimizations.layerwise_learning_rates import LayerwiseLearningRates
from tests.test_parity import build, train
from tests.tiny import KINDS, LAYERS, image_model, seq2seq_model, text_model

RATE = 0.01


def rates(model: Any, cls: Any = torch.optim.AdamW, **settings: Any) -> dict[str, float]:
    """Name of each parameter -> the rate that an optimizer of ``cls`` has for it."""
    one = LayerwiseLearningRates(**settings)
    made, options = one.choose_optimizer(cls, {"lr": RATE}, model)
    optimizer = made([{"params": list(model.parameters())}], **options)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    found = {names[id(p)]: group["lr"] for group in optimizer.param_groups for p in group["params"]}
    assert set(found) == set(names.values())
    return found


def trainer(folder: Path, settings: dict[str, Any], **options: Any) -> Any:
    options = {"optimizations": {"layerwise_learning_rates": settings}, "measure_seconds": 0, **options}
    return build(EfficientTrainer, EfficientTrainingArguments, folder, **options)


def test_rates_of_an_encoder() -> None:
    found = rates(text_model(), decay=0.5, head=4)
    assert found["classifier.weight"] == found["classifier.bias"] == pytest.approx(4 * RATE)
    assert found["bert.pooler.dense.weight"] == pytest.approx(RATE)
    for index in range(LAYERS):
        expected = RATE * 0.5 ** (LAYERS - 1 - index)
        of_layer = [rate for name, rate in found.items() if f"encoder.layer.{index}." in name]
        assert len(of_layer) == 16
        assert of_layer == pytest.approx([expected] * 16)
    assert found["bert.embeddings.word_embeddings.weight"] == pytest.approx(RATE * 0.5**LAYERS)


def test_rates_of_images() -> None:
    found = rates(image_model(), decay=0.5, head=4)
    for name in ("cls_token", "position_embeddings", "patch_embeddings.projection.weight"):
        assert found[f"vit.embeddings.{name}"] == pytest.approx(RATE * 0.5**LAYERS)
    assert found["vit.layernorm.weight"] == pytest.approx(RATE)
    assert found["classifier.weight"] == pytest.approx(4 * RATE)


def test_two_stacks_are_counted_each_from_its_top() -> None:
    found = rates(seq2seq_model(), decay=0.5, head=4)
    depth = seq2seq_model().config.encoder_layers
    for stack in ("encoder", "decoder"):
        assert found[f"model.{stack}.layers.{depth - 1}.fc1.weight"] == pytest.approx(RATE)
        assert found[f"model.{stack}.layers.0.fc1.weight"] == pytest.approx(RATE * 0.5 ** (depth - 1))
        assert found[f"model.{stack}.embed_positions.weight"] == pytest.approx(RATE * 0.5**depth)
    assert found["model.shared.weight"] == pytest.approx(RATE * 0.5**depth)
    assert max(found.values()) == pytest.approx(RATE)


def test_a_head_that_puts_out_words_is_pretrained() -> None:
    config = GPT2Config(vocab_size=16, n_embd=8, n_layer=2, n_head=2, n_positions=8, num_labels=2, pad_token_id=0)
    assert max(rates(GPT2LMHeadModel(config)).values()) == RATE
    assert rates(GPT2ForSequenceClassification(config))["score.weight"] == pytest.approx(10 * RATE)


def test_layers_that_are_not_known(tmp_path: Path) -> None:
    model = ResNetForImageClassification(ResNetConfig(embedding_size=8, hidden_sizes=[8, 8], depths=[1, 1]))
    with pytest.raises(ConfigError, match=r"decay needs layers that are known: .*'resnet'.*or set it to 1"):
        trainer(tmp_path, {}, given={"model": model})  # when it is made, not once it trains
    assert set(rates(model, decay=1).values()) == {RATE, 10 * RATE}
    with pytest.raises(ConfigError, match="needs a model of transformers, whose head is known; got Linear"):
        rates(nn.Linear(2, 2))


def test_groups_keep_what_they_have_and_the_first_tells_the_rate() -> None:
    model = text_model()
    decayed, others = list(model.bert.parameters()), list(model.classifier.parameters())
    made, options = LayerwiseLearningRates().choose_optimizer(torch.optim.AdamW, {"lr": RATE}, model)
    groups = [{"params": others, "weight_decay": 0.0, "lr": 2 * RATE}, {"params": decayed, "weight_decay": 0.5}]
    optimizer = made(groups, **options)
    first, *_, last = optimizer.param_groups
    assert first["lr"] == RATE
    assert first["weight_decay"] == 0.5
    head = next(group for group in optimizer.param_groups if group["params"][0] is others[0])
    assert (head["lr"], head["weight_decay"]) == (20 * RATE, 0.0)
    assert last["lr"] < first["lr"]


@pytest.mark.parametrize("other", ["optimizer", "sparse_embeddings"])
@pytest.mark.parametrize("is_first", [True, False])
def test_with_what_else_chooses_the_optimizer(tmp_path: Path, other: str, is_first: bool) -> None:
    settings = {"optimizer": {"kind": "adamw_8bit", "min_size": 64}, "sparse_embeddings": {"min_rows": 8}}
    listed = [("layerwise_learning_rates", {"decay": 0.5}), (other, settings[other])]
    one = trainer(tmp_path, {}, optimizations=dict(listed if is_first else listed[::-1]))
    train(one)
    found = {round(group["initial_lr"] / one.args.learning_rate, 6) for group in one.optimizer.param_groups}
    assert found == {10, 1, 0.5, 0.25, 0.125}


def test_a_new_head_learns_sooner(tmp_path: Path) -> None:
    """A frozen body: what is learnt is the head's alone, in steps that would not do at the usual rate."""
    losses = []
    for settings in ({"head": 10}, {"head": 1, "decay": 0.9}):
        model = KINDS["text"].model()
        model.bert.requires_grad_(False)
        one = trainer(tmp_path / str(len(losses)), settings, given={"model": model}, learning_rate=1e-3)
        train(one)
        losses.append(one.evaluate()["eval_loss"])
    assert losses[0] < losses[1]


def test_another_decay_is_no_way_to_resume(tmp_path: Path) -> None:
    train(trainer(tmp_path, {}))
    with pytest.raises(ConfigError, match=r"state of layerwise_learning_rates .*'decay': 0.8.*same settings"):
        trainer(tmp_path, {"decay": 0.7}, num_train_epochs=3).train(resume_from_checkpoint=True)


def test_it_is_told_and_refused(tmp_path: Path) -> None:
    one = trainer(tmp_path, {"decay": 0.5, "head": 2})
    train(one)
    assert one.optimizations[0].describe() == {"factors": [0.125, 2.0]}
    with pytest.warns(NoEffectWarning, match="with decay=1 and head=1 all of this model learns at the rate"):
        train(trainer(tmp_path / "neutral", {"decay": 1, "head": 1}))
    for settings, said in (({"decay": 0}, "above 0 and at most 1"), ({"head": float("nan")}, "a number above 0")):
        with pytest.raises(ConfigError, match=said):
            LayerwiseLearningRates(**settings)

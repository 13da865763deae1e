"""Frozen layers: what comes before them, evaluated, looked up, and when that is given up."""

import logging
from pathlib import Path
from typing import Any

import pytest
import torch

from hf_efficient.example_cache import ExampleCache
from hf_efficient.prefix import TRIED_BATCHES, FrozenPrefix, used_before
from tests.tiny import image_model, pad, seq2seq_model, text_examples, text_model


def batch(count: int = 8, start: int = 0) -> dict[str, torch.Tensor]:
    return pad(text_examples(24).examples[start : start + count])


def frozen(folder: Path, model: Any = None, depth: int = 2, **options: Any) -> tuple[Any, FrozenPrefix, list[int]]:
    """A text model in training whose first layers stand still, and a list of the layers that ran."""
    model = text_model() if model is None else model
    model.train()
    layers = model.bert.encoder.layer
    for module in (model.bert.embeddings, *layers[:depth]):
        module.requires_grad_(False)
    ran: list[int] = []
    for index, layer in enumerate(layers):
        layer.attention.register_forward_pre_hook(lambda module, args, index=index: ran.append(index))
    cache = ExampleCache("layer_freezing", folder, 1e9, {"shards": []})
    prefix = FrozenPrefix(model, layers, [model.bert.embeddings], cache, **{"measured": False, **options})
    for _ in range(depth):
        prefix.freeze()
    return model, prefix, ran


def runs(model: Any, ran: list[int], inputs: dict[str, torch.Tensor]) -> tuple[list[int], torch.Tensor]:
    """Which layers run for a batch, and the logits; what may be dropped out in the others is left in."""
    ran.clear()
    model.train()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    logits = model(**inputs).logits.detach()
    return list(ran), logits


MODELS = {
    "text": (text_model, "bert.encoder.layer.0"),
    "vision": (image_model, "vit.layers.0"),
    "seq2seq": (seq2seq_model, "model.encoder.layers.0"),
}


@pytest.mark.parametrize("kind", MODELS)
def test_what_comes_before_the_first_layer(kind: str) -> None:
    make, first = MODELS[kind]
    model: Any = make()
    inputs = {"pixel_values": torch.rand(2, 3, 8, 8)} if kind == "vision" else {"input_ids": batch(2)["input_ids"]}
    modules, parameters = used_before(model, model.get_submodule(first), inputs)
    if kind == "seq2seq":  # the table is the decoder's and the output layer's, too
        names = ("embed_positions.weight", "layernorm_embedding.weight", "layernorm_embedding.bias")
        assert set(parameters) == {f"model.encoder.{name}" for name in names}
        assert "model.shared" not in modules
    else:
        assert set(parameters) == {name for name, _ in model.named_parameters() if "embeddings" in name}
        assert set(modules) == {name for name, _ in model.named_modules() if "embeddings" in name}


def test_known_batches_skip_the_layers(tmp_path: Path) -> None:
    """However they are padded and mixed."""
    model, prefix, ran = frozen(tmp_path)
    first, expected = runs(model, ran, batch(8))
    assert first == [0, 1, 2]
    checked, _ = runs(model, ran, batch(8))
    assert checked == [0, 1, 2]  # the first time, what is known is compared with what is computed
    skipped, logits = runs(model, ran, batch(8))
    assert skipped == [2]
    torch.testing.assert_close(logits, expected)
    mixed, logits = runs(model, ran, batch(3, start=2))
    assert mixed == [2]
    torch.testing.assert_close(logits, expected[2:5], rtol=1e-4, atol=1e-5)
    kept = len(prefix.cache._pending)  # type: ignore[union-attr]
    assert runs(model, ran, batch(4, start=6))[0] == [0, 1, 2]  # two of them are new
    assert len(prefix.cache._pending) == kept + 2  # type: ignore[union-attr]
    model.eval()
    ran.clear()
    model(**batch(8))
    assert ran == [0, 1, 2]
    prefix.remove()
    assert runs(model, ran, batch(8))[0] == [0, 1, 2]


def test_a_deeper_prefix_goes_on_from_where_the_other_ended(tmp_path: Path) -> None:
    model, prefix, ran = frozen(tmp_path, depth=1)
    expected = [runs(model, ran, batch(8)) for _ in range(2)][-1][1]
    model.bert.encoder.layer[1].requires_grad_(False)
    prefix.freeze()
    ran_from, logits = runs(model, ran, batch(8))
    assert ran_from == [1, 2]
    torch.testing.assert_close(logits, expected)
    runs(model, ran, batch(8))
    again, logits = runs(model, ran, batch(8))
    assert again == [2]
    torch.testing.assert_close(logits, expected)


def test_frozen_layers_drop_nothing_out(tmp_path: Path) -> None:
    model, _, _ = frozen(tmp_path)
    model(**batch())
    assert not any(module.training for module in (model.bert.embeddings.dropout, model.bert.encoder.layer[1]))
    assert model.bert.encoder.layer[2].training


def test_the_gradient_is_that_without_a_cache(tmp_path: Path) -> None:
    model, _, ran = frozen(tmp_path)
    gradients = []
    for _ in range(3):
        runs(model, ran, batch())
        model.zero_grad()
        model(**batch()).loss.backward()
        gradients.append(model.bert.encoder.layer[2].output.dense.weight.grad.clone())
    assert ran == [2, 2]
    torch.testing.assert_close(gradients[0], gradients[2])


def gives_up(caplog: pytest.LogCaptureFixture, prefix: FrozenPrefix, reason: str) -> None:
    assert reason in caplog.text
    assert prefix.cache is None


def test_given_up_where_embeddings_learn(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model, prefix, ran = frozen(tmp_path)
    model.bert.embeddings.requires_grad_(True)
    with caplog.at_level(logging.WARNING):
        assert [runs(model, ran, batch())[0] for _ in range(3)] == [[0, 1, 2]] * 3
    gives_up(caplog, prefix, "what comes before the first layer still learns")


def test_given_up_where_an_example_comes_out_otherwise(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model, prefix, ran = frozen(tmp_path)
    model.bert.embeddings.register_forward_hook(lambda module, args, output: output + torch.rand_like(output))
    with caplog.at_level(logging.WARNING):
        assert [runs(model, ran, batch())[0] for _ in range(3)] == [[0, 1, 2]] * 3
    gives_up(caplog, prefix, "came out otherwise the second time")


def test_given_up_where_a_layer_puts_out_more(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    _, prefix, _ = frozen(tmp_path)
    prefix._keep((torch.zeros(1), None))
    gives_up(caplog, prefix, "not one tensor")


@pytest.mark.parametrize("seconds", [(1.0, 2.0), (2.0, 1.0)])
def test_looking_up_has_to_be_faster(tmp_path: Path, seconds: tuple[float, float]) -> None:
    model, prefix, ran = frozen(tmp_path, measured=True)
    for start in range(TRIED_BATCHES):
        prefix.decide()  # too early: nothing happens
        runs(model, ran, batch(4, start=4 * start))
    assert len(prefix._tried) == TRIED_BATCHES
    prefix._tried = [seconds] * TRIED_BATCHES
    prefix.decide()
    runs(model, ran, batch(4))
    again, _ = runs(model, ran, batch(4))
    assert again == ([2] if seconds[1] < seconds[0] else [0, 1, 2])

"""Hooks that round in every forward pass and leave parameters, names and files as they are."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch

from hf_efficient.export import export
from hf_efficient.functional.fake_quant import fake_quantize_weight, fixed_point
from hf_efficient.guard import logits_of
from hf_efficient.optimizations.quantization import TARGETS
from hf_efficient.rounding import Rounding, Scheme, readers
from hf_efficient.trained_ranges import keep_ranges
from tests.exports import CASES, pad, text

SCHEMES = {
    "channel": Scheme("channel"),
    "dynamic": Scheme("tensor", "dynamic"),
    "static": Scheme("channel", "static", embeddings="table"),
    "int4": Scheme("group", bits=4, group=8),
    "step": Scheme("step", "step", step=2**-3),
}


def batch() -> dict[str, torch.Tensor]:
    found = pad(CASES["text"].examples()[:4])
    found.pop("labels")
    return found


@torch.no_grad()
def logits(model: Any) -> torch.Tensor:
    return model(**batch()).logits


@pytest.mark.parametrize("name", SCHEMES)
def test_rounds_while_attached_and_only_then(name: str) -> None:
    model = text()
    plain, state = logits(model), copy.deepcopy(model.state_dict())
    rounding = Rounding(SCHEMES[name])
    assert rounding.attach(model) > 10
    rounded = logits(model)
    assert not torch.equal(plain, rounded)
    assert model.state_dict().keys() == state.keys()
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert all(isinstance(parameter, torch.nn.Parameter) for parameter in model.parameters())
    rounding.remove()
    assert torch.equal(logits(model), plain)


@pytest.mark.parametrize("name", SCHEMES)
def test_gradients_reach_every_parameter(name: str) -> None:
    model = text().train()
    Rounding(SCHEMES[name]).attach(model)
    model(**batch(), labels=torch.tensor([0, 1, 0, 1])).loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    assert model.bert.encoder.layer[0].intermediate.dense.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("name", ["channel", "int4"])
def test_folded_weights_compute_the_same_without_hooks(name: str) -> None:
    model = text()
    rounding = Rounding(SCHEMES[name])
    rounding.attach(model)
    rounded = logits(model)
    rounding.remove()
    rounding.fold(model)
    assert torch.allclose(logits(model), rounded, atol=1e-5)


def test_fixed_point_folds_every_parameter_exactly() -> None:
    model = text()
    before = copy.deepcopy(model.state_dict())
    Rounding(Scheme("step", step=2**-6)).fold(model)
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, fixed_point(before[name], 2**-6)), name


def test_embeddings_can_stay() -> None:
    model = text()
    table = model.bert.embeddings.word_embeddings.weight.clone()
    Rounding(Scheme("channel", embeddings="")).fold(model)
    assert torch.equal(model.bert.embeddings.word_embeddings.weight, table)
    Rounding(Scheme("channel")).fold(model)
    assert torch.equal(model.bert.embeddings.word_embeddings.weight, fake_quantize_weight(table))


def test_layers_that_read_the_same_share_a_scale() -> None:
    model = text()
    packed = readers(model, batch())
    names = [f"bert.encoder.layer.{layer}.attention.self." for layer in range(len(model.bert.encoder.layer))]
    assert packed == [[name + part for part in ("query", "key", "value")] for name in names]
    group = [model.get_submodule(path) for path in packed[0]]
    together = torch.cat([module.weight.detach() for module in group])
    rounding = Rounding(Scheme("tensor"), packed=packed)
    rounding.attach(model)
    rounded = logits(model)
    rounding.remove()
    rounding.fold(model)
    expected = fake_quantize_weight(together, per="tensor")
    assert torch.allclose(torch.cat([module.weight for module in group]), expected, atol=1e-7)
    assert torch.allclose(logits(model), rounded, atol=1e-5)


def test_an_error_in_a_forward_pass_leaves_the_parameters() -> None:
    model = text()
    Rounding(SCHEMES["channel"]).attach(model)
    with pytest.raises(Exception, match="index out of range"):
        model(input_ids=torch.tensor([[10_000]]))
    assert all(isinstance(parameter, torch.nn.Parameter) for parameter in model.parameters())


def test_static_ranges_run_in_training_and_stand_still_in_evaluation() -> None:
    model = text().train()
    rounding = Rounding(SCHEMES["static"])
    rounding.attach(model)
    model(**batch())
    seen = copy.deepcopy(rounding.ranges)
    assert set(seen) == {path for path, module in model.named_modules() if isinstance(module, torch.nn.Linear)}
    logits(model.eval())
    assert all(torch.equal(rounding.ranges[path], seen[path]) for path in seen)
    path = "bert.encoder.layer.0.attention.self.query"
    with torch.no_grad():
        model.bert.embeddings.LayerNorm.weight.mul_(3)
    model.train()(**batch())
    assert (rounding.ranges[path].abs() > seen[path].abs()).all()


def test_how_ranges_run_on() -> None:
    layer = torch.nn.Sequential(torch.nn.Linear(2, 2)).train()
    rounding = Rounding(SCHEMES["static"])
    rounding.attach(layer)
    for row in ([-1.0, 4.0], [-2.0, 1.0]):
        layer(torch.tensor([row]))
    torch.testing.assert_close(rounding.ranges["0"], torch.tensor([-1.01, 3.97]))


SERVED = ["onnx-dynamic", "onnx-dynamic-per-channel", "onnx-static", "onnx-static-matmul", "openvino-static"]


@pytest.mark.parametrize("target", SERVED)
def test_rounds_as_the_export_does(target: str, tmp_path: Path) -> None:
    model, examples = text(), CASES["text"].examples()
    plain = logits(model)
    rounding = Rounding(TARGETS[target], packed=readers(model, batch()))
    rounding.attach(model.train())
    with torch.no_grad():
        model(**batch())  # not what calibration would see
    rounded = logits(model.eval())
    rounding.remove()
    rounding.fold(model)
    keep_ranges(model, rounding.ranges)
    format, quantize = target.split("-", 1)
    settings = {"format": format, "quantize": quantize, "examples": examples, "collate": pad}
    exported = logits_of(export(model, tmp_path, **settings, seconds=0, max_drop=1).runtime().predict(batch()))
    # What is left is a number in the middle of two steps that goes to the other one
    assert (rounded - exported).abs().mean() < 0.1 * (plain - exported).abs().mean()

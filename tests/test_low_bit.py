"""Low-bit layers of other libraries on finished models, cut ones too."""

import importlib.util
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from hf_efficient import ConfigError, low_bit
from hf_efficient.functional.masks import least_in_groups
from hf_efficient.low_bit import BLOCK, GROUP, LOW_BIT, load_low_bit, require_low_bit
from hf_efficient.pretrained import class_of
from tests.exports import CASES, widened
from tests.optimizations.test_structured_pruning import train, trainer
from tests.tasks.conftest import tiny_checkpoint
from tests.tiny import text_model

MAY_DIFFER = {"bitsandbytes-int8": 0.1, "torchao-int8": 0.05}
"""Share of the greatest logit; four bits move them by more."""


def runs_here(kind: str) -> bool:
    if importlib.util.find_spec(LOW_BIT[kind].package) is None:
        return False
    try:
        require_low_bit(kind, torch.device("cpu"))
    except ConfigError:
        return False
    return True


def saved(folder: Path) -> tuple[str, Any]:
    """A model whose layers are wide enough for groups, and a batch for it."""
    case = CASES["text"]
    widened(text_model(num_hidden_layers=2, hidden_size=BLOCK, intermediate_size=2 * BLOCK)).save_pretrained(folder)
    return str(folder), case.collate(case.examples()[:8])


def low_bit_layers(model: nn.Module) -> int:
    wide = [module for module in model.modules() if isinstance(module, nn.Linear)]
    return sum(type(module) is not nn.Linear or type(module.weight) is not nn.Parameter for module in wide)


@pytest.mark.parametrize("kind", LOW_BIT)
def test_computes_nearly_the_same(kind: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    if not runs_here(kind):
        pytest.skip(f"{kind} does not work here")
    folder, batch = saved(tmp_path / "model")
    caplog.set_level(logging.WARNING)
    model = load_low_bit(folder, kind)
    plain = class_of(folder).from_pretrained(folder).eval()
    linear = [module for module in plain.base_model.modules() if type(module) is nn.Linear]
    fit = [module for module in linear if LOW_BIT[kind].fits(module)]
    assert low_bit_layers(model) == len(fit)
    assert (f"{len(linear) - len(fit)} of {len(linear)} linear layers stay in float" in caplog.text) == (fit != linear)
    with torch.no_grad():
        found, expected = model(**batch).logits, plain(**batch).logits
    assert "will be cast" not in caplog.text
    apart = (found - expected).abs().max() / expected.abs().max()
    assert 0 < apart < MAY_DIFFER.get(kind, 0.7)
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_a_cut_model_keeps_its_shape(tmp_path: Path) -> None:
    kind = next(filter(runs_here, LOW_BIT), None)
    if kind is None:
        pytest.skip("no package for low-bit layers works here")
    one = trainer(tmp_path, "text", target_parameters=2500, calibration_batches=4, importance="obs")
    train(one)
    assert "quantization_config" in (one.finished / "config.json").read_text()
    model = load_low_bit(one.finished, kind)
    batch = one.collate(one.examples(one.eval_dataset, 4))
    with torch.no_grad():
        found, expected = model(**batch).logits, one.model.eval()(**batch).logits
    assert (found - expected).abs().max() < 0.5 * expected.abs().max()
    assert low_bit_layers(model) > 0


def test_groups_that_do_not_fit_stay_in_float(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    if not runs_here("torchao-int4"):
        pytest.skip("torchao-int4 does not work here")
    folder = tiny_checkpoint(tmp_path / "model", hidden_size=GROUP, intermediate_size=GROUP + 8)
    caplog.set_level(logging.WARNING)
    model = load_low_bit(folder, "torchao-int4")
    assert "1 of 7 linear layers stay in float: torchao-int4 takes inputs in multiples of 32" in caplog.text
    assert type(model.bert.encoder.layer[0].output.dense.weight) is nn.Parameter


def test_refusals(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="did you mean 'torchao-int8'"):
        load_low_bit(tmp_path, "torchao-int")
    kind = next(filter(runs_here, LOW_BIT), None)
    if kind is not None:
        with pytest.raises(ConfigError, match="holds no model"):
            load_low_bit(tmp_path, kind)
    if not torch.cuda.is_available() and importlib.util.find_spec("torchao"):
        with pytest.raises(ConfigError, match=r"'torchao-int8' does not work on cuda here .*use another of"):
            load_low_bit(tmp_path, "torchao-int8", "cuda")
    with pytest.raises(ConfigError, match=r"'sparse24' does not work on cpu here .*Only CUDA"):
        load_low_bit(tmp_path, "sparse24")


def test_sparse_weights_are_told_from_others() -> None:
    linear, fits = nn.Linear(64, 32), LOW_BIT["sparse24"].fits
    assert not fits(linear)
    linear.weight.data.masked_fill_(least_in_groups(linear.weight.abs(), 2, 4), 0)
    assert fits(linear)
    linear.weight.data[-1, -4:] = 1
    assert not fits(linear)
    assert not fits(nn.Linear(32, 32))


def test_no_layer_of_its_kind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(low_bit, "require_low_bit", lambda kind, device: None)
    folder, _ = saved(tmp_path / "model")
    with pytest.raises(ConfigError, match="'sparse24' takes weights of which two in every four are zero"):
        load_low_bit(folder, "sparse24")


def test_missing_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "bitsandbytes", None)
    with pytest.raises(ImportError, match=r"pip install 'hf-efficient\[bitsandbytes\]'"):
        load_low_bit(".", "bitsandbytes-nf4")


@pytest.mark.gpu
@pytest.mark.parametrize("kind", [kind for kind in LOW_BIT if kind != "sparse24"])
def test_on_a_gpu(kind: str, tmp_path: Path) -> None:
    folder, batch = saved(tmp_path / "model")
    model = load_low_bit(folder, kind, "cuda")
    with torch.no_grad():
        assert model(**{name: value.cuda() for name, value in batch.items()}).logits.isfinite().all()


@pytest.mark.gpu
def test_sparse_weights_on_a_gpu(tmp_path: Path) -> None:
    """What two of four weights say on sparse tensor cores, they say on dense ones."""
    if torch.cuda.get_device_capability() < (8, 0):
        pytest.skip("no sparse tensor cores here")
    folder = tiny_checkpoint(tmp_path / "model", hidden_size=64, intermediate_size=128)
    model = widened(class_of(folder).from_pretrained(folder))
    for module in model.bert.encoder.modules():
        if isinstance(module, nn.Linear):
            module.weight.data.masked_fill_(least_in_groups(module.weight.abs(), 2, 4), 0)
    model.save_pretrained(folder)
    sparse = load_low_bit(folder, "sparse24", "cuda")
    assert low_bit_layers(sparse) == 6
    inputs = torch.arange(6, device="cuda").reshape(2, 3)
    with torch.no_grad():
        found, expected = sparse(inputs).logits, model.cuda()(inputs).logits
    assert (found - expected).abs().max() < 0.05 * expected.abs().max()


@pytest.mark.parametrize("target", ["torchao-int8", "torchao-int4"])
def test_what_was_trained_for_it_is_kept(target: str, tmp_path: Path) -> None:
    if not runs_here(target):
        pytest.skip(f"{target} does not work here")
    from hf_efficient.optimizations.quantization import TARGETS
    from hf_efficient.rounding import Rounding

    folder = tiny_checkpoint(tmp_path / "model", hidden_size=GROUP, intermediate_size=2 * GROUP)
    model = class_of(folder).from_pretrained(folder).eval()
    before = model.bert.pooler.dense.weight.clone()
    Rounding(TARGETS[target]).fold(model)
    assert not torch.equal(before, model.bert.pooler.dense.weight)
    model.save_pretrained(folder)
    loaded = load_low_bit(folder, target)
    found = loaded.bert.pooler.dense.weight.dequantize()
    torch.testing.assert_close(found, model.bert.pooler.dense.weight, rtol=1e-5, atol=1e-7)

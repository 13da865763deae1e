"""Weight fusion as users set it up; what every optimization does is in `tests/test_contract.py`."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from hf_efficient import ConfigError, ConflictError, EfficientTrainer, EfficientTrainingArguments, NoEffectWarning, Plan
from hf_efficient.cutting.merging import Merges, find_merges, fold
from hf_efficient.cutting.observation import divergence, logits_on, moments
from hf_efficient.cutting.shape import cut
from hf_efficient.functional.cluster import BITS
from hf_efficient.optimizations import weight_fusion
from hf_efficient.optimizations.weight_fusion import WeightFusion
from hf_efficient.plan import build_optimizations
from tests.exports import widened
from tests.kill import assert_survives_a_kill
from tests.test_parity import assert_same_tensors, build, train
from tests.tiny import KINDS, text_examples, text_model


def trainer(folder: Path, kind: str = "text", given: Any = None, more: Any = None, **settings: Any) -> Any:
    arguments = {"dense_epochs": 2 if "merge" in settings or "merge_heads" in settings else 0, "measure_seconds": 0}
    optimizations = {"weight_fusion": settings, **(more or {})}
    return build(
        EfficientTrainer, EfficientTrainingArguments, folder, kind, given, optimizations=optimizations, **arguments
    )


def matrices(model: Any) -> dict[str, torch.Tensor]:
    return {name: weight for name, weight in model.state_dict().items() if weight.dim() == 2 and "position" not in name}


@pytest.mark.parametrize("bits", BITS)
def test_weights_are_shared_from_the_start_given(bits: int, tmp_path: Path) -> None:
    one = trainer(tmp_path, cluster=bits)
    train(one)
    described = one.optimizations[0].describe()
    assert (described["bits"], described["from_step"]) == (bits, 6)
    large = [weight for weight in matrices(one.model).values() if weight.numel() >= 512]
    assert len(large) == described["clustered_tensors"] == 7 if bits == 8 else len(large) < 9
    assert all(len(weight.unique()) <= 2**bits for weight in large)
    early, late = (type(one.model).from_pretrained(tmp_path / f"checkpoint-{step}").state_dict() for step in (4, 8))
    name = "bert.encoder.layer.0.intermediate.dense.weight"
    assert len(early[name].unique()) > 256 >= 2**bits >= len(late[name].unique())


def test_embeddings_can_be_left_alone(tmp_path: Path) -> None:
    one = trainer(tmp_path, cluster=4, embeddings=False)
    train(one)
    assert len(one.model.bert.embeddings.word_embeddings.weight.unique()) > 16
    assert len(one.model.bert.pooler.dense.weight.unique()) <= 16


def test_gradients_and_weights_are_those_of_a_codebook(tmp_path: Path) -> None:
    """A step of plain gradient descent moves each number by the mean of its weights' gradients."""
    one = trainer(tmp_path, cluster=2, start=0.0)
    fusion, model = one.optimizations[0], one.model
    state = type("State", (), {"max_steps": 4, "global_step": 0})()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    hook = {"model": model, "optimizer": optimizer}
    fusion.on_train_begin(one.args, state, None, **hook)
    layer = model.bert.encoder.layer[0].intermediate.dense
    before = layer.weight.detach().clone()
    assert len(before.unique()) == 4
    model(**one.collate(one.examples(one.train_dataset, 4))).loss.backward()
    gradient = layer.weight.grad.clone()
    fusion.on_pre_optimizer_step(one.args, state, None, **hook)
    optimizer.step()
    fusion.on_optimizer_step(one.args, state, None, **hook)
    for value in before.unique():
        members = before == value
        moved = layer.weight.detach()[members].unique()
        assert len(moved) == 1
        torch.testing.assert_close(moved[0], value - 0.5 * gradient[members].mean())


def test_codebooks_learn(tmp_path: Path) -> None:
    """Two bits, trained for a while, fit what was learnt better than two bits at the end."""
    losses = []
    for name, start in (("with", 0.5), ("without", 1.0)):
        options = {"optimizations": {"weight_fusion": {"cluster": 2, "start": start}}, "num_train_epochs": 10}
        one = build(EfficientTrainer, EfficientTrainingArguments, tmp_path / name, measure_seconds=0, **options)
        train(one)
        assert len(one.model.bert.pooler.dense.weight.unique()) <= 4
        losses.append(one.evaluate(one.train_dataset)["eval_loss"])
    assert losses[0] < 0.95 * losses[1]


LOAD = """
import sys, hf_efficient, torch
from transformers import AutoModelForSequenceClassification as A
torch.save(A.from_pretrained(sys.argv[1]).state_dict(), sys.argv[2])
"""


def test_loads_bit_equal_in_a_fresh_process(tmp_path: Path) -> None:
    one = trainer(tmp_path / "out", cluster=4)
    train(one)
    command = [sys.executable, "-c", LOAD, str(one.finished), str(tmp_path / "weights.pt")]
    subprocess.run(command, check=True, capture_output=True)
    assert_same_tensors(torch.load(tmp_path / "weights.pt"), dict(one.model.state_dict()))


def test_best_checkpoint_from_before_the_start_is_shared_at_the_end(tmp_path: Path) -> None:
    one = trainer(tmp_path, cluster=4, start=0.9)
    train(one)
    fusion = one.optimizations[0]
    loaded = type(one.model).from_pretrained(tmp_path / "checkpoint-4")
    fusion.finalize(loaded)
    assert all(len(weight.unique()) <= 16 for weight in matrices(loaded).values() if weight.numel() >= 512)


def test_zeros_stay_zero(tmp_path: Path) -> None:
    model = text_model()
    weight = model.bert.encoder.layer[0].intermediate.dense.weight
    weight.data[:, ::2] = 0
    one = trainer(tmp_path, given={"model": model}, cluster=4, start=0.0)
    train(one)
    found = one.model.bert.encoder.layer[0].intermediate.dense.weight
    assert found[:, ::2].eq(0).all()
    assert found[:, 1::2].ne(0).all()


@pytest.mark.parametrize("optim", ["adamw_torch", "adafactor"])
def test_resumes_in_the_middle(optim: str, tmp_path: Path) -> None:
    """Of the part in which weights are shared: checkpoint 8 of 12 steps."""
    options = {"optimizations": {"weight_fusion": {"cluster": 4, "start": 0.5}}, "measure_seconds": 0, "optim": optim}

    def make(folder: str, given: Any = None) -> Any:
        return build(EfficientTrainer, EfficientTrainingArguments, tmp_path / folder, given=given, **options)

    whole = make("whole")
    train(whole)
    resumed = make("whole")
    train(resumed, resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-8"))
    assert_same_tensors(dict(whole.model.state_dict()), dict(resumed.model.state_dict()))


@pytest.mark.parametrize("kind", ["text", "token", "vision", "seq2seq"])
def test_merged_and_shared_in_a_cut_and_taught_model(kind: str, tmp_path: Path) -> None:
    more = {
        "structured_pruning": {"keep_layers": 2, "keep_ffn": 0.5, "importance": "obs", "calibration_batches": 4},
        "distillation": {"teacher": "self"},
    }
    one = trainer(tmp_path, kind, more=more, merge=0.25, cluster=4, calibration_batches=4)
    one.args.dense_epochs = 6
    train(one)
    described = {each.name: each.describe() for each in one.optimizations}
    stacks = 2 if kind == "seq2seq" else 1
    fused = described["weight_fusion"]
    assert (fused["merged_units"], fused["of_units"]) == (8 * stacks, 32 * stacks)
    assert sum(sum(kinds["ffn"]) for kinds in fused["widths"].values()) == 24 * stacks
    loaded = type(one.model).from_pretrained(one.finished).eval()
    batch = one.collate(one.examples(one.eval_dataset, 4))
    with torch.no_grad():
        assert torch.equal(loaded(**batch).logits, one.model.eval()(**batch).logits)


def test_with_a_trimmed_vocabulary(tmp_path: Path) -> None:
    one = trainer(tmp_path, more={"vocabulary_trimming": {"size": 32}}, cluster=4)
    train(one)
    loaded = type(one.model).from_pretrained(one.finished)
    assert loaded.get_input_embeddings().weight.shape[0] == 32
    assert_same_tensors(dict(loaded.state_dict()), dict(one.model.state_dict()))


def batches() -> list[dict[str, torch.Tensor]]:
    kind = KINDS["text"]
    return [kind.trainer["data_collator"](text_examples(16, seed=seed).examples) for seed in range(4)]


def test_duplicates_are_merged_without_loss() -> None:
    """Each second feature of a layer says what the one before it does, and gives something else."""
    model = widened(text_model())
    layer = model.bert.encoder.layer[1]
    with torch.no_grad():
        for parameter in layer.intermediate.dense.parameters():
            parameter[1::2] = parameter[0::2]
    given = batches()
    reference = logits_on(model, given)
    found = moments(model, given)
    merges = find_merges(model, found, {"ffn": 16 / 96}, alike=0.0)
    assert [key for key, _ in merges.pairs] == [("encoder.layer", 1, "ffn")]
    assert merges.lost == pytest.approx(0, abs=1e-4)
    assert {tuple(sorted(pair)) for pair in merges.pairs[0][1]} == {(unit, unit + 1) for unit in range(0, 32, 2)}
    shape = merges.shape(model)
    fold(model, found, Merges.from_list(json.loads(json.dumps(merges.to_list()))))
    cut(model, shape)
    assert layer.output.dense.in_features == 16
    assert divergence(model, given, reference) == pytest.approx(0, abs=1e-5)


def test_heads_are_merged(tmp_path: Path) -> None:
    one = trainer(tmp_path, merge_heads=0.34, calibration_batches=4)
    train(one)
    described = one.optimizations[0].describe()
    assert (described["merged_units"], described["of_units"]) == (2, 6)
    assert sorted(described["widths"]["encoder.layer"]["attention"]) == [1, 1, 2]
    assert described == json.loads(json.dumps(described))


def test_units_that_are_not_alike_stay(tmp_path: Path) -> None:
    one = trainer(tmp_path, merge=0.5, threshold=1.0, calibration_batches=4)
    with pytest.warns(NoEffectWarning, match="alike enough"):
        train(one)
    assert one.model.config.intermediate_size == 32


def test_kill_between_choosing_and_merging(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings: dict[str, Any] = {"merge": 0.25, "calibration_batches": 4}
    assert_survives_a_kill(trainer, WeightFusion, weight_fusion, tmp_path, monkeypatch, **settings)


def test_report_tells_the_packed_size(tmp_path: Path) -> None:
    options = {"optimizations": {"weight_fusion": {"cluster": 4}}, "measure_seconds": 0.01}
    one = build(EfficientTrainer, EfficientTrainingArguments, tmp_path, **options)
    train(one)
    assert one.report.after.bytes_on_disk == (one.finished / "model.safetensors").stat().st_size
    assert "indices into codebooks" in (one.finished / "README.md").read_text()


def test_untrained_model_is_refused(tmp_path: Path) -> None:
    model = text_model()
    nn.init.zeros_(model.classifier.weight)
    one = trainer(tmp_path, given={"model": model}, merge=0.25)
    one.args.dense_epochs = 0
    with pytest.raises(ConfigError, match="dense_epochs"):
        one.train()
    assert model.config.intermediate_size == 32


def test_family_that_cannot_be_cut_is_refused(tmp_path: Path) -> None:
    model = text_model()
    model.config.model_type = "unheard-of"
    with pytest.raises(ConfigError, match="cannot cut layers of a 'unheard-of' model"):
        trainer(tmp_path, given={"model": model}, merge=0.1)
    trainer(tmp_path, given={"model": model}, cluster=4)


def test_rounding_and_codebooks_exclude_each_other() -> None:
    settings: Any = {"quantization": {}, "weight_fusion": {"merge": 0.1}}
    Plan(build_optimizations(settings))
    settings["weight_fusion"]["cluster"] = 4
    with pytest.raises(ConflictError, match="weight_fusion and quantization"):
        Plan(build_optimizations(settings))


def test_nothing_to_gain_is_said(tmp_path: Path) -> None:
    model = text_model(vocab_size=48, hidden_size=4, intermediate_size=8)
    with pytest.warns(NoEffectWarning, match="no tensor gets smaller"):
        train(trainer(tmp_path, given={"model": model}, cluster=8))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"merge": 1.0}, r"merge must be in \[0, 1\)"),
        ({"merge_heads": -0.1}, r"merge_heads must be in \[0, 1\)"),
        ({"threshold": 2}, "threshold must be from 0 to 1"),
        ({"start": 1.5}, "start must be from 0 to 1"),
        ({"cluster": 3}, "cluster"),
        ({"calibration_batches": 0}, "at least 1"),
    ],
)
def test_bad_settings(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build_optimizations({"weight_fusion": settings})

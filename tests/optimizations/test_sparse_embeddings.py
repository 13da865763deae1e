"""sparse_embeddings: exact with plain gradient descent, and only where rows are a layer's own."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import Trainer, TrainingArguments, set_seed

from hf_efficient import ConfigError, EfficientTrainer, EfficientTrainingArguments, NoEffectWarning
from hf_efficient.optimizations.sparse_embeddings import SparseEmbeddings, _tables
from hf_efficient.proposal import Observed
from tests.test_parity import build
from tests.tiny import VOCABULARY, image_model, seq2seq_model, text_model


def trained(folder: Path, sparse: bool, **options: Any) -> Any:
    cls, args = (EfficientTrainer, EfficientTrainingArguments) if sparse else (Trainer, TrainingArguments)
    if sparse:
        options = {**options, "optimizations": {"sparse_embeddings": {"min_rows": 8}}, "measure_seconds": 0}
    trainer = build(cls, args, folder, **options)
    set_seed(0)
    trainer.train()
    return trainer


@pytest.mark.parametrize(
    "options",
    [{}, {"gradient_accumulation_steps": 2}, {"max_grad_norm": 0.0}, {"max_grad_norm": 0.05}],
    ids=["plain", "accumulated", "not clipped", "clipped"],
)
def test_plain_gradient_descent_is_that_of_stock(tmp_path: Path, options: dict[str, Any]) -> None:
    options = {"optim": "sgd", "learning_rate": 0.3, "save_strategy": "no", **options}
    stock, ours = (trained(tmp_path / str(sparse), sparse, **options) for sparse in (False, True))
    for name, weight in stock.model.state_dict().items():
        torch.testing.assert_close(ours.model.state_dict()[name], weight, rtol=1e-4, atol=1e-6)
    norms = [[entry["grad_norm"] for entry in one.state.log_history if "grad_norm" in entry] for one in (stock, ours)]
    assert norms[0] == pytest.approx(norms[1], rel=1e-4)


def test_adamw_learns_as_much(tmp_path: Path) -> None:
    stock, ours = (trained(tmp_path / str(sparse), sparse, save_strategy="no") for sparse in (False, True))
    losses = [one.evaluate()["eval_loss"] for one in (stock, ours)]
    assert losses[1] == pytest.approx(losses[0], rel=0.2)
    assert ours.optimizations[0].describe()["rows_seen"] < ours.optimizations[0].describe()["rows"]
    assert not any(module.sparse for module in ours.model.modules() if isinstance(module, torch.nn.Embedding))


def test_which_tables() -> None:
    (table,) = _tables(text_model(), VOCABULARY)
    assert table.num_embeddings == VOCABULARY
    assert not list(_tables(image_model(), 1))
    assert not [
        one for one in _tables(seq2seq_model(), VOCABULARY) if one.num_embeddings == VOCABULARY
    ]  # the head's too
    frozen = text_model()
    frozen.requires_grad_(False)
    assert not list(_tables(frozen, 1))


def test_what_it_does_not_go_with(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="optim=adafactor; allowed: adamw_torch"):
        trained(tmp_path, True, optim="adafactor")
    with pytest.raises(ConfigError, match="SGD without momentum"):
        trained(tmp_path, True, optim="sgd", optim_args="momentum=0.9")
    with pytest.raises(ConfigError, match="min_rows must be at least 1"):
        SparseEmbeddings(min_rows=0)


def test_without_large_tables_it_warns(tmp_path: Path) -> None:
    options = {"optimizations": {"sparse_embeddings": {}}, "measure_seconds": 0}
    trainer = build(EfficientTrainer, EfficientTrainingArguments, tmp_path, **options)
    with pytest.warns(NoEffectWarning, match="no trained embeddings of its own of 1024 rows"):
        trainer.train()


def test_it_is_proposed_by_the_size_of_the_tables(tmp_path: Path) -> None:
    args = EfficientTrainingArguments(str(tmp_path), use_cpu=True)
    large = text_model(vocab_size=4096)
    (proposal,) = SparseEmbeddings.proposals(Observed(args, large, computing=0.8, updating=0.2))
    assert 0.12 < proposal.gain < 0.15 * 0.8 + 0.2
    assert not list(SparseEmbeddings.proposals(Observed(args, text_model(), computing=0.8, updating=0.2)))

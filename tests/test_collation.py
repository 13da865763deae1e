"""Batches behind the map of an optimization: each mapped once, also after a training, in the next, and in workers.

No worker is started: it would be forked from a process in which other tests have left the threads of runtimes.
"""

import pickle
import warnings
from pathlib import Path
from typing import Any

import torch
from transformers import DataCollatorWithPadding

from hf_efficient import NoEffectWarning, StructuredPruning, VocabularyTrimming
from tests.functional.test_vocabulary import CORPUS
from tests.optimizations.test_vocabulary_trimming import examples, fast, small_bert, trainer
from tests.test_parity import assert_same_tensors
from tests.tiny import VOCABULARY, Examples, pad, text_examples


def expected_ids(one: Any, rows: list[Any]) -> torch.Tensor:
    """Ids of ``rows`` mapped once, by what the checkpoint says was kept."""
    state = torch.load(Path(one.args.output_dir) / "checkpoint-4" / "optimizations.pt", weights_only=True)
    kept = state["optimizations"]["vocabulary_trimming"]["kept"]
    new = [kept.index(index) if index in kept else 0 for index in range(VOCABULARY)]
    ids = pad(rows)["input_ids"]
    return torch.tensor(new)[ids]


def test_every_batch_is_mapped_once(tmp_path: Path) -> None:
    one = trainer(tmp_path, train_sampling_strategy="sequential")
    own = one.data_collator
    before = one.evaluate()["eval_loss"]  # by the parent's ids
    one.train()
    rows = one.train_dataset.examples[:8]
    expected = expected_ids(one, rows)
    assert torch.equal(one.collate(rows)["input_ids"], expected)
    assert torch.equal(next(iter(one.get_train_dataloader()))["input_ids"], expected)
    assert torch.equal(next(iter(one.get_test_dataloader(Examples(rows))))["input_ids"], expected)
    as_a_worker_gets_it = pickle.loads(pickle.dumps(one.data_collator))
    assert torch.equal(as_a_worker_gets_it(rows)["input_ids"], expected)
    order = torch.randperm(48, generator=torch.Generator().manual_seed(one.args.seed))[:8].tolist()
    chosen = sorted((one.train_dataset[index] for index in order), key=lambda example: len(example["input_ids"]))
    drawn = expected_ids(one, chosen)
    assert torch.equal(one._calibration_batches(1)[0]["input_ids"], drawn)
    assert one.evaluate()["eval_loss"] < before
    assert one.predict(Examples(rows)).predictions.shape == (8, 2)
    assert one.data_collator.collator is own


def test_nothing_is_wrapped_where_nothing_maps(tmp_path: Path) -> None:
    one = trainer(tmp_path, optimizations={"structured_pruning": {"keep_layers": [0]}}, max_steps=1)
    one.train()
    assert one.data_collator is pad


def test_trained_twice(tmp_path: Path) -> None:
    """The second training takes the model as it is; resuming on the same trainer does so too."""
    one = trainer(tmp_path)
    one.train()
    kept = one.optimizations[0].state_dict()
    rows = one.train_dataset.examples[:4]
    expected = one.collate(rows)
    with warnings.catch_warnings():
        warnings.simplefilter("error", NoEffectWarning)
        one.train()
    assert one.optimizations[0].state_dict() == kept
    assert_same_tensors(dict(one.collate(rows)), dict(expected))
    one.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    assert_same_tensors(dict(one.collate(rows)), dict(expected))


def test_a_new_model_starts_from_the_parents_vocabulary(tmp_path: Path, default_model: str) -> None:
    tokenizer = fast("all-MiniLM", default_model)
    data = examples(tokenizer, CORPUS)
    given = {
        "model_init": lambda: small_bert(len(tokenizer)),
        "train_dataset": data,
        "eval_dataset": data,
        "processing_class": tokenizer,
        "data_collator": DataCollatorWithPadding(tokenizer),
    }
    one = trainer(tmp_path, {}, given, max_steps=2)
    sizes = []
    for _ in range(2):
        one.train()
        sizes.append(len(one.processing_class))
        assert one.callback_handler.processing_class is one.processing_class
        assert int(one.collate(data.examples[:4])["input_ids"].max()) < sizes[-1]
    assert sizes[0] == sizes[1] == one.model.config.vocab_size < len(tokenizer)


def test_an_instance_shared_by_two_trainers(tmp_path: Path) -> None:
    shared = VocabularyTrimming(size=32)
    given = {"callbacks": [shared]}
    first = trainer(tmp_path / "first", optimizations=None, given=given, max_steps=2)
    first.train()
    rows = first.train_dataset.examples[:8]
    expected = first.collate(rows)
    other = {**given, "train_dataset": text_examples(16, seed=5)}
    second = trainer(tmp_path / "second", optimizations=None, given=other, max_steps=2)
    second.train()
    assert not torch.equal(second.collate(rows)["input_ids"], expected["input_ids"])
    assert_same_tensors(dict(first.collate(rows)), dict(expected))
    first.evaluate()


def test_a_later_optimization_calibrates_on_mapped_batches(tmp_path: Path) -> None:
    optimizations = {
        "vocabulary_trimming": {"size": 32},
        "structured_pruning": {"keep_layers": 2, "calibration_batches": 2},
    }
    one = trainer(tmp_path, optimizations=optimizations, dense_epochs=6)
    one.train()
    assert (one.model.config.vocab_size, one.model.config.num_hidden_layers) == (32, 2)
    pruned = next(each for each in one.optimizations if isinstance(each, StructuredPruning))
    assert pruned.describe()

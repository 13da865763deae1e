"""data_pruning: what each pass holds and weighs; what every optimization does is in `tests/test_contract.py`."""

import itertools
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import TrainerCallback

from hf_efficient import ConfigError, DataPruning, EfficientTrainer, EfficientTrainingArguments, NoEffectWarning
from tests.test_parity import build
from tests.tiny import VOCABULARY, Examples, pad


class Seen(TrainerCallback):
    """Every batch that the model trains on."""

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        self.batches: list[torch.Tensor] = []
        model.register_forward_pre_hook(self.note, with_kwargs=True)

    def note(self, module: Any, args: Any, kwargs: Any) -> None:
        if module.training:
            self.batches.append(kwargs["input_ids"])


def examples(count: int = 48) -> Examples:
    """The tokens tell which example it is; one label in four is wrong, so that losses differ."""
    rows = []
    for index in range(count):
        tokens = torch.full((2 + index % 5,), index % VOCABULARY)
        label = index % 2 if index % 4 < 3 else 1 - index % 2
        rows.append({"input_ids": tokens, "attention_mask": torch.ones_like(tokens), "labels": label})
    return Examples(rows)


def trained(folder: Path, settings: dict[str, Any], others: dict[str, Any] | None = None, **options: Any) -> Any:
    seen = Seen()
    given = {"callbacks": [seen], "train_dataset": examples(), **options.pop("given", {})}
    optimizations = {"data_pruning": settings, **(others or {})}
    options = {"num_train_epochs": 5, "measure_seconds": 0, "save_strategy": "no", **options}
    made = build(
        EfficientTrainer, EfficientTrainingArguments, folder, given=given, optimizations=optimizations, **options
    )
    made.train()
    return made, seen.batches


def ids(batches: list[torch.Tensor]) -> Counter:
    return Counter(int(row[0]) for batch in batches for row in batch)


@pytest.mark.parametrize("others", [{}, {"length_batching": {"window_batches": 2}}], ids=["alone", "by length"])
def test_passes(others: dict[str, Any], tmp_path: Path) -> None:
    made, batches = trained(tmp_path, {}, others)
    told = next(one for one in made.optimizations if one.name == "data_pruning").describe()
    assert told == {"passes": 5, "pruned_passes": 3, "examples_spared": pytest.approx(3 * 18 / (5 * 48))}
    assert made.state.global_step == 20  # 6 + 3 * 4 + 6 = 24 steps make 4 in each of 5 epochs, and 4 are over
    edges = [0, 6, 10, 14, 18, 20]
    passes = [ids(batches[start:stop]) for start, stop in itertools.pairwise(edges)]
    assert passes[0] == Counter(range(48))
    for found in passes[1:4]:
        assert len(found) == 30
        assert set(found.values()) == {1}
    assert len({frozenset(found) for found in passes[1:4]}) == 3
    assert (len({batch.shape[1] for batch in batches}) > 2) == bool(others)


def test_losses_decide_and_weights_make_up(tmp_path: Path) -> None:
    """The loss that is trained on is the weighted mean of the examples' losses."""
    told: list[tuple[float, float]] = []

    class Checked(DataPruning):
        def loss(self, loss: Any, inputs: Any, outputs: Any, scale: Any) -> Any:
            position = self._position
            batch = list(self._sampler._given[position])
            result = super().loss(loss, inputs, outputs, scale)
            each = torch.nn.functional.cross_entropy(outputs.logits, inputs["labels"], reduction="none")
            weights = self._sampler.weights_at(position)[batch]
            told.append((float(result.detach() / scale), float((weights * each).mean().detach())))
            return result

    given = {"callbacks": [Checked()], "train_dataset": examples()}
    options = {"num_train_epochs": 5, "measure_seconds": 0, "save_strategy": "no"}
    made = build(EfficientTrainer, EfficientTrainingArguments, tmp_path, given=given, **options)
    made.train()
    assert len(told) == 20
    for ours, expected in told:
        assert ours == pytest.approx(expected, rel=1e-4)
    (pruning,) = made.optimizations
    scores = pruning.state_dict()["scores"]
    assert torch.isfinite(scores).all()
    assert scores.std() > 0


def test_max_steps_are_kept(tmp_path: Path) -> None:
    made, batches = trained(tmp_path, {}, max_steps=17)
    assert made.state.global_step == len(batches) == 17
    assert ids(batches[:6]) == Counter(range(48))
    assert ids(batches[6:10]).total() == 30


def test_gradient_accumulation(tmp_path: Path) -> None:
    made, batches = trained(tmp_path, {"ending": 0.0}, num_train_epochs=4, gradient_accumulation_steps=2)
    assert made.state.global_step == 8  # 3 + 3 * 2, shared out evenly
    assert len(batches) == 16
    assert ids(batches[:6]) == Counter(range(48))
    assert ids(batches[6:10]).total() == 30


def test_a_loss_of_another_kind_is_refused(tmp_path: Path) -> None:
    def doubled(outputs: Any, labels: Any, num_items_in_batch: Any = None) -> Any:
        return 2 * torch.nn.functional.cross_entropy(outputs.logits, labels)

    with pytest.raises(ConfigError, match="but the training's loss is"):
        trained(tmp_path, {}, given={"compute_loss_func": doubled})


def test_two_rows_for_an_example_are_refused(tmp_path: Path) -> None:
    def doubled(rows: list[Any]) -> dict[str, torch.Tensor]:
        return pad([row for row in rows for _ in range(2)])

    with pytest.raises(ConfigError, match="the collator made 16 rows of 8 examples; each must stay one row"):
        trained(tmp_path, {}, given={"data_collator": doubled})


def test_too_few_passes(tmp_path: Path) -> None:
    with pytest.warns(NoEffectWarning, match="with low=0.75, ratio=0.5 and 2 passes over 48 examples"):
        made, batches = trained(tmp_path, {}, num_train_epochs=2)
    assert len(batches) == 12
    assert made.optimizations[0].describe() == {}


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "low": ({"low": 1.5}, "low must be from 0 to"),
    "ratio": ({"ratio": 1.0}, "ratio must be from 0 to below 1, got 1"),
    "ending": ({"ending": -0.1}, "ending must be from 0"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_settings(case: str) -> None:
    settings, message = BAD[case]
    with pytest.raises(ConfigError, match=message):
        DataPruning(**settings)


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "sampling": ({"train_sampling_strategy": "group_by_length"}, "drop train_sampling_strategy=group_by_length"),
    "skip": ({"ignore_data_skip": True}, "drop ignore_data_skip"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_arguments(case: str, tmp_path: Path) -> None:
    options, message = REFUSED[case]
    with pytest.raises(ConfigError, match=message):
        trained(tmp_path, {}, **options)

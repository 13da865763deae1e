"""What batches weigh, and the order in which evaluation results come back."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from transformers import TrainerCallback

from hf_efficient import EfficientTrainer, EfficientTrainingArguments, LengthBatching, Optimization, Order
from hf_efficient.batches import Items, count_items, lengths_of
from tests.test_parity import build
from tests.tiny import KINDS, Examples, text_model

FLAT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


class Gradients(TrainerCallback):
    """Adds up the gradients of all steps."""

    def __init__(self) -> None:
        self.total: dict[str, torch.Tensor] = {}
        self.steps = 0

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        self.steps += 1
        for name, parameter in model.named_parameters():
            if parameter.grad is not None:
                self.total[name] = self.total.get(name, 0) + parameter.grad.clone()


def summed_loss(outputs: Any, labels: torch.Tensor, num_items_in_batch: Any = None) -> torch.Tensor:
    """Divides by the items of the whole step, as losses of transformers' decoders do."""
    logits = outputs.logits.flatten(0, -2)
    return torch.nn.functional.cross_entropy(logits, labels.flatten(), reduction="sum") / num_items_in_batch


def model_of(kind: str) -> Any:
    model = KINDS[kind].model()
    for module in model.modules():
        for name in ("p", "dropout", "activation_dropout", "attention_dropout"):
            if type(getattr(module, name, None)) is float:
                setattr(module, name, 0.0)
    return model


def mean_gradient(kind: str, examples: Examples) -> dict[str, torch.Tensor]:
    """Gradient of the mean loss over all examples, or all labelled tokens, as one batch."""
    model = model_of(kind).eval()
    model(**KINDS[kind].trainer["data_collator"](list(examples))).loss.backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize("loss", [None, summed_loss])
@pytest.mark.parametrize("kind", ["text", "token", "seq2seq"])
def test_epoch_of_gradients_is_that_of_all_data(tmp_path: Path, kind: str, loss: Any, accumulation: int) -> None:
    examples, gradients = KINDS[kind].examples(), Gradients()
    given = {
        "model": model_of(kind).eval(),
        "train_dataset": examples,
        "callbacks": [gradients, LengthBatching(window_batches=4)],
        "compute_loss_func": loss,
    }
    options = {
        "num_train_epochs": 1,
        "learning_rate": 0.0,
        "max_grad_norm": 0.0,
        "gradient_accumulation_steps": accumulation,
        "measure_seconds": 0,
    }
    trainer = build(EfficientTrainer, EfficientTrainingArguments, tmp_path, kind=kind, given=given, **options)
    trainer.train()
    expected = mean_gradient(kind, examples)
    # Losses that take the number of items and ignore it are summed over micro-batches by the stock Trainer
    ignores = loss is None and trainer.model_accepts_loss_kwargs and not trainer._counts_items
    factor = gradients.steps * (accumulation if ignores else 1)
    assert gradients.total.keys() == expected.keys()
    for name, total in gradients.total.items():
        torch.testing.assert_close(total, expected[name] * factor, rtol=1e-4, atol=1e-5, msg=name)


@pytest.mark.parametrize("accumulation", [1, 2])
def test_clipping_keeps_the_weights(tmp_path: Path, accumulation: int) -> None:
    """Where every step is clipped, a step's gradient is as long as it holds examples."""
    norms, sizes = [], []

    class Note(TrainerCallback):
        def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
            norms.append(torch.nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None]))

    def collate(examples: list[Any]) -> Any:
        sizes.append(len(examples))
        return KINDS["text"].trainer["data_collator"](examples)

    given = {"callbacks": [Note(), LengthBatching()], "data_collator": collate}
    options = {"num_train_epochs": 1, "max_grad_norm": 1e-3, "learning_rate": 0.0, "measure_seconds": 0}
    trainer = build(
        EfficientTrainer,
        EfficientTrainingArguments,
        tmp_path,
        given=given,
        gradient_accumulation_steps=accumulation,
        **options,
    )
    trainer.train()
    assert trainer.args.max_grad_norm == 1e-3
    steps = [sum(sizes[start : start + accumulation]) for start in range(0, len(sizes), accumulation)]
    assert len(set(steps)) > 1
    mean = sum(steps) / len(steps)
    assert [float(norm) for norm in norms] == pytest.approx([1e-3 * size / mean for size in steps], rel=1e-3)


@pytest.mark.parametrize(
    ("labels", "shifted", "count"),
    [
        (torch.tensor([1, 0, 2]), False, 3),
        (torch.tensor([[1, -100], [2, 3]]), False, 3),
        (torch.tensor([[1, -100], [2, 3]]), True, 1),
        (torch.tensor([0.5, 0.1]), False, 2),
        (torch.tensor([[0.0, 1.0], [1.0, 1.0], [0.0, 0.0]]), False, 3),
    ],
)
def test_count_items(labels: torch.Tensor, shifted: bool, count: int) -> None:
    assert int(count_items(labels, shifted)) == count


def test_items_of_a_data_set_without_labels() -> None:
    """The collator of a masked language model makes labels: tokens stand for them."""
    rows = datasets.Dataset.from_dict({"input_ids": [[1, 2, 3], [4], [5, 6]]})
    items = Items.of(rows, lengths_of(rows), shifted=False, batches=2)
    mask = torch.tensor([[1, 1, 1], [1, 0, 0]])
    assert items.weight({"input_ids": mask, "attention_mask": mask}) == pytest.approx(4 / 3)


def test_lengths() -> None:
    rows = [{"input_ids": [1, 2, 3]}, {"input_ids": [4]}]
    stored = datasets.Dataset.from_list(rows)
    made = stored.with_transform(lambda batch: {"input_ids": [[*ids, 0] for ids in batch["input_ids"]]})
    assert lengths_of(stored).tolist() == [3, 1]
    assert lengths_of(stored.select([1])).tolist() == [1]
    assert lengths_of(made).tolist() == [4, 2]
    assert lengths_of(Examples(rows)).tolist() == [3, 1]
    assert lengths_of(Examples([{"pixel_values": torch.zeros(3, 8, 8)}])) is None


@pytest.mark.parametrize("kind", ["text", "token", "seq2seq"])
def test_predictions_come_back_in_order(tmp_path: Path, kind: str) -> None:
    seen = []

    def metrics(prediction: Any) -> dict[str, float]:
        seen.append(prediction.label_ids)
        return {}

    def make(folder: str, **options: Any) -> Any:
        given = {"compute_metrics": metrics}
        return build(EfficientTrainer, EfficientTrainingArguments, tmp_path / folder, kind=kind, given=given, **options)

    test = KINDS[kind].examples(23, seed=3)
    stock = make("stock").predict(test)
    ours = make("ours", optimizations={"length_batching": {}}).predict(test)
    assert np.array_equal(stock.label_ids, ours.label_ids)
    assert np.array_equal(seen[0], seen[1])
    assert stock.metrics["test_loss"] == pytest.approx(ours.metrics["test_loss"], rel=0.05)
    left, right = (result.predictions for result in (stock, ours))
    left, right = (value[0] if isinstance(value, tuple) else value for value in (left, right))
    valid = (
        np.ones(left.shape, bool) if kind == "text" else np.broadcast_to(ours.label_ids[..., None] != -100, left.shape)
    )
    assert np.allclose(left[valid], right[valid], atol=1e-5)


def test_evaluation_by_batch_keeps_the_data_s_order(tmp_path: Path) -> None:
    trainer = build(
        EfficientTrainer,
        EfficientTrainingArguments,
        tmp_path,
        given={"model": text_model(**FLAT), "compute_metrics": lambda prediction, compute_result: {}},
        batch_eval_metrics=True,
        optimizations={"length_batching": {}},
    )
    loader = trainer.get_eval_dataloader()
    assert [index for batch in loader.batch_sampler for index in batch] == list(range(24))


@dataclass(eq=False, kw_only=True)
class Halved(Optimization):
    """Trains on the first half of each micro-batch, and notes what it was given."""

    name = "halved"
    order = Order.DATA

    def __post_init__(self) -> None:
        self.given: list[int] = []

    def train_batch(self, batch: dict[str, Any]) -> dict[str, Any]:
        self.given.append(len(batch["labels"]))
        return {name: value[: len(value) // 2] for name, value in batch.items()}


class Sizes(TrainerCallback):
    """Examples of each batch that the model computes on, by whether it trains."""

    def __init__(self) -> None:
        self.seen: dict[bool, list[int]] = {True: [], False: []}

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        model.register_forward_pre_hook(self._note, with_kwargs=True)

    def _note(self, module: torch.nn.Module, given: Any, named: dict[str, Any]) -> None:
        self.seen[module.training].append(len(named["labels"]))


def test_batches_of_the_training_alone_are_changed(tmp_path: Path) -> None:
    halved, sizes = Halved(), Sizes()
    options = {"gradient_accumulation_steps": 3, "eval_strategy": "epoch", "num_train_epochs": 1, "measure_seconds": 0}
    given = {"callbacks": [halved, sizes]}
    build(EfficientTrainer, EfficientTrainingArguments, tmp_path, given=given, **options).train()
    assert halved.given == [8] * 6
    assert sizes.seen[True] == [4] * 6
    assert sizes.seen[False] == [16, 8]

"""With nothing on, EfficientTrainer is the stock Trainer: same numbers, same files, bit for bit."""

import inspect
import json
from pathlib import Path
from typing import Any

import datasets
import pytest
import safetensors.torch
import torch
import transformers
from transformers import Seq2SeqTrainer, Seq2SeqTrainingArguments, Trainer, TrainerCallback, TrainingArguments, set_seed

from hf_efficient import (
    EfficientSeq2SeqTrainer,
    EfficientSeq2SeqTrainingArguments,
    EfficientTrainer,
    EfficientTrainingArguments,
)
from tests.tiny import KINDS, Examples, arguments, pad, text_examples, text_model

CLOCK = ("runtime", "per_second", "preparation_time")


def without_clock(value: Any) -> Any:
    """``value`` without the figures that depend on the clock or the folder."""
    if isinstance(value, dict):
        return {
            key: without_clock(item)
            for key, item in value.items()
            if not key.endswith(CLOCK) and key not in ("output_dir", "logging_dir")
        }
    if isinstance(value, list):
        return [without_clock(item) for item in value]
    return Path(value).name if isinstance(value, str) and "checkpoint-" in value else value


def build(trainer: type, args: type, folder: Path, kind: str = "text", given: Any = None, **changes: Any) -> Any:
    """A trainer on tiny data; ``given`` are constructor arguments on top."""
    given = dict(given() if callable(given) else given or {})
    tiny = KINDS[kind]
    defaults = {"model": tiny.model(), "train_dataset": tiny.examples(), "eval_dataset": tiny.examples(24, seed=1)}
    if "model_init" in given:
        del defaults["model"]
    return trainer(args=arguments(args, folder, **changes), **{**defaults, **tiny.trainer, **given})


def pair(tmp_path: Path, **options: Any) -> tuple[Any, Any]:
    stock = build(Trainer, TrainingArguments, tmp_path / "stock", **options)
    return stock, build(EfficientTrainer, EfficientTrainingArguments, tmp_path / "ours", **options)


def train(*trainers: Any, **options: Any) -> list[dict[str, Any]]:
    """Train each from the same random state; their metrics."""
    metrics = []
    for trainer in trainers:
        set_seed(0)
        metrics.append(without_clock(trainer.train(**options).metrics))
    return metrics


def assert_same_tensors(left: Any, right: Any) -> None:
    if isinstance(left, torch.Tensor):
        assert torch.equal(left, right)
    elif isinstance(left, dict):
        assert left.keys() == right.keys()
        for key in left:
            assert_same_tensors(left[key], right[key])
    elif isinstance(left, list | tuple):
        assert len(left) == len(right)
        for one, other in zip(left, right, strict=True):
            assert_same_tensors(one, other)
    else:
        assert str(left) == str(right)


def assert_same_files(left: Path, right: Path) -> None:
    names = sorted(str(path.relative_to(left)) for path in left.rglob("*") if path.is_file())
    assert names == sorted(str(path.relative_to(right)) for path in right.rglob("*") if path.is_file())
    for name in names:
        one, other = left / name, right / name
        if name.endswith(".safetensors"):
            assert_same_tensors(safetensors.torch.load_file(one), safetensors.torch.load_file(other))
        elif name.endswith((".pt", ".pth")):
            assert_same_tensors(torch.load(one, weights_only=False), torch.load(other, weights_only=False))
        elif name.endswith(".json"):
            assert without_clock(json.loads(one.read_text())) == without_clock(json.loads(other.read_text()))


def assert_same(stock: Any, ours: Any) -> None:
    assert without_clock(stock.state.log_history) == without_clock(ours.state.log_history)
    assert_same_tensors(dict(stock.model.state_dict()), dict(ours.model.state_dict()))
    assert_same_files(Path(stock.args.output_dir), Path(ours.args.output_dir))


@pytest.mark.parametrize("kind", KINDS)
def test_training_is_equal(tmp_path: Path, kind: str) -> None:
    stock, ours = pair(tmp_path, kind=kind)
    assert isinstance(ours, Trainer)
    results = train(stock, ours)
    assert results[0] == results[1]
    assert_same(stock, ours)


def test_seq2seq_trainer_is_equal(tmp_path: Path) -> None:
    options = {
        "kind": "seq2seq",
        "predict_with_generate": True,
        "eval_strategy": "epoch",
        "generation_max_length": 6,
    }
    stock = build(Seq2SeqTrainer, Seq2SeqTrainingArguments, tmp_path / "stock", **options)
    ours = build(EfficientSeq2SeqTrainer, EfficientSeq2SeqTrainingArguments, tmp_path / "ours", **options)
    train(stock, ours)
    assert_same(stock, ours)
    predicted = [trainer.predict(trainer.eval_dataset).predictions for trainer in (stock, ours)]
    assert (predicted[0] == predicted[1]).all()


class Stop(TrainerCallback):
    """Stops after seven steps."""

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        control.should_training_stop = state.global_step >= 7


class Recorder(TrainerCallback):
    """Writes down the events it sees."""

    def __init__(self) -> None:
        self.events: list[str] = []

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.events.append(f"step {state.global_step}")

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: Any = None, **kwargs: Any) -> None:
        self.events.append(f"evaluate {without_clock(metrics)}")

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.events.append(f"save {state.global_step}")


def scaled_loss(outputs: Any, labels: torch.Tensor, num_items_in_batch: Any = None) -> torch.Tensor:
    loss = torch.nn.functional.cross_entropy(outputs.logits, labels, reduction="sum")
    return 0.5 * loss / (num_items_in_batch if num_items_in_batch is not None else len(labels))


def accuracy(prediction: Any) -> dict[str, float]:
    return {"accuracy": float((prediction.predictions.argmax(-1) == prediction.label_ids).mean())}


def custom_optimizer() -> dict[str, Any]:
    model = text_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    return {"model": model, "optimizers": (optimizer, torch.optim.lr_scheduler.ConstantLR(optimizer))}


def evaluation_sets() -> dict[str, Any]:
    return {"eval_dataset": {"first": text_examples(16, seed=2), "second": text_examples(16, seed=3)}}


def lengths() -> dict[str, Any]:
    rows = [{**row, "input_ids": row["input_ids"].tolist()} for row in text_examples().examples]
    rows = [{**row, "attention_mask": [1] * len(row["input_ids"]), "length": len(row["input_ids"])} for row in rows]
    return {"train_dataset": datasets.Dataset.from_list(rows)}


class Stream(torch.utils.data.IterableDataset):
    def __iter__(self) -> Any:
        return iter(text_examples().examples)


VARIANTS: dict[str, dict[str, Any]] = {
    "gradient accumulation": {"gradient_accumulation_steps": 4},
    "accumulation of uneven token counts": {"kind": "token", "gradient_accumulation_steps": 3},
    "label smoothing": {"label_smoothing_factor": 0.1},
    "label smoothing, accumulated": {"label_smoothing_factor": 0.1, "gradient_accumulation_steps": 2},
    "evaluation by epoch": {"eval_strategy": "epoch", "given": {"compute_metrics": accuracy}},
    "evaluation by steps and at the start": {"eval_strategy": "steps", "eval_steps": 5, "eval_on_start": True},
    "best model at the end": {
        "eval_strategy": "steps",
        "eval_steps": 4,
        "load_best_model_at_end": True,
        "metric_for_best_model": "accuracy",
        "save_total_limit": 1,
        "given": {"compute_metrics": accuracy},
    },
    "callback by class": {"given": {"callbacks": [Stop]}},
    "callback by instance": {"given": lambda: {"callbacks": [Stop(), Recorder()]}},
    "compute_loss_func": {"gradient_accumulation_steps": 2, "given": {"compute_loss_func": scaled_loss}},
    "model_init": {"given": {"model_init": lambda: text_model()}},
    "custom optimizers": {"given": custom_optimizer},
    "optimizer class": {"given": {"optimizer_cls_and_kwargs": (torch.optim.RMSprop, {"lr": 1e-3})}},
    "group by length": {"train_sampling_strategy": "group_by_length", "given": lengths},
    "batch rebalance": {"train_sampling_strategy": "batch_rebalance", "given": lengths},
    "sequential": {"train_sampling_strategy": "sequential"},
    "iterable data set": {"max_steps": 9, "given": lambda: {"train_dataset": Stream()}},
    "several evaluation sets": {"eval_strategy": "epoch", "given": evaluation_sets},
    "bf16": {"bf16": True},
    "max_steps, cosine, no clipping": {"max_steps": 7, "lr_scheduler_type": "cosine", "max_grad_norm": 0.0},
    "only the model is saved": {"save_only_model": True},
    "token counting": {"include_num_input_tokens_seen": "all", "given": {"processing_class": None}},
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_variant_is_equal(tmp_path: Path, variant: str) -> None:
    stock, ours = pair(tmp_path, **VARIANTS[variant])
    train(stock, ours)
    assert_same(stock, ours)
    recorded = [[c.events for c in t.callback_handler.callbacks if isinstance(c, Recorder)] for t in (stock, ours)]
    assert recorded[0] == recorded[1]
    evaluated = [without_clock(trainer.evaluate()) for trainer in (stock, ours)]
    assert evaluated[0] == evaluated[1]


def test_peft_model_is_equal(tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")

    def adapted() -> dict[str, Any]:
        return {"model": peft.get_peft_model(text_model(), peft.LoraConfig(r=2, target_modules=["query", "value"]))}

    stock, ours = pair(tmp_path, given=adapted)
    train(stock, ours)
    assert_same(stock, ours)


def test_hyperparameter_search_is_equal(tmp_path: Path) -> None:
    optuna = pytest.importorskip("optuna")
    optuna.logging.set_verbosity(optuna.logging.ERROR)

    def space(trial: Any) -> dict[str, float]:
        return {"learning_rate": trial.suggest_float("learning_rate", 1e-4, 1e-2, log=True)}

    found = []
    for trainer in pair(
        tmp_path, given={"model_init": lambda: text_model()}, eval_strategy="epoch", save_strategy="no"
    ):
        set_seed(0)
        sampler = optuna.samplers.TPESampler(seed=0)
        best = trainer.hyperparameter_search(space, n_trials=3, backend="optuna", sampler=sampler)
        found.append((best.run_id, best.objective, best.hyperparameters))
    assert found[0] == found[1]


@pytest.mark.parametrize(("first", "second"), [(0, 0), (1, 1), (0, 1), (1, 0)])
def test_resume_is_equal(tmp_path: Path, first: int, second: int) -> None:
    """Either trainer resumes either one's checkpoint to the weights of the undisturbed stock run."""
    undisturbed, interrupted = tmp_path / "undisturbed", tmp_path / "interrupted"
    whole = build(Trainer, TrainingArguments, undisturbed)
    train(whole)
    classes = [(Trainer, TrainingArguments), (EfficientTrainer, EfficientTrainingArguments)]
    train(build(*classes[first], interrupted, given={"callbacks": [Stop]}))
    resumed = build(*classes[second], interrupted)
    train(resumed, resume_from_checkpoint=True)
    assert_same_tensors(dict(whole.model.state_dict()), dict(resumed.model.state_dict()))
    assert without_clock(whole.state.log_history[:-1]) == without_clock(resumed.state.log_history[:-1])


def test_plain_training_arguments_are_accepted(tmp_path: Path) -> None:
    stock = build(Trainer, TrainingArguments, tmp_path / "stock")
    ours = build(EfficientTrainer, TrainingArguments, tmp_path / "ours")
    train(stock, ours)
    assert_same(stock, ours)


def test_no_arguments_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert EfficientTrainer(text_model()).args.output_dir == Trainer(text_model()).args.output_dir
    with pytest.raises(RuntimeError, match="model_init"):
        EfficientTrainer()


def test_evaluate_and_predict_without_training(tmp_path: Path) -> None:
    stock, ours = pair(tmp_path)
    assert without_clock(stock.evaluate()) == without_clock(ours.evaluate())
    predicted = [trainer.predict(text_examples(8)).predictions for trainer in (stock, ours)]
    assert (predicted[0] == predicted[1]).all()


@pytest.mark.parametrize("pair_of_classes", [(Trainer, EfficientTrainer), (Seq2SeqTrainer, EfficientSeq2SeqTrainer)])
def test_public_methods_keep_their_signatures(pair_of_classes: tuple[type, type]) -> None:
    stock, ours = pair_of_classes
    assert str(inspect.signature(ours)) == str(inspect.signature(stock))
    for name, method in inspect.getmembers(stock, inspect.isfunction):
        if not name.startswith("_"):
            expected = list(inspect.signature(method).parameters.values())
            parameters = list(inspect.signature(getattr(ours, name)).parameters.values())
            shape = [(p.name, p.kind, p.default) for p in parameters]
            assert shape == [(p.name, p.kind, p.default) for p in expected], name


class Own:
    """What a user's subclass may override; each override leaves a trace."""

    trace: dict[str, int]

    def _count(self, name: str) -> None:
        vars(self).setdefault("trace", {}).setdefault(name, 0)
        self.trace[name] += 1

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        self._count("compute_loss")
        outputs = model(**inputs)
        loss = 3.0 * outputs.loss
        return (loss, outputs) if return_outputs else loss

    def training_step(self, *args: Any, **kwargs: Any) -> Any:
        self._count("training_step")
        return super().training_step(*args, **kwargs)

    def get_train_dataloader(self) -> Any:
        self._count("get_train_dataloader")
        few = Examples(self.train_dataset.examples[:16])
        return torch.utils.data.DataLoader(few, batch_size=4, collate_fn=pad)

    def create_optimizer(self, model: Any = None) -> Any:
        self._count("create_optimizer")
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.01)
        return self.optimizer

    def evaluate(self, *args: Any, **kwargs: Any) -> Any:
        self._count("evaluate")
        return {**super().evaluate(*args, **kwargs), "eval_own": 1.0}

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        self._count("log")
        super().log({**logs, "own": 2.0}, start_time)


def test_users_subclass_keeps_its_effect(tmp_path: Path) -> None:
    stock_class = type("Mine", (Own, Trainer), {})
    our_class = type("Mine", (Own, EfficientTrainer), {})
    trainers = [
        build(stock_class, TrainingArguments, tmp_path / "stock", eval_strategy="epoch"),
        build(our_class, EfficientTrainingArguments, tmp_path / "ours", eval_strategy="epoch"),
    ]
    train(*trainers)
    assert_same(*trainers)
    assert trainers[0].trace == trainers[1].trace
    assert set(trainers[1].trace) == {name for name in vars(Own) if not name.startswith("_") and name != "trace"}


def test_arguments_keep_working() -> None:
    args = EfficientTrainingArguments("out", use_cpu=True, optimizations={"precision": {"dtype": "bf16"}})
    assert json.loads(args.to_json_string())["optimizations"] == {"precision": {"dtype": "bf16"}}
    assert args.to_dict()["dense_epochs"] == 0
    parser = transformers.HfArgumentParser(EfficientTrainingArguments)
    (parsed,) = parser.parse_args_into_dataclasses(
        ["--output_dir", "out", "--dense_epochs", "2", "--optimizations", '{"structured_pruning": {"keep_layers": 2}}']
    )
    assert parsed.optimizations == {"structured_pruning": {"keep_layers": 2}}
    assert parsed.dense_epochs == 2

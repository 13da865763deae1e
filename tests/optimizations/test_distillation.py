"""distillation: what is learnt from whom, what it leaves behind, and what it refuses."""

import logging
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from transformers import AlbertConfig, AlbertForSequenceClassification, BertForSequenceClassification

from hf_efficient import ConfigError, Distillation, EfficientTrainer, EfficientTrainingArguments, NoEffectWarning
from hf_efficient.plan import build_optimizations
from hf_efficient.teacher import Teachers
from tests.test_contract import StopMain
from tests.test_parity import assert_same_tensors, build, train
from tests.tiny import KINDS, SMALL, VOCABULARY, pad, text_examples, text_model

SGD = {"optim": "sgd", "learning_rate": 0.1, "dense_epochs": 0}
"""Adam would blow rounding noise up wherever the true gradient is zero (a key's bias)."""


def trainer(folder: Path, kind: str = "text", given: Any = None, others: Any = None, **settings: Any) -> Any:
    changes = {"dense_epochs": 2, "measure_seconds": 0, **settings.pop("args", {})}
    optimizations = {**(others or {}), "distillation": settings}
    return build(
        EfficientTrainer, EfficientTrainingArguments, folder, kind, given, optimizations=optimizations, **changes
    )


def weights(one: Any) -> dict[str, torch.Tensor]:
    return dict(one.model.state_dict())


def described(one: Any) -> dict[str, Any]:
    (found,) = [optimization for optimization in one.optimizations if optimization.name == "distillation"]
    return found.describe()


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A trained teacher, twice as wide as the student and with more heads and layers."""
    folder = tmp_path_factory.mktemp("wide")
    model = text_model(hidden_size=32, num_attention_heads=4, num_hidden_layers=4)
    one = build(EfficientTrainer, EfficientTrainingArguments, folder, given={"model": model}, num_train_epochs=6)
    train(one)
    one.save_model(folder / "final")
    return str(folder / "final")


def resumed_equals_whole(tmp_path: Path, **options: Any) -> tuple[Any, Any]:
    whole = trainer(tmp_path / "whole", **options)
    train(whole)
    train(trainer(tmp_path / "cut", given={"callbacks": [StopMain]}, **options))
    resumed = trainer(tmp_path / "cut", **options)
    train(resumed, resume_from_checkpoint=str(tmp_path / "cut" / "checkpoint-4"))
    assert_same_tensors(weights(whole), weights(resumed))
    return whole, resumed


def test_a_cut_student_learns_from_itself(tmp_path: Path) -> None:
    """Through both optimizations; resumed in the phase, bit for bit."""
    pruning = {"structured_pruning": {"keep_layers": 2, "calibration_batches": 2}}
    whole, resumed = resumed_equals_whole(tmp_path, others=pruning, hidden=0.5)
    assert whole.model.config.num_hidden_layers == 2
    assert described(whole)["layer_map"] == [[0, 0, 1], [0, 1, 2]]
    assert described(whole)["share_from_cache"] == described(resumed)["share_from_cache"] == 0.5


def test_a_wider_teacher(tmp_path: Path, wide: str) -> None:
    """The map between the widths resumes too, and no checkpoint holds it."""
    options = {"teacher": wide, "attention": 1.0, "args": {"dense_epochs": 0, "gradient_accumulation_steps": 2}}
    options["args"]["num_train_epochs"] = 4
    whole, _ = resumed_equals_whole(tmp_path, **options)
    assert described(whole)["layer_map"] == [[0, 0, 1], [0, 1, 2], [0, 2, 3]]
    saved = safetensors.torch.load_file(tmp_path / "whole" / "final" / "model.safetensors")
    assert saved.keys() == set(weights(whole))
    state = torch.load(tmp_path / "whole" / "checkpoint-4" / "optimizations.pt", weights_only=True)
    moved = state["optimizations"]["distillation"]["projectors"][0]["optimizer"]["state"][0]
    assert moved["step"] == 4


@pytest.mark.parametrize("kind", ["token", "vision", "seq2seq"])
def test_teacher_runs_in_the_first_epoch_only(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    ask = Teachers._ask
    monkeypatch.setattr(Teachers, "_ask", lambda self, batch: asked.append(len(batch["labels"])) or ask(self, batch))
    args = {"dense_epochs": 12 if kind == "seq2seq" else 2, "bf16": kind == "vision"}
    one = trainer(tmp_path, kind, attention=0.5, args=args)
    train(one)
    assert asked == [8] * 6
    told = described(one)
    assert told["share_from_cache"] == 0.5
    assert all(value >= 0 for value in told["mean_loss_of_last_epoch"].values())
    assert len(told["layer_map"]) == (6 if kind == "seq2seq" else 3)


def test_without_a_cache(tmp_path: Path, wide: str) -> None:
    cached, asked = (
        trainer(tmp_path / name, teacher=wide, cache=cache, args=SGD) for name, cache in (("a", True), ("b", False))
    )
    train(cached)
    train(asked)
    assert not list((tmp_path / "b").rglob("_example_cache"))
    for name, value in weights(asked).items():
        torch.testing.assert_close(weights(cached)[name], value, rtol=1e-3, atol=1e-4)
    assert described(asked)["share_from_cache"] == 0


def test_cache_of_an_earlier_training(tmp_path: Path, wide: str) -> None:
    options = {"teacher": wide, "cache": str(tmp_path / "cache"), "args": {"dense_epochs": 0}}
    for folder, share in (("a", 0.5), ("b", 1.0)):
        one = trainer(tmp_path / folder, **options)
        train(one)
        assert described(one)["share_from_cache"] == share


def test_images_that_never_repeat(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    class Augmented(torch.utils.data.Dataset):
        rows = KINDS["vision"].examples()

        def __len__(self) -> int:
            return len(self.rows)

        def __getitem__(self, index: int) -> dict[str, Any]:
            row = self.rows[index]
            return {**row, "pixel_values": row["pixel_values"] + 0.01 * torch.rand(3, 8, 8)}

    caplog.set_level(logging.WARNING)
    one = trainer(tmp_path, "vision", given={"train_dataset": Augmented()}, args={"num_train_epochs": 3})
    train(one)
    assert caplog.text.count("no input of this epoch came a second time") == 1
    assert described(one)["share_from_cache"] == 0


def test_nothing_stays_on_the_model(tmp_path: Path) -> None:
    one = trainer(tmp_path, attention=0.5)
    train(one)
    assert not any(module._forward_hooks for module in one.model.modules())
    assert one.model.config.output_hidden_states is False
    assert "distillation" not in (tmp_path / "final" / "config.json").read_text()


def test_two_teachers(tmp_path: Path, wide: str) -> None:
    one = trainer(tmp_path, teacher=["self", wide], attention=0.5)
    train(one)
    assert [name == "self" for name in described(one)["teacher"]] == [True, False]


def test_students_layers_are_named(tmp_path: Path) -> None:
    one = trainer(tmp_path / "a", layers=[[0, 2]], attention=1.0)
    train(one)
    assert described(one)["layer_map"] == [[0, 0, 2]]
    with pytest.raises(ConfigError, match=r"\[0, 3\] does not fit; the student has layers 0 to 2, the teacher 0 to 2"):
        train(trainer(tmp_path / "b", layers=[[0, 3]]))


def test_regression(tmp_path: Path) -> None:
    rows = [{**row, "labels": float(row["labels"])} for row in text_examples().examples]

    def collate(examples: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        batch = pad(examples)
        return {**batch, "labels": batch["labels"].float()}

    given = {"model": text_model(num_labels=1), "train_dataset": rows, "eval_dataset": None, "data_collator": collate}
    one = trainer(tmp_path, given=given)
    train(one)
    assert 0 < described(one)["mean_loss_of_last_epoch"]["outputs"] < 0.2


@pytest.mark.parametrize("other", [{"compile": {"backend": "eager"}}, {"activation_checkpointing": {}}])
def test_with_others_it_learns_the_same(tmp_path: Path, wide: str, other: dict[str, Any]) -> None:
    quiet = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    plain, both = (
        trainer(
            tmp_path / name, given={"model": text_model(**quiet)}, others=others, teacher=wide, attention=0.5, args=SGD
        )
        for name, others in (("plain", None), ("both", other))
    )
    train(plain)
    train(both)
    for name, value in weights(plain).items():
        torch.testing.assert_close(weights(both)[name], value, rtol=1e-3, atol=1e-4)


def test_reentrant_checkpointing_is_refused(tmp_path: Path) -> None:
    args = {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": True}}
    one = trainer(tmp_path, attention=0.5, args=args)
    one.model.enable_input_require_grads()
    with pytest.raises(ConfigError, match="use_reentrant"):
        train(one)


def albert() -> AlbertForSequenceClassification:
    return AlbertForSequenceClassification(
        AlbertConfig(vocab_size=VOCABULARY, embedding_size=8, max_position_embeddings=16, **SMALL)
    )


def test_family_that_is_not_in_the_table(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"'albert' model; set hidden: 0 and attention: 0"):
        trainer(tmp_path / "a", given={"model": albert()})
    one = trainer(tmp_path / "b", given={"model": albert()}, hidden=0, args={"dense_epochs": 6})
    train(one)
    assert list(described(one)["mean_loss_of_last_epoch"]) == ["outputs"]


def test_untrained_teacher_is_refused(tmp_path: Path) -> None:
    model = text_model()
    torch.nn.init.zeros_(model.classifier.weight)
    with pytest.raises(ConfigError, match=r"distillation from 'self' needs a trained model.*dense_epochs"):
        train(trainer(tmp_path, given={"model": model}, args={"dense_epochs": 0}))


def test_resuming_with_another_model_is_refused(tmp_path: Path) -> None:
    """The teacher `self` would be the model that was cut already."""
    dense = build(EfficientTrainer, EfficientTrainingArguments, tmp_path / "dense", num_train_epochs=3)
    train(dense)
    dense.save_model(tmp_path / "trained")

    def start(model: Any, callbacks: Any = ()) -> Any:
        given = {"model": model, "callbacks": list(callbacks)}
        pruning = {"structured_pruning": {"keep_layers": 2, "calibration_batches": 2}}
        return trainer(tmp_path / "out", given=given, others=pruning, args={"dense_epochs": 0})

    load = BertForSequenceClassification.from_pretrained
    train(start(load(tmp_path / "trained"), [StopMain]))
    with pytest.raises(ConfigError, match=r"'self' is not the one training began with; resume with the model"):
        train(start(load(tmp_path / "out" / "checkpoint-4")), resume_from_checkpoint=True)
    train(start(load(tmp_path / "trained")), resume_from_checkpoint=True)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"teacher": ""}, "teacher must be"),
        ({"teacher": []}, "teacher must be"),
        ({"temperature": 0}, "temperature must be greater than 0"),
        ({"alpha": 1.5}, "alpha must be from 0 to 1, got 1.5"),
        ({"hidden": -1}, "hidden must not be negative"),
        ({"attention": -1}, "attention must not be negative"),
        ({"layers": "some"}, "layers"),
        ({"layers": [[0]]}, "pairs"),
        ({"layers": [[0, -1]]}, "pairs"),
        ({"cache": ""}, "cache must be"),
        ({"cache_gb": 0}, "cache_gb"),
        ({"shard_teacher": True}, "needs cache: false"),
        ({"techer": "self"}, "did you mean 'teacher'"),
    ],
)
def test_bad_settings(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build_optimizations({"distillation": settings})


def test_one_process_holds_all_of_the_teacher(tmp_path: Path) -> None:
    one, other = (trainer(tmp_path / str(shared), cache=False, shard_teacher=shared) for shared in (True, False))
    with pytest.warns(NoEffectWarning, match="one process holds all"):
        train(one)
    train(other)
    assert_same_tensors(weights(one), weights(other))


def test_a_folder_that_is_not_there_is_refused_at_once(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no model there"):
        trainer(tmp_path, teacher=str(tmp_path / "none"))
    assert Distillation().needs_original()
    assert not Distillation(teacher="owner/name").needs_original()
    assert not Distillation(alpha=0, hidden=0).needs_original()

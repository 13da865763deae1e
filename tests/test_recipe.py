"""Recipes: bundled and from files, with typed overrides; what is wrong is named."""

from pathlib import Path

import pytest
import yaml

from hf_efficient import ConfigError, Recipe
from hf_efficient.arguments import EfficientTrainingArguments
from hf_efficient.recipe import bundled, source, training_values, with_stages

LR = "stages.finetune.training.learning_rate"


@pytest.mark.parametrize("name", bundled())
def test_bundled_recipe(name: str) -> None:
    recipe = Recipe.load(name)
    assert recipe.name == name
    lines = source(name).splitlines()
    assert bundled()[name] in lines[0]
    assert any(line.startswith(f"#   hf-efficient run {name} ") for line in lines), "no example of an override"


def test_resolved_recipe_round_trips(tmp_path: Path) -> None:
    recipe = Recipe.load("customer-service", [f"{LR}=1e-3", "seed=7"])
    (tmp_path / "again.yaml").write_text(recipe.to_yaml())
    assert Recipe.load(tmp_path / "again.yaml") == recipe


def test_overrides_are_typed() -> None:
    recipe = Recipe.load("customer-service", ["seed=7", "data.max_length=32", f"{LR}=2e-5", "data.test=t.csv"])
    assert (recipe.seed, recipe.data["max_length"], recipe.data["test"]) == (7, 32, "t.csv")
    training = recipe.stages["finetune"].training
    assert training_values(training, "x")["learning_rate"] == 2e-5


def test_override_can_add_and_switch_off() -> None:
    prune = "stages.compress.optimizations.structured_pruning"
    assert Recipe.load("customer-service", [f"{prune}=false"]).stages["compress"].optimizations[prune[-18:]] is False
    added = Recipe.load("customer-service", ["stages.more.training.num_train_epochs=1"])
    assert list(added.stages) == ["finetune", "compress", "more"]


def test_every_training_argument_can_be_set() -> None:
    values = {"warmup_steps": "0.1", "bf16": "false", "lr_scheduler_type": "cosine", "report_to": ["tensorboard"]}
    values |= {"lr_scheduler_kwargs": {"num_cycles": 2}, "max_steps": "5", "weight_decay": 1}
    coerced = training_values(values, "x")
    assert (coerced["warmup_steps"], coerced["bf16"], coerced["max_steps"]) == (0.1, False, 5)
    EfficientTrainingArguments("out", use_cpu=True, **coerced)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["stages.finetune.training.lerning_rate=1"], r"stages\.finetune\.training: .*did you mean 'learning_rate'"),
        (["stages.finetune.trainin.learning_rate=1"], r"stages\.finetune: .*did you mean 'training'"),
        (["stages.finetune.training.communication={gradient: bf16}"], r"communication: .*did you mean 'gradients'"),
        (["stges={}"], "did you mean 'stages'"),
        ([f"{LR}=fast"], r"learning_rate: input should be a valid number.*'fast'"),
        (["seed=often"], "seed: input should be a valid integer"),
        (["data.max_lenght=3"], "did you mean 'max_length'"),
        (["data.max_length=long"], r"data\.max_length"),
        (["task=text-clasification"], "did you mean 'text-classification'"),
        (["stages.finetune.optimizations.precison={}"], "did you mean 'precision'"),
        (["stages.finetune.training.output_dir=x"], "sets this itself"),
        (["stages={}"], "stages"),
        (["stages.a/b.training.seed=1"], "names a folder"),
        (["task.more=1"], "'task' is a value"),
        (["seed"], "overrides look like"),
        (["seed=[1"], "seed"),
        (["data=3"], "data"),
    ],
)
def test_bad_override(overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Recipe.load("customer-service", overrides)


DISTIL = "stages.compress.optimizations.distillation.teacher"


@pytest.mark.parametrize("teacher", ["finetune", "self", "[finetune, owner/name]", "some-model", "/some/folder"])
def test_a_stage_as_teacher(teacher: str) -> None:
    recipe = Recipe.load("customer-service", [f"{DISTIL}={teacher}"])
    values = yaml.safe_load(teacher)
    stage = with_stages(recipe.stages["compress"].optimizations, {"finetune": "runs/final"}, "x")
    expected = [{"finetune": "runs/final"}.get(one, one) for one in ([values] if isinstance(values, str) else values)]
    found = stage["distillation"]["teacher"]
    assert ([found] if isinstance(found, str) else found) == expected
    assert recipe.stages["compress"].optimizations["distillation"]["teacher"] == values


@pytest.mark.parametrize(
    ("teacher", "near"), [("finetun", "did you mean 'finetune'"), ("compress", "Allowed: finetune")]
)
def test_a_teacher_that_is_no_earlier_stage(teacher: str, near: str) -> None:
    with pytest.raises(ConfigError, match=rf"distillation.teacher: unknown stage before this one.*{near}"):
        Recipe.load("customer-service", [f"{DISTIL}={teacher}"])


def test_unknown_recipe() -> None:
    with pytest.raises(ConfigError, match="did you mean 'customer-service'"):
        Recipe.load("costumer-service")


@pytest.mark.parametrize(
    ("text", "message"),
    [("a: [", "not valid YAML"), ("- 1", "keys and values"), ("", "keys and values"), ("task: x", "missing")],
)
def test_bad_file(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "mine.yaml").write_text(text)
    with pytest.raises(ConfigError, match=message):
        Recipe.load(tmp_path / "mine.yaml")


def test_file_that_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_bytes(b"\xff\xfe\x00\x80")
    with pytest.raises(ConfigError, match="cannot read"):
        Recipe.load(tmp_path / "mine.yaml")
    with pytest.raises(ConfigError, match="no recipe file"):
        Recipe.load(tmp_path / "yours.yaml")


def test_yaml_cannot_run_code(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(f"a: !!python/object/apply:pathlib.Path.touch [{tmp_path / 'ran'}]")
    with pytest.raises(ConfigError):
        Recipe.load(tmp_path / "mine.yaml")
    assert not (tmp_path / "ran").exists()


def test_own_file_names_the_runs(tmp_path: Path) -> None:
    values = yaml.safe_load(source("customer-service"))
    (tmp_path / "my_bank.yaml").write_text(yaml.safe_dump(values, sort_keys=False))
    assert Recipe.load(tmp_path / "my_bank.yaml").name == "my-bank"


class TestExport:
    @pytest.mark.parametrize(
        ("block", "message"),
        [
            ("{formt: onnx}", "export: unknown key 'formt'; did you mean 'format'"),
            ("{format: onxx}", "export: unknown export format 'onxx'; did you mean 'onnx'"),
            ("{format: openvino, quantize: dynamic}", "export: format 'openvino'"),
            ("{max_drop: -0.1}", "max_drop must be 0 or more"),
            ("{max_drop: much}", "valid number"),
        ],
    )
    def test_refused(self, block: str, message: str) -> None:
        with pytest.raises(ConfigError, match=message):
            Recipe.load("customer-service", [f"export={block}"])

    def test_can_be_left_out(self) -> None:
        assert Recipe.load("customer-service", ["export=null"]).export is None
        assert Recipe.load("customer-service").export is not None

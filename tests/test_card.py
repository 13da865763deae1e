"""The card says what is known of a model, in metadata that the Hub's own loader reads back, and nothing that is not."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import transformers
from huggingface_hub import ModelCard
from transformers import PreTrainedConfig
from transformers.pipelines import SUPPORTED_TASKS

from hf_efficient import ConfigError
from hf_efficient.card import MODEL, PICTURE, About, card, pipeline_task, update_card, write_card
from hf_efficient.checkpoint import apply_shapes, record_shapes
from hf_efficient.report import Report
from tests.test_report import EXPORTED, report
from tests.test_trainer import CUT, trainer
from tests.tiny import image_model, text_model

ABOUT = About(
    name="bank-intents",
    base_model="sentence-transformers/all-MiniLM-L6-v2",
    data="PolyAI/banking77:default",
    split="test",
    training={"finetune": {"learning_rate": 3e-4, "num_train_epochs": 3}, "compress": {"learning_rate": 2e-4}},
    language="en",
    license="apache-2.0",
    tags=("banking",),
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    text_model().save_pretrained(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text("{}")
    return tmp_path


def exported() -> Report:
    return report(exported=EXPORTED, metrics_exported={"accuracy": 0.9254, "loss": 0.4})


def code(text: str) -> str:
    return text.partition("```python\n")[2].partition("```")[0]


def written(folder: Path, one: Report, about: About = ABOUT) -> ModelCard:
    return ModelCard.load(write_card(folder, one, about))


def test_metadata_comes_back_as_it_was_meant(folder: Path) -> None:
    found = written(folder, exported()).data
    assert found.base_model == "sentence-transformers/all-MiniLM-L6-v2"
    assert found.datasets == ["PolyAI/banking77"]
    assert (found.language, found.license) == ("en", "apache-2.0")
    assert (found.library_name, found.pipeline_tag) == ("transformers", "text-classification")
    assert found.tags == ["hf-efficient", "structured_pruning", "precision", "banking"]
    assert found.model_name == "bank-intents"


def test_results_are_those_of_the_report(folder: Path) -> None:
    results = written(folder, exported()).data.eval_results or []
    assert [(one.metric_type, one.metric_name, one.metric_value) for one in results] == [
        ("accuracy", "accuracy", 0.9269),
        ("accuracy", "accuracy (ONNX Runtime)", 0.9254),
    ]
    for one in results:
        assert (one.dataset_type, one.dataset_config, one.dataset_split) == ("PolyAI/banking77", "default", "test")


def test_text_has_table_machine_code_training_and_limits(folder: Path) -> None:
    one = exported()
    text = written(folder, one).text
    for line in one.markdown_table():
        if set(line.split(" | ")[1:-1]) != {"not measured"}:
            assert line in text
    for told in (
        f"]({PICTURE})",
        one.before.machine["processor"],
        "exported: ONNX Runtime 1.32.0 on cpu",
        "transformers 5.",
        "accuracy: -0.5 points",
        "**finetune:** learning_rate 0.000300, num_train_epochs 3",
        "measured: seconds 123, epochs 3",
        "kept_layers (encoder.layer [0, 2])",
        "on the test split",
        "Yours gives other figures",
    ):
        assert told in text
    assert (folder / PICTURE).read_bytes().startswith(b"\x89PNG")


def test_paths_are_no_names(folder: Path) -> None:
    local = {"name": "distillation", "teacher": str(folder)}
    about = dataclasses.replace(
        ABOUT, base_model=str(folder), data=f"{folder}/train.csv", training={"main": {"resume": str(folder)}}
    )
    one = report(changes=[local], notes=[f"Read from {folder}"])
    found = written(folder, one, about)
    assert (found.data.get("base_model"), found.data.get("datasets")) == (None, None)
    assert {(result.dataset_type, result.dataset_name) for result in found.data.eval_results or []} == {
        ("local", "local files")
    }
    assert str(folder) not in str(found)
    assert "teacher (local path)" in found.text


def test_unknown_is_left_out(folder: Path) -> None:
    found = card(folder, report(metrics_after={}, changes=[]), About(name="x"))
    assert set(found.data.to_dict()) == {"library_name", "pipeline_tag", "tags", "model_name"}
    assert "Metrics are of one training" not in found.text


def test_sample_data_is_described(folder: Path) -> None:
    found = written(folder, report(), dataclasses.replace(ABOUT, data="sample:customer_service"))
    assert found.data.get("datasets") is None
    assert "customer_service (sample data of hf_efficient)" in found.text
    assert (found.data.eval_results or [])[0].dataset_type == "sample"


class TestLoading:
    @pytest.mark.parametrize("changed", [False, True])
    def test_code_of_the_card_loads_the_model(self, folder: Path, changed: bool) -> None:
        if changed:
            model = text_model()
            shapes = {"encoder.layer.0.intermediate.dense": {"out_features": 8}}
            shapes["encoder.layer.0.output.dense"] = {"in_features": 8}
            apply_shapes(model, shapes)
            record_shapes(model, shapes)
            model.save_pretrained(folder)
        program = code(written(folder, report()).text)
        assert ("import hf_efficient" in program) is changed
        assert 'pipeline("text-classification"' in program
        lines = [line for line in program.splitlines() if "pipeline(" not in line]
        names: dict[str, Any] = {}
        exec("\n".join(lines).replace(MODEL, str(folder)), names)
        assert names["model"].config.num_hidden_layers == 3

    def test_without_a_processor_there_is_no_pipeline(self, tmp_path: Path) -> None:
        image_model().save_pretrained(tmp_path)
        found = written(tmp_path, report())
        assert found.data.pipeline_tag == "image-classification"
        assert "AutoModelForImageClassification" in code(found.text)
        assert "pipeline(" not in code(found.text)

    def test_own_class_gets_no_code(self, tmp_path: Path) -> None:
        PreTrainedConfig(architectures=["MyModel"]).save_pretrained(tmp_path)
        assert "How to load it" not in card(tmp_path, report(), ABOUT).text

    def test_tasks_have_the_auto_class_of_their_pipeline(self) -> None:
        for name in ("BertForTokenClassification", "ViTForImageClassification", "Wav2Vec2ForSequenceClassification"):
            task = pipeline_task(PreTrainedConfig(architectures=[name]))
            assert task in SUPPORTED_TASKS
            assert hasattr(transformers, name)
        assert pipeline_task(None) is None


class TestUpdate:
    def test_adds_what_stock_takes(self, folder: Path) -> None:
        path = write_card(folder, report(), About(name="x", tags=("a",)))
        update_card(
            path,
            "me/model",
            license="mit",
            language=None,
            tags=["a", "b"],
            finetuned_from="bert-base-uncased",
            dataset_tags="glue",
            dataset="GLUE MRPC",
            dataset_args="mrpc",
        )
        found = ModelCard.load(path)
        assert (found.data.license, found.data.get("language"), found.data.model_name) == ("mit", None, "model")
        assert (found.data.tags or [])[-2:] == ["a", "b"]
        assert (found.data.base_model, found.data.datasets) == ("bert-base-uncased", ["glue"])
        (result,) = found.data.eval_results or []
        assert (result.dataset_type, result.dataset_name, result.dataset_config) == ("glue", "GLUE MRPC", "mrpc")
        assert code(found.text).count('"me/model"') == 2

    def test_takes_no_path_for_a_name(self, folder: Path) -> None:
        path = write_card(folder, report(), ABOUT)
        update_card(path, finetuned_from=str(folder), dataset_tags=str(folder))
        assert ModelCard.load(path).data.to_dict() == card(folder, report(), ABOUT).data.to_dict()

    def test_refuses_what_it_does_not_know(self, folder: Path) -> None:
        path = write_card(folder, report(), ABOUT)
        with pytest.raises(ConfigError, match="did you mean 'license'"):
            update_card(path, licence="mit")


def test_card_of_a_training(tmp_path: Path) -> None:
    """`train` leaves it beside the weights, where a script's `create_model_card` completes it."""
    one = trainer(tmp_path / "my-model", optimizations=CUT, dense_epochs=6, measure_seconds=0.05)
    one.train()
    found = ModelCard.load(one.finished / "README.md")
    assert found.data.model_name == "my-model"
    assert "**dense:** learning_rate 0.00500" in found.text
    assert "num_epochs 6" in found.text
    assert not (one.finished / "training_args.bin").exists()
    one.create_model_card(license="mit", tags="mine")
    completed = ModelCard.load(one.finished / "README.md")
    assert (completed.data.license, (completed.data.tags or [])[-1]) == ("mit", "mine")
    assert completed.text == found.text
    assert not (tmp_path / "my-model" / "README.md").exists()


def test_without_a_report_the_card_is_stock(tmp_path: Path) -> None:
    one = trainer(tmp_path, optimizations={"precision": {"dtype": "bf16"}})
    one.train()
    assert not (one.finished / "README.md").exists()
    one.create_model_card(license="mit")
    assert "generated_from_trainer" in (tmp_path / "README.md").read_text()

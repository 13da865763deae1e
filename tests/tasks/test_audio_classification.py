"""Recordings from data sets, files, bytes and lists; read, resampled and cut once, padded per batch."""

import logging
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from datasets import Audio, Dataset, DatasetDict
from transformers import AutoModelForAudioClassification, set_seed

from hf_efficient import EfficientTrainer, EfficientTrainingArguments, NoEffectWarning
from hf_efficient.data import load
from hf_efficient.errors import ConfigError, DataError
from hf_efficient.exported import pipeline_of
from hf_efficient.task import get_task
from hf_efficient.tasks.audio_classification import AudioClassification, AudioClassificationData
from tests.tasks.recordings import HERTZ, RATE, file_bytes, tiny_ast, tiny_wav2vec2, tone

NAMES = [*HERTZ] * 4
TONES = [tone(name, index) for index, name in enumerate(NAMES)]
FILES = [file_bytes(samples) for samples in TONES]


def splits(recordings: list[Any] = FILES, names: list[str] = NAMES) -> DatasetDict:
    rows = Dataset.from_dict({"audio": recordings, "label": names})
    return DatasetDict({"train": rows, "validation": rows})


@pytest.fixture
def checkpoint(tmp_path: Path) -> str:
    return tiny_wav2vec2(tmp_path / "model", AutoModelForAudioClassification)


def task(**settings: Any) -> AudioClassification:
    return AudioClassification(AudioClassificationData(train="unused", **settings))


def ready(data: DatasetDict, model: str, **settings: Any) -> AudioClassification:
    built = task(**settings)
    built.check(data)
    built.load_processor(model)
    return built


def values(built: AudioClassification, split: Dataset) -> list[np.ndarray]:
    return [row["input_values"] for row in built.encode(split)]


def test_the_sample_and_a_new_model() -> None:
    settings = AudioClassificationData(train="sample:sounds")
    data = load(settings)
    built = get_task("audio-classification")(settings)
    built.check(data)
    built.load_processor("new:wav2vec2-tiny")
    loaded = built.load_model("new:wav2vec2-tiny")
    assert built.label_names == ["falling", "noise", "pulses", "rising", "steady"] == [*loaded.config.label2id]
    batch = built.collator()(list(built.encode(data["validation"].select(range(5)))))
    assert loaded(**batch).logits.shape == (5, 5)
    assert batch["input_values"].dtype == loaded.dtype == torch.float32


def test_batches_are_what_the_feature_extractor_makes(checkpoint: str) -> None:
    built = ready(splits(), checkpoint)
    batch = built.collator()(list(built.encode(splits()["train"])))
    read = [built.raw(row) for row in splits()["train"]]
    expected = built.processor(read, sampling_rate=RATE, padding=True, return_tensors="pt")
    prepared = built.preprocess(read)
    for name in ("input_values", "attention_mask"):
        torch.testing.assert_close(batch[name], expected[name], atol=1e-5, rtol=0)
        assert torch.equal(batch[name], prepared[name])
    assert batch["labels"].tolist() == [built.label_names.index(name) for name in NAMES]
    without = built.encode(splits()["train"].remove_columns("label"))
    assert set(built.collator()(list(without))) == {"input_values", "attention_mask"}


def test_what_an_example_gets_does_not_depend_on_its_batch(checkpoint: str) -> None:
    built = ready(splits(), checkpoint)
    model = built.load_model(checkpoint).eval()
    rows = list(built.encode(splits()["train"]))
    with torch.no_grad():
        together, alone = model(**built.collator()(rows)).logits[0], model(**built.collator()(rows[:1])).logits[0]
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-4)


def test_every_way_to_hold_recordings(checkpoint: str, tmp_path: Path) -> None:
    names = [f"{index}.wav" for index in range(len(FILES))]
    for name, content in zip(names, FILES, strict=True):
        (tmp_path / name).write_bytes(content)
    source = tmp_path / "train.csv"
    source.write_text("audio,label\n" + "\n".join(f"{n},{label}" for n, label in zip(names, NAMES, strict=True)))
    ways = {
        "paths from the file's folder": names,
        "whole paths": [str(tmp_path / name) for name in names],
        "bytes": FILES,
        "structs": [{"bytes": content, "path": None} for content in FILES],
        "FLAC": [file_bytes(samples, format="FLAC") for samples in TONES],
        "lists": [samples.tolist() for samples in TONES],
        "arrays": [{"array": samples.tolist(), "sampling_rate": RATE} for samples in TONES],
    }
    expected = values(ready(splits(), checkpoint), splits()["train"])
    for way, recordings in ways.items():
        data = splits(recordings)
        other = ready(data, checkpoint, validation=str(source), sampling_rate=RATE)
        for found, wanted in zip(values(other, data["train"]), expected, strict=True):
            np.testing.assert_allclose(found, wanted, atol=1e-3, err_msg=way)
        assert other.raw(data["train"][0]).shape == TONES[0].shape
    assert load(AudioClassificationData(train=str(source)))["train"].column_names == ["audio", "label"]


def test_recordings_of_datasets_stay_undecoded(checkpoint: str, tmp_path: Path) -> None:
    structs = splits([{"bytes": content, "path": None} for content in FILES])["train"]
    structs.cast_column("audio", Audio()).to_parquet(tmp_path / "train.parquet")
    data = load(AudioClassificationData(train=str(tmp_path / "train.parquet"), validation_fraction=0.25))
    assert data["train"].features["audio"] == Audio(decode=False)
    built = ready(data, checkpoint)
    assert built.raw(data["train"][0]).dtype == np.float32


@pytest.mark.parametrize("rate", [16000, 11025, 44100])
def test_resampled_to_what_the_model_takes(checkpoint: str, rate: int) -> None:
    data = splits([file_bytes(tone("low", index, rate), rate) for index in range(len(NAMES))])
    wave = ready(data, checkpoint).raw(data["train"][0])
    assert len(wave) == len(tone("low"))
    loudest = np.abs(np.fft.rfft(wave)).argmax() * RATE / len(wave)
    assert loudest == pytest.approx(HERTZ["low"], abs=RATE / len(wave))
    np.testing.assert_allclose(wave[100:-100], tone("low")[100:-100], atol=0.02)


def test_channels_are_averaged(checkpoint: str) -> None:
    stereo = np.stack([tone("low"), 0 * tone("low")], axis=1)
    built = ready(splits(), checkpoint)
    np.testing.assert_allclose(built.raw({"audio": file_bytes(stereo)}), tone("low") / 2, atol=1e-3)
    both = {"array": stereo.T.tolist(), "sampling_rate": RATE}
    np.testing.assert_allclose(built.raw({"audio": both}), tone("low") / 2, atol=1e-6)


BROKEN = {
    "other": (b"no recording", r"cannot read the recording \(LibsndfileError: .*; replace it or delete the row"),
    "header": (FILES[0][:20], r"cannot read the recording"),
    "nothing": (b"", r"the recording is empty; replace it or delete the row"),
    "no samples": (file_bytes(np.zeros(0)), r"the recording is empty; replace it or delete the row"),
    "short": (file_bytes(np.zeros(20)), r"the recording lasts 0.003 s, and the model takes 0.006 s or more"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_broken_recording(case: str, checkpoint: str) -> None:
    broken, reason = BROKEN[case]
    data = splits([*FILES[:11], broken])
    built = ready(data, checkpoint)
    with pytest.raises(DataError, match=rf"data.train: row 12: {reason}"):
        built.encode_all(data)


def test_values_that_are_no_numbers(checkpoint: str) -> None:
    data = splits([[0.0] * 100] * 11 + [[0.0] * 99 + [float("nan")]])
    with pytest.raises(DataError, match="row 12: the recording holds NaN or infinite values; replace it"):
        ready(data, checkpoint, sampling_rate=RATE).encode(data["train"])


def test_missing_file(checkpoint: str) -> None:
    data = splits(["nowhere.wav"] * 12)
    built = ready(data, checkpoint)
    with pytest.raises(DataError, match=r"data.train: row 1: cannot read the recording nowhere.wav .*No such file"):
        built.encode_all(data)


def test_no_recordings() -> None:
    with pytest.raises(DataError, match=r"data.train: column 'audio' must hold recordings, .*, got int64"):
        task().check(splits([*range(12)]))
    with pytest.raises(DataError, match=r"do not tell how many make a second; set data.sampling_rate"):
        task().check(splits([[0.0, 0.1]] * 12))


def test_long_recordings_are_cut_and_told(checkpoint: str, caplog: pytest.LogCaptureFixture) -> None:
    data = splits()
    built = ready(data, checkpoint, max_seconds=0.12)
    with caplog.at_level(logging.WARNING):
        lengths = {len(value) for value in values(built, data["train"])}
    assert max(lengths) == 960 == built.preprocess([built.raw(data["train"][11])])["input_values"].shape[1]
    assert "6 of 12 recordings are longer than data.max_seconds=0.12" in caplog.text


def test_a_feature_extractor_that_takes_less_is_told_first(tmp_path: Path) -> None:
    model = tiny_ast(tmp_path / "model")
    with pytest.raises(ConfigError, match=r"data.max_seconds is 0.5, but the feature extractor of '.*' takes less"):
        ready(splits(), model, max_seconds=0.5)
    built = ready(splits(), model, max_seconds=0.18)
    batch = built.collator()(list(built.encode(splits()["train"])))
    assert batch["input_values"].shape == (12, 8, 16)
    assert built.load_model(model)(**batch).logits.shape == (12, 3)


def trainer(built: AudioClassification, model: Any, folder: Path, **changes: Any) -> EfficientTrainer:
    defaults = {"num_train_epochs": 30, "learning_rate": 5e-3, "measure_seconds": 0, "report_to": "none"}
    quiet = {"use_cpu": True, "disable_tqdm": True, "dataloader_pin_memory": False}
    set_seed(0)
    return EfficientTrainer(
        model=model,
        args=EfficientTrainingArguments(str(folder), **{**defaults, **quiet, **changes}),
        train_dataset=built.encode(splits()["train"]),
        eval_dataset=built.encode(splits()["validation"]),
        data_collator=built.collator(),
        processing_class=built.processor,
        compute_metrics=built.compute_metrics,
    )


@pytest.mark.parametrize("family", ["wav2vec2", "ast"])
def test_trains_and_answers_in_a_pipeline(family: str, checkpoint: str, tmp_path: Path) -> None:
    model = checkpoint if family == "wav2vec2" else tiny_ast(tmp_path / "ast")
    built = ready(splits(), model, max_seconds=0.18)
    trained = trainer(built, built.load_model(model), tmp_path / "out", num_train_epochs=60)
    trained.train()
    assert trained.evaluate()["eval_accuracy"] == 1.0
    trained.save_model(str(tmp_path / "saved"))
    classify = transformers.pipeline(built.pipeline, model=str(tmp_path / "saved"), device="cpu")
    assert [classify(built.raw(row))[0]["label"] for row in splits()["train"].select(range(3))] == NAMES[:3]
    saved = ready(splits(), str(tmp_path / "saved"), max_seconds=0.18)
    assert saved.label_names == built.label_names


def test_cut_and_taught(checkpoint: str, tmp_path: Path) -> None:
    """An attention mask of samples does not fit hidden states: what learns from those says so."""
    built = ready(splits(), checkpoint)
    cutting = {"structured_pruning": {"keep_layers": 1, "keep_ffn": 0.5}}
    settings = {"dense_epochs": 20, "num_train_epochs": 10}
    model = built.load_model(checkpoint)
    taught = trainer(
        built, model, tmp_path / "out", **settings, optimizations={**cutting, "distillation": {"hidden": 0}}
    )
    taught.train()
    saved = AutoModelForAudioClassification.from_pretrained(tmp_path / "out" / "final")
    assert (saved.config.num_hidden_layers, saved.config.intermediate_size) == (1, 8)
    refused = trainer(built, model, tmp_path / "no", max_steps=1, optimizations={"distillation": {"cache": False}})
    with pytest.raises(ConfigError, match="set hidden: 0 and attention: 0"):
        refused.train()


@pytest.mark.parametrize("family", ["wav2vec2", "ast"])
def test_batches_of_one_length(family: str, checkpoint: str, tmp_path: Path) -> None:
    """Recordings have lengths, spectrograms of one size have none."""
    model = checkpoint if family == "wav2vec2" else tiny_ast(tmp_path / "ast")
    built = ready(splits(), model, max_seconds=0.18)
    sorting = {"optimizations": {"length_batching": {}}, "per_device_train_batch_size": 4}
    trained = trainer(built, built.load_model(model), tmp_path / "out", max_steps=1, **sorting)
    if family == "ast":
        with pytest.warns(NoEffectWarning, match="examples have no length"):
            trained.train()
    else:
        trained.train()
        assert trained.optimizations[0].describe()["padding_share"] < 0.1


def test_a_vocabulary_that_is_not_there_is_not_trimmed(checkpoint: str, tmp_path: Path) -> None:
    built = ready(splits(), checkpoint)
    trained = trainer(
        built, built.load_model(checkpoint), tmp_path, max_steps=1, optimizations={"vocabulary_trimming": {}}
    )
    with pytest.warns(NoEffectWarning, match="vocabulary_trimming"):
        trained.train()


@pytest.mark.data
def test_public_data(data_folder: Path, tmp_path: Path) -> None:
    """Paths of recordings, seen from the file that lists them."""
    with zipfile.ZipFile(data_folder / "fsdd" / "test.zip") as packed:
        packed.extractall(tmp_path)
    settings = AudioClassificationData(train=str(tmp_path / "metadata.csv"), audio="file_name")
    built = AudioClassification(settings)
    data = load(settings)
    built.check(data)
    built.load_processor("new:wav2vec2-tiny")
    assert len(built.label_names) == 10
    row = data["validation"][0]
    assert len(built.encode(data["validation"])[0]["input_values"]) == round(float(row["seconds"]) * RATE)


def test_exports_answer_as_audio_models() -> None:
    found = {pipeline_of(name) for name in ("ASTForAudioClassification", "Wav2Vec2ForSequenceClassification")}
    assert found == {("audio-classification", "feature_extractor")}

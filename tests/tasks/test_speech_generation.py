"""Speech recognition by generation: prompts and labels, languages, error rates of what is written, refusals, a run."""

import json
import logging
from pathlib import Path
from typing import Any

import jiwer
import numpy as np
import pytest
import torch
import transformers
from datasets import Dataset, DatasetDict
from transformers import (
    AutoModelForSpeechSeq2Seq,
    AutoProcessor,
    EvalPrediction,
    WhisperForConditionalGeneration,
    WhisperTokenizer,
    set_seed,
)

from hf_efficient.blocks import cut_layers, layer_stacks
from hf_efficient.data import load
from hf_efficient.errors import ConfigError, DataError
from hf_efficient.measure import measure
from hf_efficient.pretrained import resolve_model
from hf_efficient.run import run
from hf_efficient.tasks.speech_recognition import SpeechRecognition, SpeechRecognitionData
from hf_efficient.trainer import EfficientSeq2SeqTrainer
from tests.tasks.conftest import task_trainer, tiny_checkpoint
from tests.tasks.recordings import tiny_wav2vec2
from tests.tasks.test_speech_recognition import splits

NEW = "new:whisper-tiny"
END, START, NO_TIMES = 256, 257, 263
LANGUAGES = ["<|en|>", "<|zh|>", "<|de|>"]


def whisper(folder: Path, **changes: Any) -> str:
    """Write a tiny model with its processor into ``folder``."""
    set_seed(0)
    config = transformers.AutoConfig.from_pretrained(resolve_model(NEW))
    config.update({"encoder_layers": 1, "decoder_layers": 1, **changes})
    model: Any = WhisperForConditionalGeneration(config)
    model.generation_config = transformers.GenerationConfig.from_pretrained(resolve_model(NEW))
    model.save_pretrained(folder)
    AutoProcessor.from_pretrained(resolve_model(NEW)).save_pretrained(folder)
    return str(folder)


def multilingual(folder: Path) -> str:
    """The same, but it knows three languages, whose tokens come after the one that starts the decoder."""
    whisper(folder, vocab_size=264 + len(LANGUAGES))
    known = AutoProcessor.from_pretrained(folder).tokenizer.get_vocab()
    tokens = sorted(known, key=known.__getitem__)
    tokens[START + 1 : START + 1] = LANGUAGES
    ids = {token: index for index, token in enumerate(tokens)}
    WhisperTokenizer(
        ids, [], pad_token=tokens[END], additional_special_tokens=tokens[END:], model_max_length=64
    ).save_pretrained(folder)
    file = folder / "generation_config.json"
    told = {
        "is_multilingual": True,
        "lang_to_id": {token: ids[token] for token in LANGUAGES},
        "task_to_id": {task: ids[f"<|{task}|>"] for task in ("transcribe", "translate")},
        "no_timestamps_token_id": ids["<|notimestamps|>"],
    }
    file.write_text(json.dumps({**json.loads(file.read_text()), **told}))
    return str(folder)


def ready(data: DatasetDict, model: str, **settings: Any) -> SpeechRecognition:
    built = SpeechRecognition(SpeechRecognitionData(train="unused", **{"max_seconds": 1, **settings}))
    built.check(data)
    built.load_processor(model)
    return built


@pytest.fixture
def checkpoint(tmp_path: Path) -> str:
    return whisper(tmp_path / "model")


# Inputs


def test_the_sample_and_a_new_model() -> None:
    settings = SpeechRecognitionData(train="sample:tones", max_seconds=1)
    rows = load(settings)["validation"].select(range(4))
    built = ready(DatasetDict({"train": rows}), NEW)
    batch = built.collator()(list(built.encode(rows)))
    assert batch["input_features"].shape == (4, 40, 100)
    assert set(batch) == {"input_features", "labels", "decoder_input_ids"}
    for text, ids in zip(rows["text"], batch["labels"].tolist(), strict=True):
        written = [NO_TIMES, *built.processor.tokenizer(text, add_special_tokens=False).input_ids, END]
        assert ids == written + [-100] * (len(ids) - len(written))
    output = built.load_model(NEW)(**batch)
    assert output.logits.shape == (*batch["labels"].shape, 264)
    assert torch.isfinite(output.loss)


def test_decoder_inputs_are_those_that_the_model_makes_of_labels(checkpoint: str) -> None:
    built = ready(splits(), checkpoint)
    model = built.load_model(checkpoint).eval()
    batch = built.collator()(list(built.encode(splits()["train"])))
    told = {name: value for name, value in batch.items() if name != "decoder_input_ids"}
    torch.testing.assert_close(model(**batch).loss, model(**told).loss)
    without = built.encode(splits()["train"].remove_columns("text"))
    assert set(built.collator()(list(without))) == {"input_features"}
    raw = built.preprocess([built.raw(row) for row in splits()["train"]])
    assert torch.equal(raw["input_features"], batch["input_features"])


def test_long_recordings_are_cut_with_a_warning(checkpoint: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        ready(splits(), checkpoint, max_seconds=0.25).encode(splits()["train"])
    assert "3 of 6 recordings are longer than data.max_seconds=0.25" in caplog.text


# Languages


def test_training_and_generation_begin_alike(tmp_path: Path) -> None:
    model = multilingual(tmp_path / "model")
    built = ready(splits(), model, language="German")
    tokens = ["<|de|>", "<|transcribe|>", "<|notimestamps|>"]
    prompt = built.processor.tokenizer.convert_tokens_to_ids(tokens)
    rows = built.encode(splits()["train"])
    assert all(row[:3] == prompt for row in rows["labels"])
    loaded = built.load_model(model)
    features = built.collator()(list(rows))["input_features"]
    told = loaded.generate(input_features=features, max_length=8, force_unique_generate_call=True)
    assert (told[:, :4] == torch.tensor([START, *prompt])).all()
    loaded.save_pretrained(tmp_path / "saved")
    built.processor.save_pretrained(tmp_path / "saved")
    assert AutoProcessor.from_pretrained(tmp_path / "saved").tokenizer("l").input_ids[:4] == [START, *prompt]
    again = ready(splits(), str(tmp_path / "saved"))  # it says by itself what it was trained in
    assert again.encode(splits()["train"])["labels"][0][:3] == prompt


# Metrics


def test_metrics_are_those_of_jiwer(checkpoint: str) -> None:
    built = ready(splits(), checkpoint)
    given, said = ["l", "hl", "m hm"], ["l", "h", " m  m l"]
    labels, ids = (np.full((3, 12), -100) for _ in range(2))
    for row, (text, written) in enumerate(zip(given, said, strict=True)):
        for rows, one in ((labels, text), (ids, written)):
            tokens = built.processor.tokenizer(one).input_ids
            rows[row, : len(tokens)] = tokens
    found = built.compute_metrics(EvalPrediction(ids, labels))
    assert found == {"wer": jiwer.wer(given, said), "cer": jiwer.cer(given, ["l", "h", "m m l"])}
    lines = built.details(EvalPrediction(ids, labels))["transcripts.tsv"]
    assert lines == "given\trecognised\nl\tl\nhl\th\nm hm\tm m l\n"
    with pytest.raises(ConfigError, match="speech-recognition is judged by generated texts, got logits"):
        built.compute_metrics(EvalPrediction(np.zeros((3, 12, 264)), labels))


# Refusals


BAD = {
    "window": (whisper, {"max_seconds": 1.05}, ConfigError, r"is 1.05, but the feature extractor .* less"),
    "tokens": (whisper, {"max_tokens": 99}, ConfigError, r"99, but .* at most 64 tokens; set data.max_tokens=64"),
    "row": (whisper, {"max_tokens": 5}, DataError, r"data.train: row 3: the transcript takes 6 tokens, and 5 are writ"),
    "one language": (whisper, {"language": "en"}, ConfigError, r"'en', but .* does not tell languages apart .*drop it"),
    "no language": (multilingual, {}, ConfigError, r"writes 3 languages; set data.language .* data.language=en"),
    "unknown language": (multilingual, {"language": "ge"}, ConfigError, r"unknown language 'ge'.* Allowed: de, en, zh"),
    "of CTC": (
        lambda folder: tiny_wav2vec2(folder, transformers.AutoModelForCTC),
        {"num_beams": 2},
        ConfigError,
        r"data.num_beams is for models that generate, and .*model' has a CTC head; drop it",
    ),
    "of no kind": (
        tiny_checkpoint,
        {},
        ConfigError,
        r"a CTC head .* kind \(whisper\); .*model' is a 'bert' model",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_refusals(case: str, tmp_path: Path) -> None:
    write, settings, error, message = BAD[case]
    model = write(tmp_path / "model")
    with pytest.raises(error, match=message):
        ready(splits(), model, **settings).encode_all(splits())


def test_no_tokenizer(checkpoint: str) -> None:
    for file in Path(checkpoint).glob("tokenizer*"):
        file.unlink()
    with pytest.raises(ConfigError, match="has no tokenizer files; save its processor into the same folder"):
        ready(splits(), checkpoint)


# Models


def test_trains_with_label_smoothing_and_a_teacher(checkpoint: str, tmp_path: Path) -> None:
    """Both compute the model without the labels, from which it would make its decoder's inputs."""
    data = DatasetDict({"train": splits()["train"], "validation": splits()["train"]})
    built = ready(data, checkpoint)
    taught = {"distillation": {"teacher": str(tmp_path / "smooth" / "saved"), "hidden": 1, "alpha": 1}}
    for name, settings in {"smooth": {"label_smoothing_factor": 0.1}, "taught": {"optimizations": taught}}.items():
        made = task_trainer(
            built, built.load_model(checkpoint), data, tmp_path / name, max_steps=150, learning_rate=3e-3,
            logging_steps=1, **settings, **built.arguments(),
        )  # fmt: skip
        assert isinstance(made, EfficientSeq2SeqTrainer)
        made.train()
        assert made.evaluate()["eval_wer"] < 0.5
        made.save_model(str(tmp_path / name / "saved"))


def test_what_is_timed_generates(checkpoint: str) -> None:
    built = ready(splits(), checkpoint, max_tokens=8)
    rows = splits()["train"]
    model = built.load_model(checkpoint).eval()
    timing = measure(
        built.runtime(model), list(built.requests(rows)), built.collator(), repeats=1, seconds=0, warmup=0,
        preprocess=built.preprocess, raw=[built.raw(row) for row in rows],
    )  # fmt: skip
    assert timing.runtime == "PyTorch, generating"
    ids = model.generate(**built.preprocess([built.raw(row) for row in rows]), max_length=8)
    assert timing.new_tokens == pytest.approx(float((ids != END).sum(1).float().mean()), rel=0.05)


@pytest.mark.parametrize("side", [0, 1])
def test_a_cut_model_generates(side: int, tmp_path: Path) -> None:
    """Caches count layers, and the config speaks of those of the encoder."""
    model = whisper(tmp_path / "model", encoder_layers=3, decoder_layers=3)
    built = ready(splits(), model)
    cut = built.load_model(model).eval()
    cut_layers(cut, layer_stacks(cut)[side], [1])
    features = built.preprocess([built.raw(row) for row in splits()["train"]])
    told = cut.generate(**features, max_length=12)
    assert torch.equal(told, cut.generate(**features, max_length=12, use_cache=False))
    cut.save_pretrained(tmp_path / "cut")
    again = AutoModelForSpeechSeq2Seq.from_pretrained(tmp_path / "cut")
    assert torch.equal(told, again.generate(**features, max_length=12))


def test_a_run_on_the_sample(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It learns to write; cut and taught, it is less deep, and loads as any other."""
    monkeypatch.setattr("hf_efficient.outcome.peak_memory_mb", lambda *args, **kwargs: None)
    monkeypatch.setattr("hf_efficient.outcome.SECONDS", 0.0)
    monkeypatch.setattr("hf_efficient.outcome.TURNS", 1)
    epochs = {"finetune": 24, "compress": 4}
    overrides = [f"stages.{stage}.training.num_train_epochs={count}" for stage, count in epochs.items()]
    result = run("speech-recognition", [f"model={NEW}", "data.max_seconds=1", *overrides], runs=tmp_path / "runs")
    assert result is not None
    found = result.metrics["test"]
    assert found["before"]["wer"] < 0.6 < found["baseline"]["wer"]
    assert found["after"]["wer"] < found["baseline"]["wer"]
    assert "| New tokens" in (result.folder / "report.md").read_text()
    model: Any = AutoModelForSpeechSeq2Seq.from_pretrained(result.model)
    assert (model.config.encoder_layers, model.config.decoder_layers) == (2, 2)
    lines = (result.folder / "after" / "transcripts.tsv").read_text().splitlines()[1:9]
    rows = load(SpeechRecognitionData(train="sample:tones"))["test"].select(range(8))
    assert [line.split("\t")[0] for line in lines] == list(rows["text"])
    answers = _answers(result.model, rows)
    assert answers == [line.split("\t")[1] for line in lines]


def _answers(folder: Path, rows: Dataset) -> list[str]:
    """What a pipeline makes of the recordings."""
    built = SpeechRecognition(SpeechRecognitionData(train="unused", max_seconds=1))
    built.load_processor(str(folder))
    recognise = transformers.pipeline(built.pipeline, model=str(folder), device="cpu")
    told = [recognise(built.raw(row), generate_kwargs={"max_length": 64})["text"] for row in rows]
    return [" ".join(text.split()) for text in told]

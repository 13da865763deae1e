"""Speech recognition: vocabularies, labels with blanks, error rates, and what is not heard because it is padding."""

from pathlib import Path
from typing import Any

import jiwer
import numpy as np
import pytest
import torch
import transformers
from datasets import Dataset, DatasetDict
from transformers import AutoModelForCTC, EvalPrediction, Trainer, TrainingArguments, Wav2Vec2Processor, set_seed

from hf_efficient.calibration import require_trained
from hf_efficient.data import load
from hf_efficient.errors import ConfigError, DataError
from hf_efficient.task import get_task
from hf_efficient.tasks.speech_recognition import SpeechRecognition, SpeechRecognitionData, _tokenizer_of
from tests.tasks.recordings import RATE, file_bytes, tiny_wav2vec2, tone, wav2vec2_extractor

LETTERS = {"l": "low", "h": "high", "m": "middle"}
TEXTS = ["l", "hl", "m hm", "lml", "hh", "ml l"]


def spoken(text: str) -> bytes:
    """A tenth of a second for each letter; silence between words."""
    parts = [tone(LETTERS[one]) if one in LETTERS else np.zeros(400) for one in text]
    return file_bytes(np.concatenate(parts))


def splits(texts: list[str] = TEXTS, test: list[str] | None = None, audio: list[Any] | None = None) -> DatasetDict:
    train = Dataset.from_dict({"audio": [spoken(text) for text in texts] if audio is None else audio, "text": texts})
    other = train if test is None else Dataset.from_dict({"audio": [spoken("l")] * len(test), "text": test})
    return DatasetDict({"train": train, "test": other})


@pytest.fixture
def checkpoint(tmp_path: Path) -> str:
    """A model without a tokenizer."""
    return tiny_wav2vec2(tmp_path / "model", AutoModelForCTC)


def task(**settings: Any) -> SpeechRecognition:
    return SpeechRecognition(SpeechRecognitionData(train="unused", **{"max_seconds": 1, **settings}))


def ready(data: DatasetDict, model: str, **settings: Any) -> SpeechRecognition:
    built = task(**settings)
    built.check(data)
    built.load_processor(model)
    return built


def predicted(built: SpeechRecognition, rows: Dataset, model: Any, size: int) -> EvalPrediction:
    set_seed(0)
    quiet = {"report_to": "none", "use_cpu": True, "disable_tqdm": True, "dataloader_pin_memory": False}
    args = TrainingArguments("unused", per_device_eval_batch_size=size, **quiet)
    said = Trainer(model, args, data_collator=built.collator()).predict(built.encode(rows))
    return EvalPrediction(said.predictions, said.label_ids)


def test_the_sample_and_a_new_model() -> None:
    settings = SpeechRecognitionData(train="sample:tones")
    data = load(settings)
    built = get_task("speech-recognition")(settings)
    built.check(data)
    processor = built.load_processor("new:wav2vec2-tiny")
    assert processor.tokenizer.get_vocab() == {
        token: index for index, token in enumerate(["[PAD]", "|", "[UNK]", *"abcdef"])
    }
    model = built.load_model("new:wav2vec2-tiny")
    assert (model.config.vocab_size, model.config.pad_token_id) == (9, 0)
    batch = built.collator()(list(built.encode(data["validation"].select(range(4)))))
    output = model(**batch)
    assert output.logits.shape == (*batch["labels"].shape, 9)
    assert torch.isfinite(output.loss)


# Labels


def test_labels_are_the_transcript_and_blanks_to_the_end_of_the_recording(checkpoint: str) -> None:
    data = splits()
    built = ready(data, checkpoint)
    model = built.load_model(checkpoint)
    for text, row in zip(TEXTS, built.encode(data["train"]), strict=True):
        ids = built.processor.tokenizer(text).input_ids
        assert row["labels"] == ids + [0] * (len(row["labels"]) - len(ids))
        positions = model(torch.tensor(row["input_values"])[None]).logits.shape[1]
        assert len(row["labels"]) == positions
    without = built.encode(data["train"].remove_columns("text"))
    assert "labels" not in without.column_names


def test_the_loss_is_that_of_the_transcript_alone(checkpoint: str) -> None:
    built = ready(splits(), checkpoint)
    model = built.load_model(checkpoint).eval()
    batch = built.collator()(list(built.encode(splits()["train"])))
    short = {**batch, "labels": torch.where(batch["labels"] == 0, -100, batch["labels"])[:, :4]}
    torch.testing.assert_close(model(**batch).loss, model(**short).loss)


def test_case_and_what_is_dropped(checkpoint: str) -> None:
    data = splits(audio=[spoken("l")] * 2, texts=["Hm,  l!", "m, h."])
    built = ready(data, checkpoint, case="lower", drop=",.!")
    assert set(built.processor.tokenizer.get_vocab()) == {"[PAD]", "|", "[UNK]", *"hlm"}
    rows = built.encode(data["train"])["labels"]
    texts = [built.processor.tokenizer.decode([one for one in row if one], group_tokens=False) for row in rows]
    assert texts == ["hm l", "m h"]


BAD = {
    "characters": (splits(test=["l", "lx?"]), {}, r"data.test: row 2: the tokenizer has nothing for \? x .*data.drop"),
    "delimiter": (splits(["l", "h|l"]), {}, r"data.train: row 2: the tokenizer has nothing for \| in the transcript"),
    "length": (splits(test=["lh" * 20]), {}, r"data.test: row 1: the transcript takes 40 positions, .* gives 19"),
    "repeats": (splits(test=["l" * 12]), {}, r"data.test: row 1: the transcript takes 23 positions"),
    "nothing left": (splits(test=["."]), {"drop": "."}, r"data.test: row 1: data.drop leaves no transcript; delete"),
    "missing": (splits(audio=["gone.wav"] * 6), {}, r"data.train: row 1: cannot read the recording gone.wav"),
    "empty": (splits(audio=[spoken("l")] * 5 + [b""]), {}, r"data.train: row 6: the recording is empty; replace it"),
    "no text": (
        splits().map(lambda row: {"text": 1}),
        {},
        r"data.train: column 'text' must hold text, got int64",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_data(case: str, checkpoint: str) -> None:
    data, settings, message = BAD[case]
    with pytest.raises(DataError, match=message):
        ready(data, checkpoint, **settings).encode_all(data)


# Metrics


def test_metrics_are_those_of_jiwer(checkpoint: str) -> None:
    built = ready(splits(), checkpoint)
    given, said = ["l", "hl", "m hm"], ["l", "h", "m m l"]
    tokenizer = built.processor.tokenizer
    labels, logits = np.full((3, 8), -100), np.zeros((3, 8, len(tokenizer)))
    for row, (text, heard) in enumerate(zip(given, said, strict=True)):
        ids, spelt = tokenizer(text).input_ids, tokenizer(heard).input_ids
        labels[row] = ids + [0] * (8 - len(ids))
        logits[row, range(8), spelt + [0] * (8 - len(spelt))] = 5
    found = built.compute_metrics(EvalPrediction(logits, labels))
    assert found == {"wer": jiwer.wer(given, said), "cer": jiwer.cer(given, said)}
    assert found["wer"] == pytest.approx(3 / 4)
    assert (built.main_metric, built.greater_is_better) == ("wer", False)
    lines = built.details(EvalPrediction(logits, labels))["transcripts.tsv"]
    assert lines == "given\trecognised\nl\tl\nhl\th\nm hm\tm m l\n"


def test_baseline_is_the_most_frequent_transcript() -> None:
    rows = {"train": ["a b", "c", "A b"], "test": ["a b", "a c"]}
    data = DatasetDict({name: Dataset.from_dict({"text": texts}) for name, texts in rows.items()})
    built = get_task("speech-recognition")(SpeechRecognitionData(train="unused", case="lower"))
    name, found = built.baseline(data, "test")
    assert (name, found["wer"]) == ("always 'a b'", 0.25)


def test_padding_is_not_heard(checkpoint: str, tmp_path: Path) -> None:
    """The transcript is the same from any batch, and in a pipeline."""
    built = ready(splits(), checkpoint)
    model = built.load_model(checkpoint)
    torch.nn.init.normal_(model.lm_head.weight)
    said, given = built._both(predicted(built, splits()["train"], model, size=6))
    assert given == TEXTS
    assert len(set(said)) > 1
    assert said == built._both(predicted(built, splits()["train"], model, size=2))[0]
    model.save_pretrained(tmp_path / "saved")
    built.processor.save_pretrained(tmp_path / "saved")
    recognise = transformers.pipeline(built.pipeline, model=str(tmp_path / "saved"), device="cpu")
    answers = [recognise(built.raw(row))["text"] for row in splits()["train"]]
    assert [" ".join(text.split()) for text in answers] == said


# Models


def test_a_finished_model_brings_its_vocabulary(checkpoint: str, tmp_path: Path) -> None:
    first = ready(splits(["lh", "hl"]), checkpoint)
    first.load_model(checkpoint).save_pretrained(tmp_path / "saved")
    first.processor.save_pretrained(tmp_path / "saved")
    built = ready(splits(["l", "h"]), str(tmp_path / "saved"))
    assert built.processor.tokenizer.get_vocab() == first.processor.tokenizer.get_vocab()
    assert built.load_model(str(tmp_path / "saved")).config.vocab_size == 5
    with pytest.raises(DataError, match="the tokenizer has nothing for m in the transcript"):
        ready(splits(), str(tmp_path / "saved")).encode_all(splits())
    alone = task()
    alone.load_processor(str(tmp_path / "saved"))
    assert "labels" in alone.encode(splits(["lh"])["train"]).column_names


def test_capital_letters(checkpoint: str) -> None:
    Wav2Vec2Processor(wav2vec2_extractor(), _tokenizer_of("HLM")).save_pretrained(checkpoint)
    with pytest.raises(DataError, match=r"nothing for l in the transcript; .* set data.case"):
        ready(splits(), checkpoint).encode_all(splits())
    rows = ready(splits(), checkpoint, case="upper").encode(splits()["train"])
    assert all(2 not in row for row in rows["labels"])


def test_no_vocabulary_and_no_data(checkpoint: str) -> None:
    with pytest.raises(ConfigError, match="has no tokenizer files; save its processor into the same folder"):
        task().load_processor(checkpoint)


def test_learns(checkpoint: str, tmp_path: Path) -> None:
    data = splits()
    built = ready(data, checkpoint)
    quiet = {"report_to": "none", "use_cpu": True, "disable_tqdm": True, "dataloader_pin_memory": False}
    args = TrainingArguments(
        str(tmp_path / "out"), num_train_epochs=60, learning_rate=5e-3, logging_steps=1, save_strategy="no", **quiet
    )
    trainer = Trainer(
        built.load_model(checkpoint), args, train_dataset=built.encode(data["train"]), data_collator=built.collator()
    )
    trainer.train()
    losses = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    assert losses[-1] < losses[0] / 3


def test_labels_without_places_do_not_tell_whether_a_model_is_trained(checkpoint: str) -> None:
    built = ready(splits(), checkpoint)
    batch = built.collator()(list(built.encode(splits()["train"])))
    require_trained("a cut", built.load_model(checkpoint), [batch])


def test_sampling_rate_is_the_models(checkpoint: str) -> None:
    assert ready(splits(), checkpoint).read.rate == RATE

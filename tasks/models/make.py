"""Writes the tokenizers of the models here that read or write text: `python make.py` here, the same each time.

Byte-level BPE (any text can be written with it), trained on the training texts of the bundled samples; whisper-tiny has
the bytes alone.
"""

import csv
import json
from collections.abc import Iterator
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast, WhisperTokenizer

DATA = Path(__file__).parents[1] / "data"
PADDING, END = "<pad>", "</s>"
SIZES = {"bart-tiny": 640, "gpt2-tiny": 1024}
"""Tokens of each."""

WHISPER = [
    f"<|{name}|>"
    for name in (
        *("endoftext", "startoftranscript", "translate", "transcribe"),
        *("startoflm", "startofprev", "nospeech", "notimestamps"),
    )
]
"""Special tokens of Whisper, in its order and after all others: it takes what lies beyond for times."""


def texts(model: str) -> Iterator[str]:
    if model == "gpt2-tiny":
        with (DATA / "customer_service" / "train.csv").open(encoding="utf-8", newline="") as file:
            yield from (row["text"] for row in csv.DictReader(file))
        return
    for sample in ("announcements", "deliveries"):
        for line in (DATA / sample / "train.jsonl").read_text(encoding="utf-8").splitlines():
            yield from json.loads(line).values()


def trained(model: str) -> PreTrainedTokenizerFast:
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    made.train_from_iterator(
        texts(model),
        trainers.BpeTrainer(
            vocab_size=SIZES[model], special_tokens=[PADDING, END], initial_alphabet=alphabet, show_progress=False
        ),
    )
    if model == "bart-tiny":  # what an encoder reads and a decoder writes has an end; prompts have none
        made.post_processor = processors.TemplateProcessing(single=f"$A {END}", special_tokens=[(END, 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=made,
        pad_token=PADDING,
        eos_token=END,
        model_max_length=512,
        clean_up_tokenization_spaces=False,
    )


def whisper() -> WhisperTokenizer:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    return WhisperTokenizer(
        vocab={token: index for index, token in enumerate([*alphabet, *WHISPER])},
        merges=[],
        pad_token=WHISPER[0],
        additional_special_tokens=WHISPER,
        model_max_length=64,
        clean_up_tokenization_spaces=False,
    )


if __name__ == "__main__":
    whisper().save_pretrained(Path(__file__).parent / "whisper-tiny")
    for name in SIZES:
        trained(name).save_pretrained(Path(__file__).parent / name)

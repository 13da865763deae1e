"""Tiny checkpoints with a real WordPiece tokenizer, and a task's trainer on them."""

from pathlib import Path
from typing import Any

import pytest
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    BertTokenizer,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedTokenizerBase,
    set_seed,
)

TEXT = "my card is lost the app how do i pay where money no not a new ##s ##ed"
VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *TEXT.split(), *"abcdefghijklmnopqrstuvwxyz?."]


def tiny_tokenizer() -> PreTrainedTokenizerBase:
    return BertTokenizer(
        vocab={word: index for index, word in enumerate(dict.fromkeys(VOCABULARY))}, model_max_length=32
    )


def tiny_checkpoint(folder: Path, labels: list[str] | None = None, **changes: object) -> str:
    """Write model and tokenizer into ``folder``; ``labels`` None leaves transformers' LABEL_0, LABEL_1."""
    set_seed(0)
    names = (
        {}
        if labels is None
        else {"id2label": dict(enumerate(labels)), "label2id": {n: i for i, n in enumerate(labels)}}
    )
    size = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    tokenizer = tiny_tokenizer()
    config = BertConfig(vocab_size=len(tokenizer), max_position_embeddings=32, **{**size, **names, **changes})
    BertForSequenceClassification(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


END = 3  # [SEP], which ends a text of `tiny_gpt2`


def tiny_gpt2(folder: Path, layers: int) -> str:
    """Write a causal language model and its tokenizer into ``folder``."""
    set_seed(0)
    tokenizer = tiny_tokenizer()
    tokenizer.eos_token = "[SEP]"
    ids = {"bos_token_id": 2, "eos_token_id": END, "pad_token_id": 0}
    sizes = {"n_embd": 16, "n_layer": layers, "n_head": 2, "n_positions": 32}
    config = GPT2Config(vocab_size=len(tokenizer), resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, **ids, **sizes)
    GPT2LMHeadModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def task_trainer(built: Any, model: Any, data: Any, folder: Path, **settings: Any) -> Any:
    """The trainer of a task on ``data``, which it encodes; it is quiet, and measures nothing."""
    args = built.arguments_class(
        str(folder), report_to="none", disable_tqdm=True, use_cpu=True, dataloader_pin_memory=False, measure_seconds=0,
        **settings,
    )  # fmt: skip
    encoded = built.encode_all(data)
    return built.trainer(
        model=model, args=args, train_dataset=encoded["train"], eval_dataset=encoded["validation"],
        processing_class=built.processor,
    )  # fmt: skip


@pytest.fixture
def checkpoint(tmp_path: Path) -> str:
    return tiny_checkpoint(tmp_path / "model")

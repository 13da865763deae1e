"""A tiny BERT checkpoint with a real WordPiece tokenizer."""

from pathlib import Path

import pytest
from transformers import BertConfig, BertForSequenceClassification, BertTokenizer, PreTrainedTokenizerBase, set_seed

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


@pytest.fixture
def checkpoint(tmp_path: Path) -> str:
    return tiny_checkpoint(tmp_path / "model")

"""Trainers of other libraries, made efficient; skipped where the library is not installed."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import pytest
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from hf_efficient import Optimization, Order, efficient


@dataclass(eq=False, kw_only=True)
class Seen(Optimization):
    """Counts how often its hooks run."""

    name = "seen"
    order = Order.STRUCTURE

    def __post_init__(self) -> None:
        self.models = self.steps = self.losses = 0

    def prepare_model(self, model: Any, context: Any) -> Any:
        self.models += 1
        return model

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.steps += 1


@dataclass(eq=False, kw_only=True)
class SeenLoss(Seen):
    def loss(self, loss: Any, inputs: Any, outputs: Any, scale: Any) -> Any:
        self.losses += 1
        return loss


def check(trainer: Any, seen: Seen, folder: Path) -> None:
    trainer.train()
    assert (seen.models, seen.steps) == (1, 3)
    assert (folder / "final" / "model.safetensors").is_file()


def test_sentence_transformers(tmp_path: Path, default_model: str) -> None:
    library = pytest.importorskip("sentence_transformers")
    losses = pytest.importorskip("sentence_transformers.sentence_transformer.losses")
    pairs = datasets.Dataset.from_dict({"anchor": ["one", "two"] * 4, "positive": ["eins", "zwei"] * 4})
    model = library.SentenceTransformer(default_model, device="cpu")
    args = library.SentenceTransformerTrainingArguments(
        str(tmp_path), max_steps=3, per_device_train_batch_size=2, report_to="none", use_cpu=True, disable_tqdm=True
    )
    seen = Seen()
    trainer = efficient(library.SentenceTransformerTrainer)(
        model=model,
        args=args,
        train_dataset=pairs,
        loss=losses.MultipleNegativesRankingLoss(model),
        callbacks=[seen],
    )
    check(trainer, seen, tmp_path)


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_trl(tmp_path: Path) -> None:
    trl = pytest.importorskip("trl")
    tokenizers = pytest.importorskip("tokenizers")
    words = ["<pad>", "<eos>", "<unk>", *(f"w{index}" for index in range(30))]
    vocabulary = {word: index for index, word in enumerate(words)}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    processor = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>")
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    seen = SeenLoss()
    trainer = efficient(trl.SFTTrainer)(
        model=LlamaForCausalLM(LlamaConfig(vocab_size=40, **sizes)),
        args=trl.SFTConfig(
            str(tmp_path), max_steps=3, per_device_train_batch_size=4, report_to="none", use_cpu=True, bf16=False
        ),
        train_dataset=datasets.Dataset.from_dict({"text": [f"w{index} w{index + 1}" for index in range(24)]}),
        processing_class=processor,
        callbacks=[seen],
    )
    check(trainer, seen, tmp_path)
    assert seen.losses == 3

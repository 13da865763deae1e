"""A transformers encoder that gives an embedding of each text, and is saved as sentence-transformers has it."""

import functools
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
import torch.nn.functional as F
from transformers import PreTrainedModel
from transformers.utils import ModelOutput, cached_file

from hf_efficient.errors import ConfigError, MissingDependencyError

if TYPE_CHECKING:
    _Base = PreTrainedModel
else:
    _Base = object

SCALE = 20.0
"""What cosines are multiplied by before they are scores of answers, as in sentence-transformers."""

_MODULES = ("Transformer", "Pooling", "Normalize")
_POOLING = "1_Pooling"


@dataclass
class Embeddings(ModelOutput):
    """What a `SentenceEncoder` returns.

    Attributes:
        loss: `in_batch_loss`; None without labels.
        logits: shape (texts, width), of length sqrt(width): squared distances between models are means over outputs,
            and this way 2 - 2 cos. They are no class scores, which labels that are floats tell.
    """

    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None


class SentenceEncoder(_Base):
    """What is put in front of an encoder's class; `as_encoder` does so.

    Attributes:
        pooling: makes an embedding of hidden states: a `Pooling` of sentence-transformers, without weights.
        max_length: tokens after which texts are cut.
        prompts: "query" and "document": what stands before questions and answers.
    """

    pooling: ClassVar[Any]
    max_length: ClassVar[int]
    prompts: ClassVar[dict[str, str]]
    accepts_loss_kwargs = False  # the loss is a mean over the pairs of a micro-batch

    def forward(  # type: ignore[override]
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> Embeddings:
        """Embeddings of texts.

        Args:
            input_ids, attention_mask: shape (texts, tokens); with labels a question, its answer, a question, and so on.
            labels: shape (texts,), see `in_batch_loss`.
        """
        hidden = super().forward(input_ids=input_ids, attention_mask=attention_mask, **kwargs).last_hidden_state
        features = {"token_embeddings": hidden}
        if attention_mask is not None:
            features["attention_mask"] = attention_mask
        embeddings = F.normalize(self.pooling(features)["sentence_embedding"].float(), dim=-1)
        loss = None if labels is None else in_batch_loss(embeddings, labels)
        return Embeddings(loss, embeddings * math.sqrt(embeddings.shape[-1]))

    def save_pretrained(self, save_directory: Any, **kwargs: Any) -> None:  # type: ignore[override]
        """Stock's, and beside it what `SentenceTransformer(save_directory)` reads."""
        super().save_pretrained(save_directory, **kwargs)
        folder = Path(save_directory)
        (folder / _POOLING).mkdir(exist_ok=True)
        self.pooling.save(str(folder / _POOLING))
        paths = ("", _POOLING, "")
        files = {
            "modules.json": [
                {"idx": index, "name": str(index), "path": path, "type": f"sentence_transformers.models.{kind}"}
                for index, (kind, path) in enumerate(zip(_MODULES, paths, strict=True))
            ],
            "sentence_bert_config.json": {"max_seq_length": self.max_length, "do_lower_case": False},
            "config_sentence_transformers.json": {"prompts": self.prompts, "similarity_fn_name": "cosine"},
        }
        for name, content in files.items():
            (folder / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def in_batch_loss(embeddings: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Cross-entropy of each question's own answer among the answers of the batch; scalar, a mean over pairs.

    `MultipleNegativesRankingLoss` of sentence-transformers (Henderson et al. 2017, arXiv 1705.00652), but for this: the
    answers of an equal question, and answers equal to its own, are no negatives of a question. In data where many
    questions share an answer, most batches have some.

    Args:
        embeddings: of length 1, shape (2 * pairs, width): a question, its answer, the next question, and so on.
        labels: shape (2 * pairs,): the same number for equal questions, and for equal answers.
    """
    questions, answers = embeddings[0::2], embeddings[1::2]
    asked, answered = labels[0::2], labels[1::2]
    alike = (asked[:, None] == asked) | (answered[:, None] == answered)
    own = torch.arange(len(questions), device=embeddings.device)
    with torch.autocast(embeddings.device.type, enabled=False):  # in 16 bits cosines near 1 would be all alike
        scores = SCALE * questions @ answers.T
    return F.cross_entropy(scores.masked_fill(alike.fill_diagonal_(False), -torch.inf), own)


def as_encoder(model: PreTrainedModel, pooling: Any, max_length: int, prompts: dict[str, str]) -> Any:
    """``model`` itself as a `SentenceEncoder`; its class keeps its name, by which it is loaded again."""
    model.__class__ = _class(type(model), pooling, max_length, tuple(prompts.items()))
    return model


@functools.cache
def _class(base: type, pooling: Any, max_length: int, prompts: tuple[tuple[str, str], ...]) -> Any:
    body = {"pooling": pooling, "max_length": max_length, "prompts": dict(prompts)}
    named = {name: getattr(base, name) for name in ("__doc__", "__module__", "__qualname__")}
    return type(base.__name__, (SentenceEncoder, base), {**body, **named})


def pooling_of(source: str, width: int) -> Any:
    """The `Pooling` that the model ``source`` (folder or Hub id) was made with; the mean where it names none.

    Args:
        width: of its hidden states.

    Raises:
        MissingDependencyError: sentence-transformers is not installed.
        ConfigError: a model with other modules than these can be trained.
    """
    try:
        from sentence_transformers.sentence_transformer.modules import Pooling
    except ImportError as error:
        raise MissingDependencyError("sentence-similarity", "sentence-transformers", "sentence-transformers") from error
    file = cached_file(
        source,
        "modules.json",
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
    )
    if file is None:
        return _shared(Pooling, width, "mean")
    modules = json.loads(Path(file).read_text(encoding="utf-8"))
    kinds = tuple(module["type"].rpartition(".")[2] for module in modules)
    if kinds not in (_MODULES, _MODULES[:2]):
        raise ConfigError(
            f"model '{source}' is made of {', '.join(kinds)}; sentence-similarity trains those of "
            f"{', '.join(_MODULES)}, so take another"
        )
    return _shared(Pooling, width, Pooling.load(source, subfolder=modules[1]["path"]).pooling_mode)


@functools.cache
def _shared(pooling: Any, width: int, mode: Any) -> Any:
    """One for all models alike, so that these are of one class."""
    return pooling(width, mode)

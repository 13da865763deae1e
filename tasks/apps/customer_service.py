"""Customer service: the best answer to a message's intents; else passages of a knowledge base, or a person.

What a message is answered with, in this order:

- *answer*: the texts for its intents, where it is one that the classifier knows (`Scope`) and its confidence is at
  least ``confidence``;
- *knowledge*: sentences of the passages nearest to it, with their sources, where one is near enough;
- *handover*: a person will answer; the message waits for one.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from datasets import DatasetDict
from pydantic import Field

from hf_efficient.app import App, AppSettings, Ask, Request
from hf_efficient.data import check_columns, named_file
from hf_efficient.errors import ConfigError, DataError, RequestError, unknown
from hf_efficient.files import write_json, write_text
from hf_efficient.functional.batching import in_like_lengths
from hf_efficient.reading import read_file
from hf_efficient.tasks.apps.conversations import HANDOVER, Conversations, as_csv, new_id
from hf_efficient.tasks.apps.encoder import BATCH, Encoder
from hf_efficient.tasks.apps.knowledge import KnowledgeBase, Passage, require_faiss, sentences
from hf_efficient.tasks.apps.requests import Message
from hf_efficient.tasks.apps.scope import Scope, nearness
from hf_efficient.tasks.apps.service_page import WORDS, service_page

MOST_PARTS = 20
"""Sentences of a message that are looked at by themselves."""

ANSWER, KNOWLEDGE = "answer", "knowledge"
"""Kinds of answers, beside `HANDOVER`."""

_ANSWERS, _SCOPE, _KNOWN, _TRAIN = "answers.json", "scope.json", "known.npy", "train.csv"
_ENCODER, _KNOWLEDGE = "encoder", "knowledge"


class CustomerServiceSettings(AppSettings):
    """Settings of the app."""

    answers: str
    """JSON file with the answer to each intent: a path or ``sample:<name>/<file>``."""

    knowledge: str | None = None
    """File of documents (csv, jsonl, ...), named alike; None: what has no answer goes to a person."""

    knowledge_text: str = "text"
    """Column of the documents' texts."""

    knowledge_title: str | None = None
    """Column of what they are called."""

    knowledge_source: str | None = None
    """Column of where they are from, such as a URL."""

    out_of_scope: str | None = None
    """File of messages that are none of the classifier's (column ``text``), to learn the bounds with; of one with a
    column ``split``, the rows of ``validation``."""

    encoder: str = "sentence-transformers/all-MiniLM-L6-v2"
    """Model that embeds messages and passages: Hub id or folder."""

    confidence: float = Field(default=0.5, ge=0, le=1)
    """Least calibrated probability of an intent that is answered."""

    similarity: float = Field(default=0.35, ge=-1, le=1)
    """Least cosine of a message and a passage that is an answer to it."""

    passages: int = Field(default=3, ge=1, le=20)
    """Passages that an answer may be put together of."""

    several: float | None = Field(default=0.8, ge=0, le=1)
    """Least calibrated probability of a sentence's own intent, where a message has several; None: only the message as a
    whole has one."""

    keep: float = Field(default=0.95, gt=0, lt=1)
    """Share of the validation messages that must count as known, where no ``out_of_scope`` is given."""

    handover: str = "Let me pass you on to a colleague, who will answer you here as soon as possible."
    """What a customer is told whose message goes to a person."""

    database: str | None = None
    """URL of SQLAlchemy; None: SQLite in the run's folder."""


class CustomerRequest(Request):
    """A customer's message."""

    text: Message
    """What the customer wrote."""

    conversation: str | None = Field(default=None, max_length=64)
    """Id that came with the first answer; None begins a conversation."""


class Feedback(Request):
    """What somebody thinks of an answer."""

    message: str = Field(max_length=64)
    """Id that came with the answer."""

    helpful: bool
    """Whether it was one."""

    intent: str | None = None
    """What the message was about, where that is known better."""


class Reply(Request):
    """A person's answer."""

    message: str = Field(max_length=64)
    """Id of the message that waits."""

    text: Message
    """The answer."""


class CustomerService(App):
    """Answers customers: by intent, from a knowledge base, or through a person."""

    name = "customer-service"
    tasks = ("text-classification",)
    settings_class = CustomerServiceSettings
    request_class = CustomerRequest
    alone = False
    stays = frozenset({_TRAIN})
    words = WORDS

    settings: CustomerServiceSettings

    @classmethod
    def check(cls, settings: CustomerServiceSettings, task: Any, data: DatasetDict) -> None:
        read_answers(settings.answers, task.label_names)
        if settings.out_of_scope is not None:
            _strange(settings.out_of_scope)
        if settings.knowledge is not None:
            KnowledgeBase.documents(settings.knowledge, **_columns(settings))
            require_faiss()

    def prepare(self, data: DatasetDict, folder: Path) -> None:
        task, settings = self.predictor.task, self.settings
        write_json(folder / _ANSWERS, read_answers(settings.answers, self.predictor.labels))
        Encoder.export(settings.encoder, folder / _ENCODER)
        encoder = Encoder(folder / _ENCODER)
        texts = {split: [task.raw(row) for row in data[split]] for split in ("train", "validation")}
        known, judged = encoder(texts["train"]), encoder(texts["validation"])
        np.save(folder / _KNOWN, known.astype(np.float16))
        names = task.target.label_texts(data["train"])
        write_text(folder / _TRAIN, as_csv(list(zip(texts["train"], names, strict=True)), self._columns))
        strange = None
        if settings.out_of_scope is not None:
            others = _strange(settings.out_of_scope)
            strange = self._logits(others), nearness(encoder(others), known)
        rows = data["validation"]
        scope = Scope.fit(
            self._logits(texts["validation"]),
            np.asarray(task.indexer(rows)(rows[task.settings.label])),
            nearness(judged, known),
            strange=strange,
            pages=self._build_knowledge(folder / _KNOWLEDGE, encoder, judged),
            keep=settings.keep,
        )
        write_json(folder / _SCOPE, scope.plain())

    def _build_knowledge(self, folder: Path, encoder: Encoder, judged: np.ndarray) -> tuple[Any, Any] | None:
        """Write the knowledge base, if there is to be one.

        Returns:
            logits of what it is about, and the cosine of each of ``judged`` and the passage nearest to it.
        """
        settings = self.settings
        if settings.knowledge is None:
            return None
        KnowledgeBase.build(settings.knowledge, folder, encoder, **_columns(settings))
        base = KnowledgeBase(folder)
        nearest = [found[0].similarity for found in base.search(judged, 1)]
        return self._logits(base.topics()), np.array(nearest)

    def start(self) -> None:
        try:
            self.answers = json.loads((self.prepared / _ANSWERS).read_text(encoding="utf-8"))
            self.scope = Scope(**json.loads((self.prepared / _SCOPE).read_text(encoding="utf-8")))
            self.known = np.load(self.prepared / _KNOWN).astype(np.float32)
        except (OSError, ValueError, TypeError) as error:
            words = str(error).splitlines()[0]
            raise ConfigError(
                f"{self.prepared} lacks what the app prepares at the end of a run ({words}); run the recipe with its "
                f"app: {{name: {self.name}, ...}}"
            ) from None
        self.encoder = Encoder(self.prepared / _ENCODER, alone=False)
        has_knowledge = (self.prepared / _KNOWLEDGE).is_dir()
        self.knowledge = KnowledgeBase(self.prepared / _KNOWLEDGE) if has_knowledge else None
        url = self.settings.database or f"sqlite:///{(self.state / 'conversations.sqlite').absolute()}"
        self.conversations = Conversations(url)

    def stop(self) -> None:
        self.conversations.close()

    def answer(self, requests: Sequence[CustomerRequest]) -> list[dict[str, Any]]:
        """``{"kind", "text", "intents", "sources", "message", "conversation"}`` for each."""
        said = self.said([request.text for request in requests])
        kept = [
            {
                "conversation": request.conversation or new_id(),
                "text": request.text,
                "kind": each["kind"],
                "intents": each["intents"],
                "answer": each["text"],
            }
            for request, each in zip(requests, said, strict=True)
        ]
        ids = self.conversations.keep(kept)
        return [
            {**each, "message": id, "conversation": row["conversation"]}
            for each, id, row in zip(said, ids, kept, strict=True)
        ]

    def said(self, texts: Sequence[str]) -> list[dict[str, Any]]:
        """``{"kind", "text", "intents", "sources"}`` for each of ``texts``; nothing is kept."""
        messages = [_parts(text, self.settings.several is not None) for text in texts]
        self._judge([part for parts in messages for part in parts])
        return [self._answered(parts) for parts in messages]

    def _judge(self, parts: Sequence["_Part"]) -> None:
        """Tell the intent of each of ``parts``, and whether it is one; of those that are doubtful, what is near."""
        logits = self._logits([part.text for part in parts])
        shares, sure = self.scope.confidence(logits), self.scope.is_sure(logits)
        for part, row, is_sure in zip(parts, shares, sure, strict=True):
            best = int(row.argmax())
            part.intent, part.confidence = self.predictor.labels[best], float(row[best])
            part.is_known = bool(is_sure) and part.confidence >= self.settings.confidence
        doubtful = [part for part in parts if not part.is_known and (part.is_whole or part.confidence >= self._enough)]
        if not doubtful:
            return
        vectors = self.encoder([part.text for part in doubtful])
        found = (
            [[]] * len(vectors) if self.knowledge is None else self.knowledge.search(vectors, self.settings.passages)
        )
        for part, vector, passages, near in zip(doubtful, vectors, found, nearness(vectors, self.known), strict=True):
            part.vector, part.passages = vector, passages
            is_elsewhere = bool(passages) and passages[0].similarity - near > self.scope.margin
            is_near = near >= self.scope.near and not is_elsewhere
            part.is_known = bool(is_near) and part.confidence >= self.settings.confidence

    def _answered(self, parts: Sequence["_Part"]) -> dict[str, Any]:
        """The answer to a message, given as a whole and then in its sentences."""
        whole, *others = parts
        sure = [part for part in others if part.is_known and part.confidence >= self._enough]
        intents = list({part.intent: part.plain() for part in sure}.values())
        if len(intents) < 2:
            intents = [whole.plain()] if whole.is_known else []
        if intents:
            text = "\n\n".join(self.answers[each["intent"]] for each in intents)
            return {"kind": ANSWER, "text": text, "intents": intents, "sources": []}
        near = [passage for passage in whole.passages if passage.similarity >= self.settings.similarity]
        if self.knowledge is None or not near:
            return {"kind": HANDOVER, "text": self.settings.handover, "intents": [], "sources": []}
        text, sources = self.knowledge.composed(whole.vector, near)
        return {"kind": KNOWLEDGE, "text": text, "intents": [], "sources": list(map(_source, sources))}

    @property
    def _enough(self) -> float:
        """Least confidence of a sentence's own intent."""
        return max(self.settings.confidence, self.settings.several or 0)

    def _logits(self, texts: Sequence[str]) -> np.ndarray:
        return in_like_lengths(texts, BATCH, self.predictor.logits)

    @property
    def _columns(self) -> tuple[str, str]:
        settings = self.predictor.task.settings
        return settings.text, settings.label

    def training_data(self) -> str:
        """CSV of the run's training data, where it is at hand, and what feedback taught: for ``data.train``."""
        file = self.prepared / _TRAIN
        base = file.read_text(encoding="utf-8") if file.is_file() else as_csv([], self._columns)
        return base + as_csv(self.conversations.labelled(), self._columns).partition("\n")[2]

    def rate(self, feedback: Feedback) -> None:
        """Keep ``feedback``.

        Raises:
            RequestError: no such message or intent.
        """
        if feedback.intent is not None and feedback.intent not in self.predictor.labels:
            raise RequestError(f"intent: {unknown('intent', feedback.intent, self.predictor.labels)}")
        self.conversations.rate(feedback.message, feedback.helpful, feedback.intent)

    def add_routes(self, api: Any) -> None:
        add_routes(self, api)

    def page(self, ask: Ask) -> Any:
        return service_page(self, ask)


def add_routes(app: CustomerService, api: Any) -> None:
    """Feedback, handovers and conversations, beside the answers."""
    from fastapi.responses import PlainTextResponse

    @api.post("/feedback", summary="Tell what an answer was worth")
    def feedback(given: Feedback) -> dict[str, str]:
        app.rate(given)
        return {"status": "kept"}

    @api.get("/training-data.csv", summary="Training data with what feedback taught", response_class=PlainTextResponse)
    def training_data() -> str:
        return app.training_data()

    @api.get("/handovers", summary="Messages that wait for a person")
    def handovers() -> list[dict[str, Any]]:
        return app.conversations.waiting()

    @api.post("/handovers", summary="Answer a message that waits")
    def reply(given: Reply) -> dict[str, str]:
        app.conversations.reply(given.message, given.text)
        return {"status": "kept"}

    @api.get("/conversations/{name}", summary="A conversation's messages")
    def conversation(name: str) -> list[dict[str, Any]]:
        return app.conversations.conversation(name)


def read_answers(source: str, labels: Sequence[str]) -> dict[str, str]:
    """Intent -> answer, from a JSON file.

    Raises:
        DataError: no such file, not JSON of texts, or an intent without an answer or of no class.
    """
    path = named_file(source, "app.answers")
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f'app.answers: {path} is not valid JSON ({error}); write {{"intent": "answer", ...}}') from None
    if not isinstance(found, dict) or not all(isinstance(text, str) and text.strip() for text in found.values()):
        raise DataError(f'app.answers: {path} must hold a text for each intent: {{"intent": "answer", ...}}')
    if missing := sorted(set(labels) - set(found)):
        raise DataError(f"app.answers: {path} has no answer to {', '.join(missing)}; add one to each")
    for name in set(found) - set(labels):
        raise DataError(f"app.answers: {path}: {unknown('intent', name, labels)}")
    return found


def _columns(settings: CustomerServiceSettings) -> dict[str, Any]:
    """Of the knowledge base."""
    return {name: getattr(settings, f"knowledge_{name}") for name in ("text", "title", "source")}


def _strange(source: str) -> list[str]:
    """Texts of a file; of one with a column ``split``, those of validation."""
    rows = read_file(named_file(source, "app.out_of_scope"))
    check_columns(rows, ["text"], f"app.out_of_scope '{source}'")
    if "split" in rows.column_names:
        rows = rows.filter(lambda split: split == "validation", input_columns="split")
        check_columns(rows, ["text"], f"app.out_of_scope '{source}', rows with split 'validation'")
    return list(rows["text"])


@dataclass
class _Part:
    """A message, or a sentence of one.

    Attributes:
        is_known: whether it has the intent.
        vector, passages: where that was in doubt: its own, shape (width,), and the nearest ones.
    """

    text: str
    is_whole: bool = False
    intent: str = ""
    confidence: float = 0.0
    is_known: bool = False
    vector: Any = None
    passages: Sequence[Passage] = ()

    def plain(self) -> dict[str, Any]:
        return {"intent": self.intent, "confidence": round(self.confidence, 4)}


def _parts(text: str, several: bool) -> list[_Part]:
    """``text``, and behind it, where it has ``several``, its sentences."""
    found = sentences(text) if several else []
    whole = _Part(text, is_whole=True)
    return [whole, *map(_Part, found[:MOST_PARTS])] if len(found) > 1 else [whole]


def _source(passage: Passage) -> dict[str, Any]:
    return {"title": passage.title, "source": passage.source, "similarity": round(passage.similarity, 4)}

"""Recommendation: what a user may take next, ranked in milliseconds from vectors of items that were made once.

    hf-efficient run item-recommendation
    hf-efficient serve runs/item-recommendation

The run's encoder embeds each item by its text, and a ranker learns from the log how much likeness to what a user took
counts beside how often, how recently and at what price things are taken. A new item needs its text, a new user nothing:
he gets what many take and what is new, and after his first click what is like it.
"""

import threading
import time
from collections import deque
from collections.abc import Container, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from hf_efficient.app import App, AppSettings, Ask, Request
from hf_efficient.errors import RequestError
from hf_efficient.tasks.apps.catalogue import Columns, Item, read_catalogue, to_price, to_seconds
from hf_efficient.tasks.apps.interactions import Interaction, cutoff, known_only, read_log
from hf_efficient.tasks.apps.item_vectors import Embed, embedder, export_encoder, fingerprint
from hf_efficient.tasks.apps.market import Market, User, allowed, half_life_of
from hf_efficient.tasks.apps.prepared_market import Prepared
from hf_efficient.tasks.apps.ranker import best, learn
from hf_efficient.tasks.apps.recommendation_page import WORDS, build_page
from hf_efficient.tasks.apps.requests import Message
from hf_efficient.tasks.apps.taken import Taken

ENCODER = "encoder"
MOST = 100
"""Items of an answer."""

_AHEAD_SECONDS = 60  # that clocks of others may differ

Id = Annotated[str, Field(min_length=1, max_length=200)]


def _checked(read: Any) -> Any:
    def check(value: Any) -> Any:
        read(value)
        return value

    return AfterValidator(check)


class RecommendationSettings(AppSettings):
    """Where catalogue and log are, and what counts."""

    catalogue: str
    """What can be recommended: a file with the columns item, text and, where they are known, category, price and date;
    a folder with a file `catalogue`, or in the format of MIND; or `sample:<name>`."""

    log: str
    """What was taken: a file with the columns user, item and time, or a folder or sample as above."""

    columns: Columns = Columns()
    """What the columns are called, where that is otherwise."""

    newest: float = Field(default=0.3, gt=0, lt=1)
    """Newest share of the log, from which the ranker learns: what the encoder was not trained on."""

    again: bool = False
    """Whether what a user has taken is recommended to him again."""

    half_life_days: float | None = Field(default=None, gt=0)
    """Days after which what was taken counts half for popularity; a tenth of the log without it."""

    count: int = Field(default=10, ge=1, le=MOST)
    """Items of an answer, where the request does not say."""

    moment: Literal["clock", "log"] = "clock"
    """What time it is: by the clock, or going on from the end of the log, as for a log of long ago."""

    database: str | None = None
    """URL of SQLAlchemy for what is taken while serving; an SQLite file in the run without it."""


class RecommendationRequest(Request):
    """For whom, and how many."""

    user: Id | None = None
    """Who: one of the log or of earlier interactions, or anybody new."""

    history: list[Id] = Field(default=[], max_length=200)
    """Items that he took, the newest last; they come after what is known of the user, and are not kept."""

    wish: Message | None = None
    """What he looks for, in his words."""

    count: int | None = Field(default=None, ge=1, le=MOST)
    """How many items."""

    category: str | None = None
    """Only items of this one."""

    exclude: list[Id] = Field(default=[], max_length=1000)
    """Items that are left out."""


class InteractionGiven(BaseModel):
    """Somebody took something."""

    model_config = ConfigDict(extra="forbid")

    user: Id
    item: Id
    time: Annotated[str | float, _checked(to_seconds)] | None = None
    """ISO 8601 or seconds since 1970; now, without it."""


class ItemGiven(BaseModel):
    """Something new, or what has changed."""

    model_config = ConfigDict(extra="forbid")

    item: Id
    text: Message
    category: str = Field(default="", max_length=200)
    price: Annotated[float, _checked(to_price)] | None = None
    date: Annotated[str | float, _checked(to_seconds)] | None = None
    """Since when there is the item; without it as before, or from now on."""


class InteractionsGiven(BaseModel):
    model_config = ConfigDict(extra="forbid")

    interactions: list[InteractionGiven] = Field(min_length=1, max_length=1000)


class ItemsGiven(BaseModel):
    model_config = ConfigDict(extra="forbid")

    items: list[ItemGiven] = Field(min_length=1, max_length=100)


class ItemRecommendation(App):
    """What a user may take next, the best first."""

    name = "recommendation"
    tasks = ("sentence-similarity",)
    settings_class = RecommendationSettings
    request_class = RecommendationRequest
    words = WORDS

    settings: RecommendationSettings
    market: Market

    @classmethod
    def check(cls, settings: RecommendationSettings, task: Any, data: Any) -> None:
        _read(settings)

    def prepare(self, data: Any, folder: Path) -> None:
        """Embed the catalogue, and learn to rank from the log."""
        settings = self.settings
        items, log = _read(settings)
        runtime = export_encoder(self.predictor, folder / ENCODER)
        vectors = self._embed_items(embedder(self.predictor, folder / ENCODER), list(items.values()))
        half_life, since = half_life_of(log, settings.half_life_days), cutoff(log, settings.newest)
        ranker = learn(lambda: Market(list(items.values()), vectors, half_life), log, since, settings.again)
        model = fingerprint(self.predictor.folder)
        Prepared(list(items.values()), vectors, log, ranker, half_life, runtime).save(folder, model)

    def start(self) -> None:
        self._embed = embedder(self.predictor, self.prepared / ENCODER)
        prepared = Prepared.load(self.prepared, fingerprint(self.predictor.folder))
        self._ranker, self.market = prepared.ranker, Market(prepared.items, prepared.vectors, prepared.half_life)
        self._taken = Taken(self.settings.database or f"sqlite:///{self.state.resolve() / 'taken.sqlite'}")
        self._news: deque[list[Item] | list[Interaction]] = deque()
        self._adding = threading.Lock()
        if added := self._taken.items():
            self.market.add(added, self._embed_items(self._embed, added))
        for one in (*prepared.log, *self._taken.interactions()):
            self.market.observe(one)
        self._dates = {item.item: item.date for item in self.market.items}
        self._ahead = self.market.now - time.time() if self.settings.moment == "log" else 0.0

    def stop(self) -> None:
        self._taken.close()

    def now(self) -> float:
        """Seconds since 1970, as `moment` has it."""
        return time.time() + self._ahead

    def answer(self, requests: Sequence[RecommendationRequest]) -> list[dict[str, Any]]:
        self._take_in()
        wishes = [request.wish for request in requests if request.wish is not None]
        vectors = iter(self._embed([self._prefixed(wish, "question") for wish in wishes]) if wishes else ())
        return [self._ranked(request, next(vectors) if request.wish else None) for request in requests]

    def add_interactions(self, given: Sequence[InteractionGiven]) -> None:
        """Keep what was taken; the next answer goes by it. On any thread.

        Raises:
            RequestError: an item that is not in the catalogue, or a time to come; none is kept then.
        """
        now = self.now()
        made = [Interaction(one.user, one.item, now if one.time is None else to_seconds(one.time)) for one in given]
        _check_known([one.item for one in made], self._dates, "interactions")
        for one in made:
            if one.time > now + _AHEAD_SECONDS:
                raise RequestError(
                    f"interactions: the time of '{one.item}' for '{one.user}' is still to come; leave it out"
                )
        self._taken.add(made)
        self._news.append(made)

    def add_items(self, given: Sequence[ItemGiven]) -> None:
        """Keep new items, or what has changed of known ones; the next answer has them. On any thread."""
        now = self.now()
        with self._adding:
            since = [self._dates.get(one.item, now) if one.date is None else to_seconds(one.date) for one in given]
            made = [
                Item(one.item, one.text, one.category, one.price, date) for one, date in zip(given, since, strict=True)
            ]
            self._taken.add_items(made)
            self._news.append(made)
            self._dates.update({item.item: item.date for item in made})

    def add_routes(self, api: Any) -> None:
        from fastapi.responses import StreamingResponse

        @api.post("/interactions", summary="Keep what users took", response_model=None)
        def interactions(given: InteractionsGiven) -> dict[str, int]:
            self.add_interactions(given.interactions)
            return {"kept": len(given.interactions)}

        @api.post("/items", summary="Add items, or change them", response_model=None)
        def items(given: ItemsGiven) -> dict[str, int]:
            self.add_items(given.items)
            return {"kept": len(given.items)}

        @api.get("/interactions.csv", summary="What was taken while serving: a log to train on", response_model=None)
        def log() -> Any:
            return StreamingResponse(self._taken.as_csv(), media_type="text/csv")

    def page(self, ask: Ask) -> Any:
        return build_page(self, ask)

    def _take_in(self) -> None:
        """What came on other threads, in its order."""
        while self._news:
            some = self._news.popleft()
            if isinstance(some[0], Item):
                items: Any = list({item.item: item for item in some if isinstance(item, Item)}.values())
                self.market.add(items, self._embed_items(self._embed, items))
            else:
                for one in some:
                    self.market.observe(one)  # type: ignore[arg-type]

    def _ranked(self, request: RecommendationRequest, wish: np.ndarray | None) -> dict[str, Any]:
        market, now = self.market, max(self.now(), self.market.now)
        _check_known(request.history, market.numbers, "history")
        known = market.users.get(request.user or "", User())
        user = User(deque(known.recent, known.recent.maxlen), set(known.taken))
        for item in request.history:
            user.take(market.numbers[item])
        may = allowed(market, now, user.taken, self.settings.again)
        may[[market.numbers[item] for item in request.exclude if item in market.numbers]] = False
        if request.category is not None:
            may &= self._of_category(request.category)
        top, scores = best(self._ranker, market, user, now, may, request.count or self.settings.count, wish)
        near = _nearest(market, top, list(user.recent))
        rows = [
            {**_told(market.items[number]), "score": round(float(score), 4), "near": other}
            for number, score, other in zip(top, scores, near, strict=True)
        ]
        return {"items": rows, "known": len(user.taken), "candidates": int(may.sum())}

    def _of_category(self, category: str) -> np.ndarray:
        found = np.array([item.category == category for item in self.market.items])
        if not found.any():
            names = sorted({item.category for item in self.market.items if item.category})
            shown = ", ".join(names[:20]) + (", ..." if len(names) > 20 else "")
            raise RequestError(f"category: there is none called '{category[:80]}'; allowed: {shown or '(none)'}")
        return found

    def _embed_items(self, embed: Embed, items: Sequence[Item]) -> np.ndarray:
        return embed([self._prefixed(item.written, "answer") for item in items])

    def _prefixed(self, text: str, side: str) -> str:
        return getattr(self.predictor.task.settings, f"{side}_prefix") + text


def _read(settings: RecommendationSettings) -> tuple[dict[str, Item], list[Interaction]]:
    """Catalogue, and the part of the log that is about it."""
    items = read_catalogue(settings.catalogue, settings.columns)
    return items, known_only(read_log(settings.log, settings.columns), items, settings.log)


def _check_known(items: Sequence[str], known: Container[str], where: str) -> None:
    unknown = [item for item in items if item not in known]
    if unknown:
        raise RequestError(
            f"{where}: there is no item '{unknown[0][:80]}' in the catalogue; add it by POST /api/items, or leave it "
            "out"
        )


def _told(item: Item) -> Mapping[str, Any]:
    return {"item": item.item, "text": item.text, "category": item.category, "price": item.price}


def _nearest(market: Market, top: np.ndarray, recent: Sequence[int]) -> list[str | None]:
    """Of each item, the one of ``recent`` that is most like it."""
    if not recent or not len(top):
        return [None] * len(top)
    found = (market.vectors[top] @ market.vectors[list(recent)].T).argmax(axis=1)
    return [market.items[recent[index]].item for index in found]

"""What the app ranks well, and how fast: `python -m benchmarks.recommendation`.

Shops simulated as the sample `purchases` is: 500 articles, 400 customers with hidden tastes, 6,000 purchases in 90
days. all-MiniLM-L6-v2 learns for two epochs from pairs of the first part, the ranker from what follows, and the last
ninth is ranked: for each purchase all articles that are there and that the customer has not, of which one is right.
Peers: popularity (counting half after a tenth of the log), and tf-idf vectors of the same texts, without and with a
ranker that learnt on them as ours did. An article is cold where nobody took it before, a customer where he took two
things or fewer.

Speed is that of whole answers, for customers of a shop of 12,000 articles with vectors of the published model, one
after the other, on one thread; its peer embeds the catalogue for each of them, in the same runtime.
"""

import importlib.util
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from datasets import DatasetDict
from sklearn.feature_extraction.text import TfidfVectorizer
from transformers import set_seed

from benchmarks.harness import Bench, alone, main, ratios
from hf_efficient.predictor import Predictor
from hf_efficient.pretrained import DEFAULT_MODEL, resolve_model
from hf_efficient.task import get_task
from hf_efficient.tasks import sentence_encoder
from hf_efficient.tasks.apps import interactions, item_vectors, market, ranker, recommendation
from hf_efficient.tasks.apps.catalogue import Item, read_catalogue
from hf_efficient.tasks.apps.interactions import Interaction, cutoff, pairs, read_log
from hf_efficient.tasks.apps.item_vectors import embedder
from hf_efficient.tasks.apps.market import Market, User, allowed, half_life_of
from hf_efficient.tasks.apps.ranker import BASELINES, Ranker, gain, learn
from hf_efficient.timing import TorchRuntime

SHOP = {"items": 500, "users": 400, "events": 6000, "days": 90}
LARGE = {"items": 12_000, "users": 500, "events": 8000, "days": 90}
LATER, NEWEST, EPOCHS = 1 / 9, 0.3, 2
FEW = 2
WAYS = ("app", "similarity alone", "tf-idf", "tf-idf with a ranker", "popularity", "true tastes")


def body(bench: Bench) -> None:
    found: list[dict[str, Any]] = []
    for seed in bench.seeds:
        found.append(bench.cell({"seed": seed, **SHOP, "epochs": EPOCHS}, partial(ranked, bench, seed)))
    for part in ("all", "cold_items", "cold_users"):
        for way in WAYS:
            told = [100 * one[part][way] for one in found]
            bench.claim(f"{part}: {way}", told, "ndcg@10, in %")
    ours = [one["all"]["app"] for one in found]
    for peer in ("popularity", "tf-idf", "tf-idf with a ranker", "similarity alone"):
        told = ratios(ours, [one["all"][peer] for one in found])
        bench.claim(f"app over {peer}", told, "ratio of ndcg@10", ">= 1.05")
    for part, peer in (("cold_items", "tf-idf"), ("cold_users", "popularity"), ("cold_users", "tf-idf")):
        told = ratios([one[part]["app"] for one in found], [one[part][peer] for one in found])
        bench.claim(f"{part}: app over {peer}", told, "ratio of ndcg@10", ">= 1.05")
    counts = {part: sum(one["counts"][part] for one in found) for part in ("all", "cold_items", "cold_users")}
    bench.notes.append("Purchases ranked: " + ", ".join(f"{part} {count}" for part, count in counts.items()) + ".")
    speed = bench.cell({"speed": "answers", **LARGE}, partial(alone, timed, bench.quick))
    for name in ("p50_ms", "p95_ms"):
        bench.claim(f"one customer, {name[:3]}", speed[name], "ms for the best 10 of the catalogue", "<= 20")
    bench.claim("one customer who looks for something, p50", speed["wish_p50_ms"], "ms, a text embedded on the way")
    bench.claim("embedding afresh", speed["afresh_ms"] / speed["p50_ms"], "times as long as from the vectors", ">= 100")
    bench.notes.append(f"{speed['items']:,} articles; embedding them takes {speed['afresh_ms'] / 1000:.1f} s.")


def simulation() -> Any:
    """The module that simulates the sample."""
    if "purchases" not in sys.modules:
        path = Path(recommendation.__file__).parents[1] / "data" / "purchases" / "make.py"
        spec = importlib.util.spec_from_file_location("purchases", path)
        assert spec is not None
        assert spec.loader is not None
        sys.modules["purchases"] = module = importlib.util.module_from_spec(spec)  # its dataclass looks itself up there
        spec.loader.exec_module(module)
    return sys.modules["purchases"]


def ranked(bench: Bench, seed: int) -> dict[str, Any]:
    """ndcg@10 of each way on all purchases of the last part, and on the cold ones."""
    shop = simulation().simulate(seed, **SHOP)
    with TemporaryDirectory() as folder:
        simulation().write(shop, Path(folder), SHOP["days"])
        items, log = read_catalogue(folder), read_log(folder)
        end = cutoff(log, LATER)
        known = [one for one in log if one.time < end]
        start = cutoff(known, NEWEST)
        ours = encoded(bench, seed, items, log, start, end, Path(folder))
    texts = [item.written for item in items.values()]
    words = TfidfVectorizer().fit_transform(texts).toarray().astype(np.float32)

    def made(vectors: np.ndarray) -> Market:
        return Market(list(items.values()), vectors, half_life_of(known))

    ways: dict[str, tuple[Market, Ranker]] = {
        "app": (made(ours), learn(lambda: made(ours), known, start)),
        "similarity alone": (made(ours), BASELINES["similarity"]),
        "tf-idf": (made(words), BASELINES["similarity"]),
        "tf-idf with a ranker": (made(words), learn(lambda: made(words), known, start)),
        "popularity": (made(words), BASELINES["popularity"]),
    }
    return judged(ways, log, end, shop)


def encoded(
    bench: Bench, seed: int, items: dict[str, Item], log: list[Interaction], start: float, end: float, folder: Path
) -> np.ndarray:
    """Vectors by an encoder that learnt from the pairs of ``log`` before ``start``."""
    cls = get_task("sentence-similarity")
    task: Any = cls(cls.data_settings(train="none", max_length=64))  # type: ignore[call-arg]
    task.load_processor(DEFAULT_MODEL)
    made = {"train": pairs(items, log, until=start), "validation": pairs(items, log, since=start, until=end)}
    data = task.encode_all(DatasetDict(made))
    set_seed(seed)
    args = task.arguments_class(
        str(folder / "out"),
        **{"num_train_epochs": EPOCHS, "learning_rate": 1e-4, "warmup_steps": 0.1, "per_device_train_batch_size": 64},
        **{"max_steps": 3 if bench.quick else -1, "optimizations": {"precision": {}}, "measure_seconds": 0},
        **{"save_strategy": "no", "report_to": "none", "disable_tqdm": True, "dataloader_pin_memory": False},
        **{"use_cpu": True, "seed": seed, **task.arguments()},
    )
    model = task.load_model(DEFAULT_MODEL)
    trainer = task.trainer(model=model, args=args, train_dataset=data["train"], processing_class=task.processor)
    trainer.train()
    predictor = Predictor(task, TorchRuntime(trainer.model.eval()), folder)
    with torch.inference_mode():
        return embedder(predictor, folder / "none")([item.written for item in items.values()])


def judged(ways: dict[str, tuple[Market, Ranker]], log: list[Interaction], end: float, shop: Any) -> dict[str, Any]:
    gains: dict[str, dict[str, list[float]]] = {
        part: {way: [] for way in WAYS} for part in ("all", "cold_items", "cold_users")
    }
    first = next(iter(ways.values()))[0]
    replays = [each.replay(log, end) for each, _ in ways.values()]
    days = {(f"U{user + 1}", f"A{item + 1}"): day for user, item, day in shop.events}
    for together in zip(*replays, strict=True):
        one, user = together[0]
        number, may = first.numbers[one.item], allowed(first, one.time, user.taken)
        told = {
            way: gain(by.scores(each.features(seen.recent, one.time), len(seen.recent)), may, number)
            for (way, (each, by)), (_, seen) in zip(ways.items(), together, strict=True)
        }
        told["true tastes"] = _by_taste(shop, one, days, may, number)
        parts = ["all", *_cold(first, user, number)]
        for part in parts:
            for way, value in told.items():
                gains[part][way].append(value)
    means = {part: {way: float(np.mean(each or [0.0])) for way, each in one.items()} for part, one in gains.items()}
    return {**means, "counts": {part: len(one["app"]) for part, one in gains.items()}}


def _by_taste(shop: Any, one: Interaction, days: dict[tuple[str, str], float], may: np.ndarray, number: int) -> float:
    utilities = shop.utilities(int(one.user[1:]) - 1, days[one.user, one.item])
    return float(gain(utilities, may & np.isfinite(utilities), number))


def _cold(seen: Market, user: User, number: int) -> list[str]:
    found = ["cold_items"] if np.isnan(seen._first[number]) else []
    return [*found, "cold_users"] if len(user.taken) <= FEW else found


def timed(quick: bool) -> dict[str, Any]:
    """Milliseconds of an answer for one customer of a large shop, and of embedding its catalogue."""
    torch.set_num_threads(1)
    sizes = {**LARGE, "items": 1000, "events": 2000} if quick else LARGE
    model = resolve_model(DEFAULT_MODEL)
    cls = get_task("sentence-similarity")
    task: Any = cls(cls.data_settings(train="none", max_length=64))  # type: ignore[call-arg]
    task.load_processor(model)
    predictor = Predictor(task, TorchRuntime(task.load_model(model).eval()), model)
    with TemporaryDirectory() as name:
        folder = Path(name)
        simulation().write(simulation().simulate(0, **sizes), folder, sizes["days"])
        settings = recommendation.RecommendationSettings(catalogue=name, log=name, moment="log")
        app = recommendation.ItemRecommendation(settings, predictor, folder)
        app.prepared.mkdir()
        app.prepare(None, app.prepared)
        app.start()
        users = list(app.market.users)[: 30 if quick else 300]
        asked = [recommendation.RecommendationRequest(user=user) for user in users]
        wishes = [recommendation.RecommendationRequest(user=user, wish="a gift for a gardener") for user in users[:50]]
        told = [_milliseconds(partial(app.answer, [request])) for request in (*asked[:10], *asked)][10:]
        wished = [_milliseconds(partial(app.answer, [request])) for request in wishes]
        afresh = _milliseconds(lambda: app._embed_items(app._embed, app.market.items))
        app.stop()
    found = {"p50_ms": statistics.median(told), "p95_ms": float(np.percentile(told, 95))}
    return {**found, "wish_p50_ms": statistics.median(wished), "afresh_ms": afresh, "items": sizes["items"]}


def _milliseconds(function: Callable[[], Any]) -> float:
    began = time.perf_counter()
    function()
    return 1000 * (time.perf_counter() - began)


DEPENDS = (interactions, item_vectors, market, ranker, recommendation, sentence_encoder)

if __name__ == "__main__":
    main("recommendation", body, DEPENDS)

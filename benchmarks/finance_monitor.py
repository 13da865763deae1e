"""The finance-sentiment monitor on real headlines: `python -m benchmarks.finance_monitor`.

The recipe's model is trained on sentfin (headlines of Indian business news, 3 classes) and judged on its test part.
50,000 items, drawn from all of its headlines with made-up dates, are read by `hf-efficient monitor --follow` on the
optimized export, which is killed with SIGKILL at random times and started again; then every item must be there once,
and detectors and alarms must be those that see all items at once. Topics are told without training, and judged on
the 60 test rows of `tasks/data/finance_news/topics.jsonl`.

False alarms are counted on shuffled streams of what the monitor made of the 50,000 items: 20 at a rate of one in
20,000,000 items, and 20 at one in 20,000 to see that the rate is what was chosen. A surge: from an item on, the share
of negative headlines in one topic rises by 25 points; 20 streams, an item each 30 s, one false alarm in 1,000,000.
"""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from functools import partial
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.banking77 import folder_of_data
from benchmarks.harness import CACHE, Bench, main
from hf_efficient.data import load
from hf_efficient.errors import ConfigError
from hf_efficient.predictor import newest_finished
from hf_efficient.recipe import Recipe
from hf_efficient.run import run
from hf_efficient.service import ServiceSettings, open_app
from hf_efficient.tasks.apps import finance_monitor, monitor_store, stream, surge, topics
from hf_efficient.tasks.apps.monitor_store import sqlite_url
from hf_efficient.tasks.apps.surge import Surges
from hf_efficient.tasks.apps.topics import Topics, TopicSettings, export_encoder
from hf_efficient.tasks.text_classification import TextClassificationData

ITEMS, STEP_S = 50_000, 30
STREAMS = 20
RARE, OFTEN, USUAL = 20_000_000, 20_000, 1_000_000
"""Items from one false alarm to the next."""

RISE = 0.25
_BEFORE, _AFTER = 5_000, 3_000
_WORK = CACHE / "finance_monitor"
_START = 1_767_225_600  # 2026-01-01


def body(bench: Bench) -> None:
    count, streams = (2_000, 4) if bench.quick else (ITEMS, STREAMS)
    model = bench.cell({"what": "sentiment"}, partial(trained, bench.quick), peer=True)
    bench.claim("sentiment_accuracy", 100 * model["exported"], "% of sentfin's test headlines right, as exported")
    bench.claim("sentiment_before", 100 * model["before"], "% right before the model is made smaller")
    told = bench.cell({"what": "topics"}, topic_accuracy)
    bench.claim("topic_accuracy", 100 * told["accuracy"], f"% of {told['rows']} headlines, without training", ">= 80")
    replay = bench.cell(
        {"what": "replay", "items": count}, partial(replayed, Path(model["folder"]), count, bench.quick)
    )
    bench.claim("kills", replay["kills"], f"times killed within {count:,} items", ">= 2" if bench.quick else ">= 10")
    bench.claim("lost", replay["lost"], "items missing at the end", "<= 0")
    bench.claim("double", replay["double"], "items counted twice", "<= 0")
    bench.claim("other_state", replay["other_state"], "of detectors and alarms: other than without kills", "<= 0")
    pace = bench.cell({"what": "speed"}, partial(speed, Path(model["folder"]), bench.quick))
    bench.claim("items_per_second", pace["items_per_second"], "from file to database, topics included")
    marked = _marked(count, bench.quick)
    calm = bench.cell({"what": "shuffled", "items": count}, partial(shuffled, marked, streams, RARE))
    bench.claim("false_alarms", calm["alarms"], f"on {streams} shuffled streams, at one in {RARE:,} items", "<= 0")
    often = bench.cell({"what": "rate", "items": count}, partial(shuffled, marked, streams, OFTEN))
    share = often["alarms"] * OFTEN / often["items"]
    bench.claim("rate_kept", share, f"false alarms / those chosen, at one in {OFTEN:,} ({often['alarms']})", "<= 1.3")
    bench.claim("detector_speed", calm["per_second"], "items/s through the detectors alone")
    found = bench.cell({"what": "surge", "items": count}, partial(surged, marked, streams))
    points = f"{100 * RISE:.0f} points more negatives in {found['topic']}"
    bench.claim("surges_found", found["found"], f"of {streams} surges of {points}", f">= {streams}")
    bench.claim("delay_items", found["items"], "items of the topic from the start of the surge to the alarm")
    bench.claim("delay_minutes", found["minutes"], f"the same in stream time, an item of any topic each {STEP_S} s")


def _marked(count: int, quick: bool) -> Path:
    """What the replay leaves: topic and label of each item."""
    return _folder(quick) / f"marked-{count}.json"


def _folder(quick: bool) -> Path:
    return _WORK / "quick" if quick else _WORK


def trained(quick: bool) -> dict[str, Any]:
    """The recipe on sentfin; a run of it that has finished already is taken."""
    runs = _folder(quick) / "runs"
    source = folder_of_data("sentfin")
    splits = [f"data.{split}={source / split}.csv" for split in ("train", "validation", "test")]
    batches = [f"stages.{stage}.training.per_device_train_batch_size=32" for stage in ("finetune", "compress")]
    steps = [f"stages.{stage}.training.max_steps=20" for stage in ("finetune", "compress")] if quick else []
    try:
        folder = newest_finished(runs / "finance-sentiment")
    except ConfigError:
        result = run(
            "finance-sentiment", [*splits, *batches, *steps, *(["export.max_drop=1"] if quick else [])], runs=runs
        )
        assert result is not None
        folder = result.folder
    metrics = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))["test"]
    return {"folder": str(folder), **{side: metrics[side]["accuracy"] for side in ("before", "exported")}}


def topic_accuracy() -> dict[str, Any]:
    """On the test rows of the sample, with the recipe's phrases."""
    app = Recipe.load("finance-sentiment").app
    assert app is not None
    settings = TopicSettings(**app["topics"])
    export_encoder(settings, _WORK / "prepared")
    sample = resources.files("hf_efficient.tasks") / "data" / "finance_news" / "topics.jsonl"
    rows = [json.loads(line) for line in sample.read_text(encoding="utf-8").splitlines()]
    test = [row for row in rows if row["split"] == "test"]
    said = Topics(settings, _WORK / "prepared")([row["text"] for row in test])
    right = [one == row["topic"] for one, row in zip(said, test, strict=True)]
    return {"accuracy": float(np.mean(right)), "rows": len(test)}


def headlines() -> list[str]:
    source = folder_of_data("sentfin")
    files = {split: str(source / f"{split}.csv") for split in ("train", "validation", "test")}
    return [text for split in load(TextClassificationData(**files)).values() for text in split["text"]]


def replayed(folder: Path, count: int, quick: bool) -> dict[str, Any]:
    """``count`` items through processes that are killed; a replay that was stopped goes on where it was."""
    news, texts, database = *_news(_folder(quick) / "news.jsonl", count), _folder(quick) / "killed.db"
    progress = _folder(quick) / "kills.json"
    kills, most = json.loads(progress.read_text()) if progress.is_file() else 0, 2 if quick else 12
    if not kills:
        for path in _folder(quick).glob(f"{database.name}*"):
            path.unlink()
    chance = random.Random(kills)
    while True:
        process = subprocess.Popen(_command(folder, news, database), stderr=subprocess.DEVNULL)
        if kills == most:
            assert process.wait() == 0
            break
        _wait_for_items(process, database)
        time.sleep(chance.uniform(0, 4 if quick else 20))
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        kills += 1
        progress.write_text(json.dumps(kills))
    progress.unlink()
    store = monitor_store.Store(sqlite_url(database))
    killed = _kept(store)
    store.close()
    wanted, seen = Counter(text.strip() for text in texts), Counter(text for text, *_ in killed["items"])
    _marked(count, quick).write_text(json.dumps([row[1:] for row in killed["items"]]))
    return {
        "kills": kills,
        "lost": (wanted - seen).total(),
        "double": (seen - wanted).total(),
        "other_state": _differs(killed, Recipe.load(folder / "recipe.yaml").app or {}),
    }


def _news(news: Path, count: int) -> tuple[Path, list[str]]:
    """The file ``news`` with items and made-up dates, and their texts."""
    texts = random.Random(0).choices(headlines(), k=count)
    lines = (
        {"text": text, "time": _START + STEP_S * number} for number, text in enumerate(texts)
    )  # no ids: places count
    news.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return news, texts


def _differs(killed: dict[str, list[tuple[Any, ...]]], app: dict[str, Any]) -> int:
    """Whether detectors and alarms are others than of a process that sees all items without an end."""
    watched, alarms = Surges(app["smallest_surge"], app["false_alarm_every"], {}, "other"), []
    for number, (_, topic, label) in enumerate(killed["items"]):
        when = float(_START + STEP_S * number)
        alarms += [(name, when, rise.share) for name, rise in watched.update(topic, label == "negative", when)]
    states = [(name, json.dumps(state)) for name, state in sorted(watched.states().items())]
    return (alarms != killed["alarms"]) + (states != killed["states"])


def speed(folder: Path, quick: bool) -> dict[str, Any]:
    """Items per second of one process, from file to database."""
    count = 500 if quick else 4_000
    news, _ = _news(_folder(quick) / "speed.jsonl", count)
    database = _folder(quick) / "speed.db"
    for path in database.parent.glob(f"{database.name}*"):
        path.unlink()
    with open_app(folder, ServiceSettings(), [f"app.database={sqlite_url(database)}"]) as app:
        began = time.perf_counter()
        finance_monitor.watch(app, [stream.Followed(news, whole=True)])  # type: ignore[arg-type]
        return {"items_per_second": count / (time.perf_counter() - began)}


def _wait_for_items(process: "subprocess.Popen[bytes]", database: Path) -> None:
    """Until the process has counted one."""
    before = None
    while process.poll() is None:
        if database.is_file():
            store = monitor_store.Store(sqlite_url(database))
            count = store.count()
            store.close()
            before = count if before is None else before
            if count > before:
                return
        time.sleep(0.2)
    raise RuntimeError(f"the monitor ended by itself ({process.returncode}); give it more items")


def _command(folder: Path, news: Path, database: Path) -> list[str]:
    started = [sys.executable, "-m", "hf_efficient", "monitor", str(folder)]
    return [*started, f"app.database={sqlite_url(database)}", "--follow", str(news), "--once"]


def _kept(store: Any) -> dict[str, list[tuple[Any, ...]]]:
    """Items in their order, alarms, and states of detectors."""
    items, alarms, states = store.items.c, store.alarms.c, store.states.c
    with store.engine.begin() as connection:

        def rows(*columns: Any) -> list[tuple[Any, ...]]:
            return [tuple(row) for row in connection.execute(store.sql.select(*columns).order_by(columns[0]))]

        own = store.sql.select(states.name, states.state).where(states.kind == "surge").order_by(states.name)
        return {
            "items": [row[1:] for row in rows(items.id, items.text, items.topic, items.label)],
            "alarms": [row[1:] for row in rows(alarms.id, alarms.topic, alarms.time, alarms.share)],
            "states": [tuple(row) for row in connection.execute(own)],
        }


def shuffled(marked: Path, streams: int, every: float) -> dict[str, Any]:
    """Alarms on ``streams`` random orders of what the monitor found."""
    rows, found, began = json.loads(marked.read_text()), [], time.perf_counter()
    for seed in range(streams):
        watched = Surges(0.1, every, {}, "other")
        for place, row in enumerate(random.Random(seed).sample(rows, len(rows))):
            found += watched.update(row[0], row[1] == "negative", float(place))
    items = streams * len(rows)
    return {"alarms": len(found), "items": items, "per_second": items / (time.perf_counter() - began)}


def surged(marked: Path, streams: int) -> dict[str, Any]:
    """In the topic with most items the share of negatives rises: items of it, and minutes, until its alarm.

    A stream is drawn from what the monitor found; after the start of the surge, an item of the topic that is not
    negative is exchanged for one that is, as often as it takes.
    """
    rows = json.loads(marked.read_text())
    names = [row[0] for row in rows]
    topic = max(sorted(set(names)), key=names.count)
    share = np.mean([row[1] == "negative" for row in rows if row[0] == topic])
    exchanged = RISE / (1 - share)
    items, minutes = [], []
    for seed in range(streams):
        chance, watched = random.Random(1000 + seed), Surges(0.1, USUAL, {}, "other")
        of_topic = 0
        for place in range(_BEFORE + _AFTER):
            name, label = chance.choice(rows)
            surges = place >= _BEFORE and name == topic
            of_topic += surges
            negative = label == "negative" or (surges and chance.random() < exchanged)
            alarms = [one for one, _ in watched.update(name, negative, float(place))]
            if surges and topic in alarms:
                items.append(of_topic)
                minutes.append((place - _BEFORE + 1) * STEP_S / 60)
                break
    return {"topic": topic, "found": len(items), "items": items, "minutes": minutes}


DEPENDS = (finance_monitor, monitor_store, stream, surge, topics)

if __name__ == "__main__":
    main("finance_monitor", body, DEPENDS)

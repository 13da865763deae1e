"""Customer service on real questions: `python -m benchmarks.customer_service`.

The recipe's model is trained on Banking77 (77 intents of bank customers); its knowledge base are the answers of
medquad_faq (health sites), by their texts and topics alone: the questions are what is asked. So a question of the one
set is out of scope for what was learnt from the other. Bounds are learnt from validation data of both, and judged on
test data.

Under load, 32 users each ask one message after the other, nine of ten about banking, from a process of its own on the
same machine over loopback. Peers are the same service with the model before it was made smaller, it and the encoder in
eager PyTorch: with one request at a time, as a service without batches has it, and with our batches.
"""

import asyncio
import json
import random
import shutil
import statistics
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from datasets import Dataset
from sklearn.metrics import roc_auc_score

from benchmarks.banking77 import folder_of_data
from benchmarks.harness import CACHE, Bench, main, ratios
from hf_efficient.errors import ConfigError
from hf_efficient.functional.confidence import calibration_error
from hf_efficient.predictor import newest_finished
from hf_efficient.run import run
from hf_efficient.service import ServiceSettings, api, batching, open_app, server
from hf_efficient.task import get_task
from hf_efficient.tasks.apps import conversations, customer_service, encoder, knowledge, scope
from hf_efficient.tasks.apps.scope import energy, nearness
from hf_efficient.timing import TorchRuntime

USERS, SECONDS, TURNS = 32, 15.0, 5
OURS, BATCHED, ONE = "ours", "eager, batches", "eager, one at a time"
REQUESTS = 10_000
_WORK = CACHE / "customer_service"


def body(bench: Bench) -> None:
    made = bench.cell({"what": "model"}, partial(trained, bench.quick), peer=True)
    bench.claim("intent_accuracy", 100 * made["exported"], "% of Banking77's test messages right, as exported")
    bench.claim("intent_before", 100 * made["before"], "% right before the model is made smaller")
    folder = Path(made["folder"])
    told = bench.cell({"what": "quality"}, partial(quality, folder, bench.quick))
    bench.claim("calibration_error", 100 * told["calibrated"], "% gap of confidence and accuracy, by temperature")
    bench.claim("calibration_before", 100 * told["uncalibrated"], "% gap without it")
    bench.claim("scope_auroc", told["auroc"], "AUROC of known against out of scope, as decided", ">= 0.9")
    bench.claim("energy_auroc", told["energy"], "AUROC by the model's logits alone")
    bench.claim("recall_at_3", 100 * told["recall"], "% of questions with the right document among three passages")
    bench.claim("answered", 100 * told["answered"], "% of Banking77's test messages answered by intent")
    bench.claim("right_of_answered", 100 * told["right"], "% of those with the right intent")
    bench.claim("strange_answered", 100 * told["strange"], "% of the other set's questions answered by intent")
    bench.claim("strange_to_page", 100 * told["to_page"], "% of them answered from the knowledge base")
    found = bench.cell({"what": "load"}, partial(loaded, folder, bench.quick))
    for name, figures in found.items():
        bench.notes.append(
            f"{name}: {statistics.median(figures['per_second']):.0f} requests/s, "
            f"p50 {statistics.median(figures['p50']):.1f} ms, p95 {statistics.median(figures['p95']):.1f} ms"
        )
    for peer, ending, p95, throughput in ((ONE, "", ">= 3", ">= 5"), (BATCHED, "_vs_batches", "", "")):
        faster = ratios(found[peer]["p95"], found[OURS]["p95"])
        bench.claim(f"p95{ending}", faster, f"p95 of {peer} / ours, {USERS} users", p95)
        more = ratios(found[OURS]["per_second"], found[peer]["per_second"])
        bench.claim(f"throughput{ending}", more, f"requests/s, ours / {peer}", throughput)
    memory = bench.cell({"what": "memory"}, partial(grown, folder, bench.quick))
    bench.claim("memory_growth", memory["grown_mb"], f"MB more after {memory['requests']:,} requests", "<= 20")


def trained(quick: bool) -> dict[str, Any]:
    """The recipe on Banking77; a run of it that has finished already is taken."""
    folder = _WORK / ("quick" if quick else "whole")
    folder.mkdir(parents=True, exist_ok=True)
    bank = folder_of_data("banking77")
    labels = json.loads((bank / "labels.json").read_text())
    (folder / "answers.json").write_text(json.dumps({name: f"What to know of {name}." for name in labels}))
    pages, strange = _medquad("test"), _medquad("validation")
    pages.rename_columns({"answer": "body"}).select_columns(["body", "topic", "url"]).to_json(folder / "pages.jsonl")
    strange.rename_columns({"question": "text"}).select_columns(["text"]).to_json(folder / "strange.jsonl")
    overrides = [
        f"data.train={bank / 'train.csv'}",
        f"data.test={bank / 'test.csv'}",
        f"app.answers={folder / 'answers.json'}",
        f"app.knowledge={folder / 'pages.jsonl'}",
        "app.knowledge_text=body",
        "app.knowledge_title=topic",
        "app.knowledge_source=url",
        f"app.out_of_scope={folder / 'strange.jsonl'}",
        *(f"stages.{stage}.training.per_device_train_batch_size=32" for stage in ("finetune", "compress")),
        *(f"stages.{stage}.training.max_steps=20" for stage in ("finetune", "compress") if quick),
        *(["export.max_drop=1"] if quick else []),
    ]
    try:
        found = newest_finished(folder / "runs" / "customer-service")
    except ConfigError:
        result = run("customer-service", overrides, runs=folder / "runs")
        assert result is not None
        found = result.folder
    metrics = json.loads((found / "metrics.json").read_text())["test"]
    return {"folder": str(found), **{side: metrics[side]["accuracy"] for side in ("before", "exported")}}


def _medquad(split: str) -> Dataset:
    return Dataset.from_json(str(folder_of_data("medquad_faq") / f"{split}.jsonl"))


def quality(folder: Path, quick: bool) -> dict[str, Any]:
    """What is answered, and how; on test data."""
    count = 100 if quick else None
    with open_app(folder, ServiceSettings()) as app:
        task: Any = app.predictor.task
        rows = Dataset.from_csv(str(folder_of_data("banking77") / "test.csv"))
        rows = rows.select(range(count or len(rows)))
        texts, labels = list(rows["text"]), np.array([app.predictor.labels.index(name) for name in rows["label"]])
        strange = list(_medquad("test")["question"])[:count]
        logits, others = app._logits(texts), app._logits(strange)
        vectors = app.encoder(strange)
        near, far = nearness(app.encoder(texts), app.known), nearness(vectors, app.known)
        decided = np.concatenate([_rank(app.scope, logits, near), _rank(app.scope, others, far)])
        is_known = np.repeat([1, 0], [len(texts), len(strange)])
        found = app.knowledge.search(vectors, 3)
        right = [number in {each.document for each in three} for number, three in enumerate(found)]
        said, elsewhere = _said(app, texts), _said(app, strange)
        answered = [each["kind"] == "answer" for each in said]
        names = [{intent["intent"] for intent in each["intents"]} for each in said]
        hits = [name in given for name, given, is_so in zip(rows["label"], names, answered, strict=True) if is_so]
        return {
            "uncalibrated": calibration_error(logits, labels),
            "calibrated": calibration_error(logits / app.scope.temperature, labels),
            "auroc": roc_auc_score(is_known, decided),
            "energy": roc_auc_score(is_known, np.concatenate([energy(logits), energy(others)])),
            "recall": float(np.mean(right)),
            "answered": float(np.mean(answered)),
            "right": float(np.mean(hits)) if hits else 0.0,
            "strange": float(np.mean([each["kind"] == "answer" for each in elsewhere])),
            "to_page": float(np.mean([each["kind"] == "knowledge" for each in elsewhere])),
            "task": task.name,
        }


def _rank(bounds: Any, logits: np.ndarray, near: np.ndarray) -> np.ndarray:
    """How known a message is by the rule of `Scope`: sure ones before all others, which go by nearness."""
    return np.where(bounds.is_sure(logits), 2 + energy(logits), near)


def _said(app: Any, texts: list[str]) -> list[dict[str, Any]]:
    starts = range(0, len(texts), 32)
    return [answer for start in starts for answer in app.said(texts[start : start + 32])]


def _messages() -> list[str]:
    bank = list(Dataset.from_csv(str(folder_of_data("banking77") / "test.csv"))["text"])
    return [*bank[:2700], *list(_medquad("test")["question"])[:300]]


def loaded(folder: Path, quick: bool) -> dict[str, dict[str, list[float]]]:
    """Requests per second and latencies in ms of each way, in turns."""
    eager = _uncut(folder)
    ways = {OURS: (folder, 32, False), BATCHED: (eager, 32, True), ONE: (eager, 1, True)}
    found: dict[str, dict[str, list[float]]] = {name: {"per_second": [], "p50": [], "p95": []} for name in ways}
    for _ in range(1 if quick else TURNS):
        for name, way in ways.items():
            for figure, value in _under_load(*way, 1.0 if quick else SECONDS).items():
                found[name][figure].append(value)
    return found


def _uncut(folder: Path) -> Path:
    """A run folder like ``folder`` with the model as it was before the cut, and no export."""
    made = _WORK / f"uncut-{folder.name}"
    if not made.is_dir():
        shutil.copytree(folder / "app", made / "app")
        shutil.copytree(folder / "stages" / "finetune" / "final", made / "final")
        for name in ("recipe.yaml", "run.json"):
            shutil.copy(folder / name, made / name)
    return made


class _Served:
    """A service in a process of its own."""

    def __init__(self, folder: Path, max_batch: int, eager: bool):
        command = [sys.executable, "-W", "ignore", "-m", "benchmarks.customer_service", "serve"]
        self.process = subprocess.Popen(
            [*command, str(folder), str(max_batch), str(int(eager))], stdout=subprocess.PIPE, text=True
        )

    def __enter__(self) -> str:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith("port "):
                return f"http://127.0.0.1:{int(line.split()[1])}"
        raise RuntimeError("the service did not start")

    def __exit__(self, *error: object) -> None:
        self.process.terminate()
        self.process.wait(60)


def _under_load(folder: Path, max_batch: int, eager: bool, seconds: float) -> dict[str, float]:
    with _Served(folder, max_batch, eager) as url:
        asyncio.run(_users(url, min(3.0, seconds)))  # warm
        began = time.perf_counter()
        took = np.array(asyncio.run(_users(url, seconds)))
        elapsed = time.perf_counter() - began
    p50, p95 = 1000 * np.quantile(took, [0.5, 0.95])
    return {"per_second": len(took) / elapsed, "p50": float(p50), "p95": float(p95)}


async def _users(url: str, seconds: float, most: int | None = None) -> list[float]:
    """Seconds of each request of `USERS` users, who ask one after the other."""
    import aiohttp

    messages, took, until = _messages(), [], time.perf_counter() + seconds

    async def user(seed: int, session: Any) -> None:
        drawn = random.Random(seed)
        while time.perf_counter() < until and (most is None or len(took) < most):
            began = time.perf_counter()
            async with session.post(f"{url}/api/answer", json={"text": drawn.choice(messages)}) as response:
                await response.read()
                assert response.status == 200, response.status
            took.append(time.perf_counter() - began)

    async with aiohttp.ClientSession() as session:
        await asyncio.gather(*(user(seed, session) for seed in range(USERS)))
    return took


def grown(folder: Path, quick: bool) -> dict[str, float]:
    """Memory that a service takes more after many requests, once it has seen some."""
    count = 200 if quick else REQUESTS
    served = _Served(folder, 32, False)
    with served as url:
        process = psutil.Process(served.process.pid)
        asyncio.run(_users(url, 600, count // 4))
        before = process.memory_info().rss
        asyncio.run(_users(url, 600, count))
        after = process.memory_info().rss
    return {"grown_mb": (after - before) / 1e6, "requests": count}


def serve(folder: Path, max_batch: int, eager: bool) -> None:
    """Serve the run in ``folder`` without a page; with ``eager``, its encoder is the model in PyTorch."""
    import uvicorn

    from hf_efficient.service.metrics import Metrics

    overrides = [f"app.database=sqlite:///{_WORK / 'load.sqlite'}"]
    with open_app(folder, ServiceSettings(), overrides) as app:
        if eager:
            name, encoder_task = app.settings.encoder, app.encoder._task
            app.encoder._runtime = TorchRuntime(
                get_task(encoder_task.name)(encoder_task.settings).load_model(name).eval()
            )
        metrics = Metrics(lambda: 0)
        batcher = batching.Batcher(app.answer, max_batch=max_batch)
        config = uvicorn.Config(api.build_api(app, batcher, metrics), port=0, log_level="error")
        socket = config.bind_socket()
        print(f"port {socket.getsockname()[1]}", flush=True)
        uvicorn.Server(config).run([socket])


DEPENDS = (customer_service, encoder, knowledge, scope, conversations, batching, api, server)

if __name__ == "__main__":
    if sys.argv[1:2] == ["serve"]:
        serve(Path(sys.argv[2]), int(sys.argv[3]), bool(int(sys.argv[4])))
    else:
        main("customer_service", body, DEPENDS)

"""Memory that does not come back: `python -m benchmarks.memory_growth`.

Resident memory of one process, after garbage is collected, in two of its lives:

- 20 stages of a recipe, one after the other: all-MiniLM-L6-v2 on the bundled questions, every other one with a teacher;
- 10,000 questions answered by a service (the app of the run, its batcher and its HTTP API).

Growth counts from the fifth stage, and from the 2,000th question: by then libraries have made what they keep. Both are
drawn in docs/memory_growth.png.
"""

import functools
import gc
import itertools
import json
import tempfile
from pathlib import Path
from typing import Any

import psutil
from matplotlib.figure import Figure

from benchmarks.harness import CACHE, FOLDER, Bench, alone, main
from hf_efficient import job, phase, predictor
from hf_efficient.data import load
from hf_efficient.job import Job
from hf_efficient.picture import AFTER_COLOUR, draw
from hf_efficient.pretrained import DEFAULT_MODEL
from hf_efficient.recipe import Recipe
from hf_efficient.run import run
from hf_efficient.service import Batcher, ServiceSettings, api, batching, open_app
from hf_efficient.service.api import build_api
from hf_efficient.service.metrics import Metrics
from hf_efficient.settings import parse
from hf_efficient.task import get_task

STAGES, FIRST_STAGE = 20, 5
REQUESTS, FIRST_REQUEST, EVERY = 10_000, 2_000, 250
PICTURE = FOLDER.parent / "docs" / "memory_growth.png"
DATA = {"train": "sample:customer_service", "max_length": 32}


def body(bench: Bench) -> None:
    stages = bench.cell({"what": "stages"}, functools.partial(alone, trained, 6 if bench.quick else STAGES))
    count = 500 if bench.quick else REQUESTS
    asked = bench.cell({"what": "requests"}, functools.partial(alone, answered, count))
    told = {"stages": stages["mb"], "requests": asked["mb"]}
    first = min(FIRST_STAGE, len(told["stages"])) - 1
    grown = told["stages"][-1] - told["stages"][first]
    bench.claim("stages_growth", grown / (len(told["stages"]) - 1 - first), "MB per stage, from the fifth on", "<= 1")
    first = min(FIRST_REQUEST // EVERY, len(told["requests"]) - 1)
    grown = told["requests"][-1] - told["requests"][first]
    bench.claim("requests_growth", grown, f"MB over {count - first * EVERY:,} requests", "<= 5")
    bench.claim("resident", told["requests"][-1], "MB of the serving process at its end")
    if not bench.quick:
        picture(told)


def recipe(stages: int) -> Recipe:
    short = {"max_steps": 6, "per_device_train_batch_size": 16, "learning_rate": 1e-4, "disable_tqdm": True}
    whole: dict[str, Any] = {"training": short, "optimizations": {"length_batching": {}}}
    taught = {"training": short, "optimizations": {"distillation": {"teacher": "one"}, "precision": {}}}
    names = ["one", *(f"stage_{number}" for number in range(2, stages + 1))]
    values = {
        "name": "growth",
        "task": "text-classification",
        "model": DEFAULT_MODEL,
        "data": DATA,
        "stages": dict(zip(names, itertools.cycle((whole, taught)), strict=False)),
    }
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "growth.yaml"
        file.write_text(json.dumps(values))  # JSON is YAML
        return Recipe.load(file)


def resident_mb() -> float:
    gc.collect()
    return psutil.Process().memory_info().rss / 1e6


def trained(stages: int) -> dict[str, Any]:
    """Memory after each stage."""
    told = Job.prepare(recipe(stages))
    model, found = told.recipe.model, []
    with tempfile.TemporaryDirectory() as place:
        for name in told.recipe.stages:
            folder = Path(place) / "stages" / name
            told.train(name, folder, model)
            model = str(folder / phase.FINAL)
            found.append(resident_mb())
    return {"mb": found}


def answered(requests: int) -> dict[str, Any]:
    """Memory after every so many requests, from the first on."""
    from fastapi.testclient import TestClient

    result = run(recipe(1), runs=CACHE / "memory_growth")
    assert result is not None
    task = get_task("text-classification")
    texts = load(parse(task.data_settings, DATA, "data"))["train"]["text"]
    found = []
    with open_app(result.folder, ServiceSettings()) as app:
        metrics = Metrics(lambda: len(batcher))
        batcher = Batcher(app.answer, on_batch=metrics.batch)
        with TestClient(build_api(app, batcher, metrics)) as client:
            for number in range(requests):
                if number % EVERY == 0:
                    found.append(resident_mb())
                client.post("/api/answer", json={"text": f"{texts[number % len(texts)]} {number}"}).raise_for_status()
            found.append(resident_mb())
    return {"mb": found}


def picture(told: dict[str, list[float]]) -> None:
    figure = Figure(figsize=(8, 3), layout="constrained")
    for axes, (name, values) in zip(figure.subplots(1, 2), told.items(), strict=True):
        step = EVERY if name == "requests" else 1
        axes.plot([number * step for number in range(len(values))], values, color=AFTER_COLOUR)
        axes.set_xlabel(f"{name} done" if name == "requests" else "stages done, but for the first")
        axes.set_ylabel("resident memory (MB)")
        axes.set_ylim(0)
        axes.spines[["top", "right"]].set_visible(False)
    draw(figure, PICTURE)


DEPENDS = (job, phase, predictor, api, batching)

if __name__ == "__main__":
    main("memory_growth", body, DEPENDS)

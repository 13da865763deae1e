"""Time to an equally good front of accuracy and latency: `python -m benchmarks.search`.

A part of Banking77, all-MiniLM-L6-v2: fine-tuned, then heads and features cut and taught by the fine-tuned model.
Searched are how much is cut and how the rest learns. Three ways, with the recipe's seed as theirs:

- random: random search that trains and measures each trial as a whole, as a script around stock pieces does;
- optuna: the same with Optuna's TPE, after 4 random trials (after its default of 10 none would be left to it);
- ours: `hf_efficient.search` as it is: the recipe as given, the cheapest shape, then Optuna's Gaussian process.

Trials of the first two cost the time of a whole run: fine-tuning is the same for all of them, so it is done once here,
and its seconds are counted for each of them. The trials that TPE draws at random are those that random search begins
with, so they are not run twice either. Loading and encoding data is counted on no side.

A front's worth is its hypervolume above an accuracy of 0.5 and below twice the latency of the recipe as given. Latency
goes by shape, and what a search measured of it once is off by whatever else the machine did at that moment. So each
search decides by what it measured, and is judged by latencies that are measured here of all shapes in turns.
"""

import functools
import itertools
import json
import shutil
import statistics
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import optuna

from benchmarks.banking77 import banking77, folder_of_data
from benchmarks.harness import CACHE, Bench, alone, main, ratios
from hf_efficient import job, outcome, timing
from hf_efficient.blocks import layer_stacks, layers_of, units_of
from hf_efficient.cutting import known as known_cuts
from hf_efficient.cutting import shape
from hf_efficient.pretrained import DEFAULT_MODEL
from hf_efficient.reading import read_file
from hf_efficient.recipe import Recipe
from hf_efficient.search import (
    beginnings,
    goals,
    leases,
    proposing,
    samplers,
    space,
    speeds,
    spread,
    store,
    study,
    trials,
)
from hf_efficient.search.goals import Goals, Objective
from hf_efficient.search.space import Space
from hf_efficient.search.speeds import SpeedTable
from hf_efficient.search.study import FIGURES, VALUES, Search, completed, quietly
from hf_efficient.search.trials import WHOLE, Figures, Trials
from hf_efficient.task import Task
from hf_efficient.timing import Work, latency_ms

TRIALS, STARTUP = 10, 4
EXAMPLES, JUDGED = 1500, 1000
LEAST_ACCURACY, MOST_LATENCY = 0.5, 2.0
GOALS = Goals((Objective("accuracy", True), Objective("latency_ms", False)))
CUT = "stages.compress.optimizations.structured_pruning"
SPACE = {
    f"{CUT}.keep_heads": {"low": 0.25, "high": 1.0, "step": 0.25},
    f"{CUT}.keep_ffn": {"low": 0.125, "high": 1.0, "step": 0.125},
    "stages.compress.training.learning_rate": {"low": 5e-5, "high": 2e-3, "log": True},
    "stages.compress.optimizations.distillation.temperature": {"low": 1.0, "high": 4.0},
}

Shape = tuple[float, float]
"""Shares of the heads and of the features that stay."""
AS_GIVEN: Shape = (0.5, 0.5)
Event = tuple[float, float, float, float]
"""Seconds since the search began, accuracy, shape."""


def body(bench: Bench) -> None:
    found: dict[str, list[Any]] = {"random": [], "optuna": [], "ours": []}
    count = 2 if bench.quick else TRIALS
    told = bench.cell({"what": "latencies"}, functools.partial(alone, latencies, bench.quick), depends=(timing, shape))
    latency = {(each["heads"], each["features"]): each["ms"] for each in told["shapes"]}
    for seed in bench.seeds:
        theirs = _whole(bench, seed, count, "optuna", [])
        found["optuna"].append(theirs)
        budget = {"seconds": theirs["events"][-1][0], "worth": hypervolume(theirs["events"], latency)}
        compute = functools.partial(alone, ours, bench.quick, seed, budget, latency)
        found["ours"].append(bench.cell({"seed": seed, "trials": count, "way": "ours", **budget}, compute))
    found["random"] = [
        _whole(bench, seed, count, "random", theirs["events"][:STARTUP])
        for seed, theirs in zip(bench.seeds, found["optuna"], strict=True)
    ]
    wanted = [hypervolume(each["events"], latency) for each in found["optuna"]]
    for name, limit in (("ours", "<= 0.334"), ("random", "")):
        pairs = list(zip(found[name], found["optuna"], wanted, strict=True))
        reached = [_reached(each["events"], worth, latency) for each, _, worth in pairs]
        if missed := reached.count(None):
            bench.notes.append(f"{missed} of the searches '{name}' did not get as far as Optuna's in its time")
        spent = [at or peer["events"][-1][0] for at, (_, peer, _) in zip(reached, pairs, strict=True)]
        shares = ratios(spent, [peer["events"][-1][0] for _, peer, _ in pairs])
        claim = "time_to_same_hypervolume" if name == "ours" else f"{name}_time_to_same_hypervolume"
        bench.claim(claim, shares, f"time of {name} / Optuna's with whole runs", limit)
    for name, cells in found.items():
        worths = [hypervolume(each["events"], latency) for each in cells]
        bench.claim(f"{name}_hypervolume", worths, "of the front, when it ended")
        bench.claim(f"{name}_seconds", [each["events"][-1][0] for each in cells], "s until then")
        bench.claim(f"{name}_trials", [len(each["events"]) for each in cells], "trials that were trained to their end")
    bench.claim("ours_stopped", [each["stopped"] for each in found["ours"]], "trials of ours that were stopped early")


def _whole(bench: Bench, seed: int, count: int, sampler: str, known: list[Event]) -> dict[str, Any]:
    compute = functools.partial(alone, whole, bench.quick, seed, sampler, known)
    return bench.cell({"seed": seed, "trials": count, "way": sampler}, compute, depends=RUNS)


def recipe(quick: bool, seed: int, folder: Path) -> Recipe:
    """The recipe as given, on a part of the training data."""
    bank = folder_of_data("banking77")
    rows = read_file(bank / "train.csv").shuffle(seed=0)
    count, judged = (600, 200) if quick else (EXAMPLES, JUDGED)
    folder.mkdir(parents=True, exist_ok=True)
    for name, part in (("train", range(count)), ("validation", range(count, count + judged))):
        rows.select(part).to_csv(str(folder / f"{name}.csv"), index=False)
    training = {"per_device_train_batch_size": 32, "warmup_steps": 0.1, "eval_strategy": "no", "save_strategy": "no"}
    short = {"max_steps": 4} if quick else {}
    more = {"load_best_model_at_end": False, **short}
    fast = {"length_batching": {}, "precision": {}}
    stages = {
        "finetune": {
            "training": {**training, "num_train_epochs": 6, "learning_rate": 3e-4, **more},
            "optimizations": fast,
        },
        "compress": {
            "training": {**training, "num_train_epochs": 4, "learning_rate": 5e-4, **more},
            "optimizations": {
                **fast,
                "structured_pruning": {"keep_heads": 0.5, "keep_ffn": 0.5, "importance": "obs"},
                "distillation": {"teacher": "finetune"},
            },
        },
    }
    values: dict[str, Any] = {
        "name": "banking",
        "task": "text-classification",
        "model": DEFAULT_MODEL,
        "data": {**{name: str(folder / f"{name}.csv") for name in ("train", "validation")}, "max_length": 64},
        "stages": stages,
        "search": {"space": SPACE, "objectives": list(map(str, GOALS.objectives))},
        "seed": seed,
    }
    path = folder / "recipe.yaml"
    path.write_text(json.dumps(values))  # JSON is YAML
    return Recipe.load(path)


class WholeRuns(Trials):
    """Trials that share nothing but, for our patience, the fine-tuned model, whose seconds each of them counts."""

    def charged(self, number: int, values: Any) -> tuple[Figures, float]:
        """Figures of a trial, and seconds that it takes as a whole."""
        self._speeds = SpeedTable(self.folder / "trials" / f"{number:04d}" / "speeds")
        shutil.rmtree(self.store.folder / beginnings.SHARED, ignore_errors=True)
        began = time.perf_counter()
        judged = self.run(number, values)
        seconds = time.perf_counter() - began
        told = json.loads((self.store.folder / judged.stages[0] / job.STAGE_FILE).read_text())
        return judged.figures, seconds + told["training"]["seconds"]


def whole(quick: bool, seed: int, sampler: str, known: list[Event]) -> dict[str, Any]:
    """Optuna around whole runs.

    Args:
        known: what came of the first trials, which the sampler draws again.
    """
    folder = _emptied(f"{sampler}-{seed}")
    given = recipe(quick, seed, folder)
    assert given.search is not None
    drawn = Space(given, given.search.space)
    runs = WholeRuns(given, folder, GOALS, drawn.first_stage())
    runs.charged(9999, {})  # to have the fine-tuned model; not counted
    made_by = {
        "random": optuna.samplers.RandomSampler(seed=seed),
        "optuna": optuna.samplers.TPESampler(seed=seed, n_startup_trials=STARTUP, multivariate=True),
    }
    made = optuna.create_study(directions=["maximize", "minimize"], sampler=made_by[sampler])
    events: list[Event] = []
    spent = 0.0
    for number in range(2 if quick else TRIALS):
        trial = made.ask()
        values = drawn.suggested(trial)
        if number < len(known):
            events.append(known[number])
            assert tuple(events[-1][2:]) == _shape(values)
            spent = events[-1][0]
            continue
        figures, seconds = runs.charged(number, values)
        made.tell(trial, GOALS.values(figures))
        spent += seconds
        events.append((spent, figures["accuracy"], *_shape(values)))
    return {"events": events}


def ours(quick: bool, seed: int, budget: dict[str, float], latency: dict[Shape, float]) -> dict[str, Any]:
    """Our search, trial by trial, until it is as good as Optuna's was or has taken as long."""
    folder = _emptied(f"ours-{seed}")
    search = Search(recipe(quick, seed, folder), folder)
    made = search.open(TRIALS)
    events: list[Event] = []
    spent = 0.0
    for wanted in itertools.count(1):
        began = time.perf_counter()
        with quietly():
            search.work(made, wanted)
        spent += time.perf_counter() - began
        done = completed(made)
        if len(done) > len(events):
            last = max(done, key=lambda trial: trial.number).user_attrs
            events.append((spent, last[FIGURES][str(WHOLE)]["accuracy"], *_shape(last[VALUES])))
        if hypervolume(events, latency) >= budget["worth"] or spent >= budget["seconds"]:
            break
    stopped = sum(trial.state == optuna.trial.TrialState.PRUNED for trial in made.get_trials(deepcopy=False))
    return {"events": events, "stopped": stopped}


def _shape(values: Mapping[str, Any]) -> Shape:
    return values.get(f"{CUT}.keep_heads", AS_GIVEN[0]), values.get(f"{CUT}.keep_ffn", AS_GIVEN[1])


def latencies(quick: bool) -> dict[str, Any]:
    """Milliseconds for one example, of each shape in the space: medians over rounds that take all in turn.

    What a round has of a shape is divided by what it has of the recipe as given, whose median over all scales it back.
    """
    task, data = banking77()
    examples = list(data["validation"].select(range(200)).remove_columns("labels"))
    shapes = list(itertools.product((0.25, 0.5, 0.75, 1.0), (each / 8 for each in range(1, 9))))
    works = {each: Work(task.runtime(_cut(task, each)), examples, task.collator(), False) for each in shapes}
    rounds = [
        {each: latency_ms(work, 1, 0.0)[0]["p50"] for each, work in works.items()} for _ in range(2 if quick else 9)
    ]
    scale = statistics.median(each[AS_GIVEN] for each in rounds)
    return {
        "shapes": [
            {"heads": one[0], "features": one[1], "ms": scale * statistics.median(r[one] / r[AS_GIVEN] for r in rounds)}
            for one in shapes
        ]
    }


def _cut(task: Task, wanted: Shape) -> Any:
    model = task.load_model(DEFAULT_MODEL).eval()
    (stack,) = layer_stacks(model)
    count = len(layers_of(model, stack))
    units: dict[str, list[list[int]]] = {}
    for sublayer, share in zip(stack.sublayers, wanted, strict=True):
        whole_ = units_of(model, layers_of(model, stack)[0], sublayer)
        units[sublayer.kind] = [list(range(max(1, round(share * whole_))))] * count
    shape.cut(model, shape.Shape({stack.path: list(range(count))}, {stack.path: units}))
    return model


def hypervolume(events: Iterable[Event], latency: Mapping[Shape, float]) -> float:
    """Of the front of ``events``: accuracy above the least one, times latency below the most one, as shares."""
    given = latency[AS_GIVEN]
    points = sorted((latency[heads, features] / given, accuracy) for _, accuracy, heads, features in events)
    worth, best = 0.0, LEAST_ACCURACY
    for took, accuracy in points:
        if accuracy > best and took < MOST_LATENCY:
            worth += (MOST_LATENCY - took) / MOST_LATENCY * (accuracy - best) / (1 - LEAST_ACCURACY)
            best = accuracy
    return worth


def _reached(events: list[Event], worth: float, latency: Mapping[Shape, float]) -> float | None:
    """Seconds after which the front of ``events`` is worth so much; None: never."""
    for index, event in enumerate(events):
        if hypervolume(events[: index + 1], latency) >= worth:
            return event[0]
    return None


def _emptied(name: str) -> Path:
    folder = CACHE / "search" / name
    shutil.rmtree(folder, ignore_errors=True)
    return folder


RUNS = (job, outcome, speeds, store, trials)
DEPENDS = (*RUNS, known_cuts, beginnings, goals, leases, proposing, samplers, space, spread, study)

if __name__ == "__main__":
    main("search", body, DEPENDS)

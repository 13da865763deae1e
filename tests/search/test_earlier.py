import json
from pathlib import Path
from typing import Any

from hf_efficient.search.earlier import MOST, STUDY, earlier
from hf_efficient.search.goals import Goals, Objective
from tests.search.test_space import LAYERS, RATE, of

GOALS = Goals((Objective("accuracy", True), Objective("bytes", False)))


def write(folder: Path, values: list[dict[str, Any]], **changes: Any) -> None:
    trials = [{"number": number, "values": each, "as_given": not each} for number, each in enumerate(values)]
    front = [trial["number"] for trial in trials]
    folder.mkdir(parents=True)
    told = {"objectives": list(map(str, GOALS.objectives)), "front": front, "trials": trials, **changes}
    (folder / STUDY).write_text(json.dumps(told))


def test_fronts_of_other_searches_come_first(recipe: Path, tmp_path: Path) -> None:
    space = of(recipe, {RATE: {"low": 1e-4, "high": 1e-2}, LAYERS: [[0], [1]]})
    runs = tmp_path / "runs"
    own = runs / "tiny" / "search"
    write(runs / "tiny" / "old", [{}, {RATE: 1e-3, LAYERS: [1]}, {RATE: 1.0, LAYERS: [1]}, {RATE: 1e-3}])
    write(runs / "other" / "search", [{RATE: 2e-3, LAYERS: [0]}], front=[])
    write(runs / "third" / "search", [{RATE: 2e-3, LAYERS: [0]}], objectives=["max f1"])
    write(own, [{RATE: 2e-3, LAYERS: [0]}])
    (runs / "fourth" / "search").mkdir(parents=True)
    (runs / "fourth" / "search" / STUDY).write_text("{")
    assert earlier(own, space, GOALS) == [({RATE: 1e-3, LAYERS: "[1]"}, "tiny/old")]


def test_no_more_than_a_few_and_none_twice(recipe: Path, tmp_path: Path) -> None:
    space = of(recipe, {RATE: {"low": 1e-4, "high": 1e-2}})
    values = [{RATE: rate} for rate in (1e-3, 1e-3, 2e-3, 3e-3, 4e-3)]
    write(tmp_path / "runs" / "tiny" / "old", values)
    found = earlier(tmp_path / "runs" / "tiny" / "search", space, GOALS)
    assert [parameters[RATE] for parameters, _ in found] == [1e-3, 2e-3, 3e-3]
    assert len(found) == MOST

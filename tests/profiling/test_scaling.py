"""Steps on more devices: the arithmetic by hand, a machine that keeps to it, and processes of this one."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from hf_efficient.errors import ConfigError
from hf_efficient.picture import draw
from hf_efficient.profiling.picture import scaling_figure
from hf_efficient.profiling.scaling import BUCKET, Costs, Link, Scaling, scaling
from hf_efficient.profiling.steps import DDP, FSDP, SMALL, Steps, measure_steps
from tests.tiny import LAYERS, pad, text_examples, text_model

LINK = Link(speed=1e9, latency=1e-4)
COSTS = Costs(forward=0.1, backward=0.2, optimizer=0.04, size=100_000_000, pieces=7)


def all_reduce(size: float, processes: int, link: Link = LINK) -> float:
    return 2 * (processes - 1) * (link.latency + size / processes / link.speed)


@pytest.mark.parametrize("processes", [2, 4])
def test_the_link_is_found_in_what_exchanges_take(processes: int) -> None:
    exchanges = {size: all_reduce(size, processes) for size in (SMALL, 10_000_000)}
    found = Link.measured(exchanges, processes)
    assert found.speed == pytest.approx(LINK.speed)
    assert found.latency == pytest.approx(LINK.latency)


def test_a_step_on_one_device_is_its_parts() -> None:
    assert COSTS.seconds(DDP, 1, LINK) == COSTS.seconds(FSDP, 1, LINK) == pytest.approx(0.34)


def test_what_is_exchanged_is_counted_by_hand() -> None:
    buckets = math.ceil(COSTS.size / BUCKET)
    assert COSTS.exchange(DDP, 4, LINK) == pytest.approx(2 * 3 * (buckets * 1e-4 + 0.1 / 4))
    assert COSTS.exchange(FSDP, 4, LINK) == pytest.approx(3 * 3 * (7 * 1e-4 + 0.1 / 4))
    assert COSTS.seconds(DDP, 4, LINK) == pytest.approx(0.34 + COSTS.exchange(DDP, 4, LINK))
    assert COSTS.seconds(FSDP, 4, LINK) == pytest.approx(0.31 + COSTS.exchange(FSDP, 4, LINK))


def test_no_more_is_hidden_than_there_is_computing_beside_it() -> None:
    hiding = Costs(0.1, 0.2, 0.04, COSTS.size, COSTS.pieces, {DDP: 1.0, FSDP: 0.5})
    assert hiding.seconds(DDP, 4, LINK) == pytest.approx(0.34)
    slow = Link(speed=1e8, latency=1e-4)
    assert hiding.seconds(DDP, 4, slow) == pytest.approx(0.34 + hiding.exchange(DDP, 4, slow) - 0.2)
    assert hiding.seconds(FSDP, 4, LINK) == pytest.approx(0.31 + hiding.exchange(FSDP, 4, LINK) / 2)


def keeps_to_it(hidden: Mapping[str, float], off: float = 1.0) -> Any:
    """What replaces `measure_steps`: a machine whose steps take what the formula says, times ``off`` on four."""

    def measure(model: Any, batches: Any, processes: int, threads: int) -> Steps:
        size = sum(parameter.nbytes for parameter in model.parameters())
        costs = Costs(0.01 * processes, 0.02 * processes, 0.004, size, LAYERS + 1, hidden)
        shared, exchanges = {}, {}
        if processes > 1:
            factor = off if processes == 4 else 1.0
            shared = {way: factor * costs.seconds(way, processes, LINK) for way in (DDP, FSDP)}
            exchanges = {each: all_reduce(each, processes) for each in (SMALL, size)}
        return Steps(processes, costs.forward, costs.backward, costs.optimizer, shared, exchanges)

    return measure


def predicted(
    monkeypatch: pytest.MonkeyPatch, devices: int = 48, off: float = 1.0, link: Link | None = None
) -> Scaling:
    monkeypatch.setattr("hf_efficient.profiling.scaling.measure_steps", keeps_to_it({DDP: 0.25, FSDP: -0.5}, off))
    return scaling(text_model(), text_examples(16).examples, pad, devices, 8, link)


def test_a_machine_that_keeps_to_the_formula_is_predicted(monkeypatch: pytest.MonkeyPatch) -> None:
    made = predicted(monkeypatch)
    assert made.costs.hidden == pytest.approx({DDP: 0.25, FSDP: -0.5})
    assert made.measured_link == made.link
    assert list(made.steps) == [1, 2, 4, 8, 16, 32, 48]
    assert made.steps[1][DDP] == pytest.approx(0.034)
    assert made.error == pytest.approx({DDP: 0, FSDP: 0}, abs=1e-9)
    assert made.efficiency(DDP, 1) == pytest.approx(1)
    assert made.efficiency(DDP, 2) > made.efficiency(DDP, 48)


def test_by_how_much_it_was_off_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    made = predicted(monkeypatch, off=2.0)
    assert made.error == pytest.approx({DDP: 0.5, FSDP: 0.5})
    assert "Checked on 4 processes here" in "\n".join(made.explained())
    assert "(-50 %)" in "\n".join(made.explained())


def test_a_slower_link_costs_more(monkeypatch: pytest.MonkeyPatch) -> None:
    slow, here = predicted(monkeypatch, link=Link(1e6, 1e-3)), predicted(monkeypatch)
    assert all(slow.steps[count][way] > here.steps[count][way] for count in (2, 48) for way in (DDP, FSDP))
    assert slow.steps[1] == here.steps[1]


def test_it_is_shown_whole(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    made = predicted(monkeypatch, devices=1024)
    heading, rows = made.table()
    assert [row[0] for row in rows][-1] == "1,024"
    assert all(len(row) == len(heading) for row in rows)
    assert json.loads(json.dumps(made.to_dict()))["error"] == {DDP: pytest.approx(0), FSDP: pytest.approx(0)}
    draw(scaling_figure(made), tmp_path / "scaling.png")
    assert Image.open(tmp_path / "scaling.png").size[0] > 500


@pytest.mark.parametrize("devices", [0, 1025])
def test_other_numbers_of_devices_are_refused(devices: int) -> None:
    with pytest.raises(ConfigError, match=f"from 1 to 1,024, got {devices}"):
        scaling(text_model(), text_examples(8).examples, pad, devices)


def test_one_gpu_is_too_few_to_see_how_they_share(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hf_efficient.profiling.scaling._devices", lambda kind: 1)
    with pytest.raises(ConfigError, match="measured on 2 of them, and here is 1"):
        scaling(text_model(), text_examples(8).examples, pad, 8)


@pytest.mark.slow
def test_processes_here_are_timed() -> None:
    model = text_model()
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    batch = pad(text_examples(8).examples)
    found = measure_steps(model, [batch], processes=2, threads=1)
    assert set(found.shared) == {DDP, FSDP}
    assert sorted(found.exchanges) == [SMALL, sum(parameter.nbytes for parameter in model.parameters())]
    assert min(found.forward, found.backward, found.optimizer, *found.shared.values(), *found.exchanges.values()) > 0
    assert all((weight == before[name]).all() for name, weight in model.state_dict().items())


@pytest.mark.slow
def test_a_model_that_cannot_be_trained_is_told() -> None:
    batch = pad(text_examples(8).examples)
    batch["labels"] = batch["labels"] + 1000
    with pytest.raises(ConfigError, match="cannot be trained on 1 processes here"):
        measure_steps(text_model(), [batch], processes=1, threads=1)

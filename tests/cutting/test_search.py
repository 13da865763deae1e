"""Cuts within a budget: found, made and repaired."""

import copy
from typing import Any

import pytest
import torch

from hf_efficient.cutting.costs import Costs, parameter_costs
from hf_efficient.cutting.error_table import drop_order, error_table, levels
from hf_efficient.cutting.importance import IMPORTANCES, removal_orders
from hf_efficient.cutting.observation import divergence, logits_on, moments, streams
from hf_efficient.cutting.search import Search
from hf_efficient.cutting.shape import Shape, cut, cut_copy, fits, repair

STACK = "encoder.layer"


def parameters(model: Any) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def test_levels_end_in_the_smallest() -> None:
    assert levels(1) == [1]
    assert levels(12) == [12, 9, 6, 4, 3, 2, 1]
    assert levels(1536)[:3] == [1536, 1152, 768]
    assert all(level % 16 == 0 for level in levels(1536))


@pytest.mark.parametrize("kind", IMPORTANCES)
def test_every_importance_beats_its_reverse(trained: Any, batches: Any, kind: str) -> None:
    known = moments(trained, batches)
    orders = removal_orders(trained, kind, batches, known)
    reference = logits_on(trained, batches)
    found = []
    for order in (orders, {key: units[::-1] for key, units in orders.items()}):
        units = {"ffn": [sorted(order[STACK, i, "ffn"][-16:]) for i in range(3)]}
        found.append(divergence(cut_copy(trained, Shape({STACK: [0, 1, 2]}, {STACK: units})), batches, reference))
    assert sorted(orders[STACK, 0, "ffn"]) == list(range(32))
    assert found[0] < found[1]


def test_repair_brings_back_most_of_what_a_cut_costs(trained: Any, batches: Any) -> None:
    reference, wanted = logits_on(trained, batches), streams(trained, batches)
    units = {"attention": [[0, 1]] * 3, "ffn": [list(range(12))] * 3}
    shape = Shape({STACK: [0, 1, 2]}, {STACK: units})
    made = cut_copy(trained, shape)
    before = divergence(made, batches, reference)
    repair(made, shape, batches, wanted)
    assert divergence(made, batches, reference) < before / 2
    assert fits(made, shape)
    assert not fits(trained, shape)


def test_error_table_grows_and_leaves_the_model_as_it_was(trained: Any, batches: Any) -> None:
    state = copy.deepcopy(trained.state_dict())
    known = moments(trained, batches)
    orders = removal_orders(trained, "obs", batches, known)
    table = error_table(trained, batches, logits_on(trained, batches), known, orders)
    assert len(table) == 6
    for row in table.values():
        values = list(row.values())
        assert values[0] == 0.0
        assert values == sorted(values)
        assert values[-1] > 0
    assert all(torch.equal(value, state[name]) for name, value in trained.state_dict().items())


def test_drop_order_names_all_layers_but_one(trained: Any, batches: Any) -> None:
    found = drop_order(trained, batches, logits_on(trained, batches))[STACK]
    assert len({index for index, _ in found}) == 2
    assert len(trained.bert.encoder.layer) == 3


def test_parameter_costs_are_exact(trained: Any) -> None:
    costs = parameter_costs(trained)
    whole = [{"attention": 4, "ffn": 32}] * 3
    assert costs.total({STACK: whole}) == pytest.approx(parameters(trained))
    shape = Shape({STACK: [0, 2]}, {STACK: {"attention": [[0], [1, 2]], "ffn": [[0, 1, 2], [5]]}})
    counts = [{"attention": 1, "ffn": 3}, {"attention": 2, "ffn": 1}]
    assert costs.total({STACK: counts}) == pytest.approx(parameters(cut_copy(trained, shape)))
    in_mb = parameter_costs(trained, bytes_each=4)
    assert in_mb.total({STACK: whole}) == pytest.approx(parameters(trained) * 4 / 1e6)


def test_costs_between_known_widths_are_interpolated() -> None:
    costs = Costs("ms", 1.0, {STACK: 0.5}, {STACK: {"ffn": {4: 1.0, 8: 3.0}}})
    assert costs.of(STACK, "ffn", 6) == 2.0
    assert costs.of(STACK, "ffn", 2) == 0.0  # as the nearest two go on
    assert costs.of(STACK, "ffn", 1) == 0.0  # nothing costs less than nothing
    assert Costs("ms", 1.0, {STACK: 0.5}, {STACK: {"ffn": {4: 3.0, 8: -1.0}}}).of(STACK, "ffn", 8) == 0.0  # noise
    assert costs.total({STACK: [{"ffn": 4}, {"ffn": 8}]}) == 1 + 2 * 0.5 + 4


@pytest.mark.parametrize("share", [0.85, 0.6])
def test_stays_within_a_budget_and_uses_it(trained: Any, batches: Any, share: float) -> None:
    search = Search(trained, batches)
    costs = parameter_costs(trained)
    budget = costs.rest + share * (parameters(trained) - costs.rest)
    found = search.within(costs, budget)
    assert found is not None
    made = copy.deepcopy(trained)
    search.apply(made, found.shape)
    inside = (parameters(made) - costs.rest) / (parameters(trained) - costs.rest)
    assert share - 0.2 < inside <= share * 1.01
    assert divergence(made, search.judging, search.reference) == pytest.approx(found.divergence, rel=1e-3)
    assert len(found.tried) > 1


def test_what_cannot_be_met_is_none(trained: Any, batches: Any) -> None:
    assert Search(trained, batches).within(parameter_costs(trained), 10.0) is None


def test_auto_compares_every_importance(trained: Any, batches: Any) -> None:
    search = Search(trained, batches, "auto")
    found = search.best_of({STACK: [0, 1, 2]}, {(STACK, i, "ffn"): 8 for i in range(3)})
    assert [each["importance"] for each in found.tried] == list(IMPORTANCES)
    assert found.divergence == min(each["divergence"] for each in found.tried)


def test_uniform_shape_has_one_width_and_all_heads(trained: Any, batches: Any) -> None:
    costs = parameter_costs(trained)
    found = Search(trained, batches).within(costs, parameters(trained) * 0.8, uniform=True)
    assert found is not None
    widths = found.shape.widths()[STACK]
    assert len(set(widths["ffn"])) == 1
    assert set(widths["attention"]) == {4}
    made = copy.deepcopy(trained)
    cut(made, found.shape)
    assert not hasattr(made.config, "quantization_config")
    assert parameters(made) <= parameters(trained) * 0.8


def test_training_to_come_is_tried(trained: Any, batches: Any) -> None:
    """Evenly spread layers compete as well, and the best after trials is taken."""
    costs = parameter_costs(trained)
    budget = costs.rest + 0.5 * (parameters(trained) - costs.rest)
    without = Search(trained, batches).within(costs, budget)
    found = Search(trained, batches, steps=1000, rate=1e-3).within(costs, budget)
    assert without is not None
    assert found is not None
    assert all(each["after_trial"] is None for each in without.tried)
    after = [each["after_trial"] for each in found.tried]
    assert None not in after
    assert found.after_trial is not None
    assert [0, 2] in [each["layers"][STACK] for each in found.tried]
    assert len(found.tried) >= len(without.tried)

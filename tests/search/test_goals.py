import pytest

from hf_efficient import ConfigError
from hf_efficient.search.goals import Constraint, Goals, Objective, Rule

ACCURACY, LATENCY = Objective("accuracy", True), Objective("latency_ms", False)
KNOWN = {"accuracy": True}


def test_objectives_know_their_direction() -> None:
    assert Objective.parse("accuracy", KNOWN) == ACCURACY
    assert Objective.parse("latency_ms", KNOWN) == LATENCY
    assert Objective.parse("max f1", KNOWN) == Objective("f1", True)
    assert str(Objective.parse("min f1", KNOWN)) == "min f1"
    with pytest.raises(ConfigError, match="write 'max f1' or 'min f1'"):
        Objective.parse("f1", KNOWN)
    with pytest.raises(ConfigError, match="is no objective"):
        Objective.parse("as small as possible", KNOWN)


def test_constraints() -> None:
    found = Constraint.parse("accuracy >= 0.91")
    assert found == Constraint("accuracy", True, 0.91)
    assert found.excess({"accuracy": 0.9}) == pytest.approx(0.01)
    assert Constraint.parse("latency_ms<=3").excess({"latency_ms": 2.0}) == -1
    for wrong in ("accuracy", "accuracy > 0.9", "accuracy >= high", ""):
        with pytest.raises(ConfigError, match="is no constraint"):
            Constraint.parse(wrong)


def test_the_front_is_what_nothing_dominates() -> None:
    goals = Goals((ACCURACY, LATENCY))
    assert goals.dominates([0.9, 1.0], [0.9, 2.0])
    assert not goals.dominates([0.9, 1.0], [0.9, 1.0])
    assert not goals.dominates([0.8, 1.0], [0.9, 2.0])
    assert goals.front({0: [0.9, 3.0], 1: [0.8, 1.0], 2: [0.8, 2.0], 3: [0.9, 3.0]}) == [0, 1, 3]


def test_figures_that_are_not_told() -> None:
    goals = Goals((ACCURACY,), (Constraint("latency_sm", False, 3),))
    with pytest.raises(ConfigError, match="unknown figure 'latency_sm'; did you mean 'latency_ms'"):
        goals.require(["accuracy", "latency_ms"])


FIGURES = {
    0: {"accuracy": 0.95, "latency_ms": 4.0},
    1: {"accuracy": 0.92, "latency_ms": 2.0},
    2: {"accuracy": 0.90, "latency_ms": 1.0},
}


def test_a_rule_picks() -> None:
    assert Rule.parse("accuracy >= 0.92, min latency_ms", KNOWN).picked(FIGURES) == 1
    assert Rule.parse("latency_ms <= 1.5, accuracy", KNOWN).picked(FIGURES) == 2
    assert Rule.parse("accuracy", KNOWN).picked(FIGURES) == 0
    with pytest.raises(ConfigError, match=r"no trial keeps accuracy >= 0.99 \(the best accuracy is 0.95\)"):
        Rule.parse("accuracy >= 0.99, min latency_ms", KNOWN).picked(FIGURES)
    with pytest.raises(ConfigError, match="did you mean 'latency_ms'"):
        Rule.parse("min latency_m", KNOWN).picked(FIGURES)
    with pytest.raises(ConfigError, match="must name one objective"):
        Rule.parse("accuracy >= 0.9", KNOWN)

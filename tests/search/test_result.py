from hf_efficient.search.goals import Goals, Objective
from hf_efficient.search.result import Found, _usual, shortest

GOALS = Goals((Objective("accuracy", True), Objective("latency_ms", False)))


def test_keys_are_as_short_as_they_can_be() -> None:
    assert shortest(["stages.a.rate", "stages.b.rate", "seed"]) == {
        "stages.a.rate": "a.rate",
        "stages.b.rate": "b.rate",
        "seed": "seed",
    }
    assert shortest(["a.rate", "rate"]) == {"a.rate": "a.rate", "rate": "rate"}


def test_what_is_chosen_loses_nothing_against_the_recipe_as_given() -> None:
    front = {
        1: {"accuracy": 0.9, "latency_ms": 3.0},
        2: {"accuracy": 0.8, "latency_ms": 2.0},
        3: {"accuracy": 0.7, "latency_ms": 1.0},
    }
    assert _usual(GOALS, front, {"accuracy": 0.75, "latency_ms": 9.0})[0] == 2
    assert _usual(GOALS, front, {"accuracy": 0.95, "latency_ms": 9.0})[0] == 1  # none keeps it: the best there is
    assert _usual(GOALS, front, None)[0] == 1
    assert _usual(Goals(GOALS.objectives[:1]), front, {"accuracy": 0.1})[0] == 1
    assert _usual(GOALS, {}, None) == (None, "")


def test_a_table_takes_any_value() -> None:
    trial = {
        "number": 0,
        "as_given": False,
        "values": {"stages.a.rate": 1e-3, "export": {"format": "a|b"}},
        "figures": {"accuracy": 0.123456, "latency_ms": 1.0},
        "why": "",
        "earlier": "",
    }
    text = Found(GOALS, [trial], [0], 0, "max accuracy").markdown("title")
    assert "| trial | accuracy | latency_ms | rate | export | |" in text
    assert "| 0 | 0.1235 | 1 | 0.001 | {'format': 'a\\|b'} | **chosen**, front |" in text

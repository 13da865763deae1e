"""Names to instances, order, conflicts; what happens to all is what happens to each."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from hf_efficient import ConfigError, ConflictError, Optimization, Order, Plan
from hf_efficient.optimization import Context
from hf_efficient.plan import OPTIMIZATIONS, build_optimizations, optimization_class


@dataclass(eq=False, kw_only=True)
class First(Optimization):
    name = "first"
    order = Order.DATA
    step: int = 0

    def state_dict(self) -> dict[str, Any]:
        return {"step": self.step}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.step = state["step"]

    def finalize(self, model: Any) -> Any:
        return [*model, "first"]


@dataclass(eq=False, kw_only=True)
class Last(Optimization):
    name = "last"
    order = Order.QUANTIZATION

    def finalize(self, model: Any) -> Any:
        return [*model, "last"]


def test_order_is_not_the_users() -> None:
    plan = Plan([Last(), First()])
    assert [optimization.name for optimization in plan] == ["first", "last"]
    assert plan.finalize([]) == ["first", "last"]
    assert [optimization.name for optimization in plan.before(Order.STRUCTURE)] == ["first"]


def test_state_goes_back_by_name() -> None:
    assert Plan([Last(), First(step=3)]).state_dict() == {"first": {"step": 3}, "last": {}}
    fresh = First()
    Plan([fresh]).load_state_dict({"first": {"step": 3}, "gone": {}})
    assert fresh.step == 3


def test_overriding_finds_only_own_methods() -> None:
    plan = Plan([First(), Last()])
    assert len(plan.overriding("finalize")) == 2
    assert plan.overriding("loss") == []


def test_twice_and_conflicts() -> None:
    with pytest.raises(ConflictError, match="first is given twice"):
        Plan([First(), First()])
    with pytest.raises(ConflictError, match="clash and last cannot run together; drop one"):
        Plan([type("Clash", (First,), {"name": "clash", "conflicts": frozenset({"last"})})(), Last()])


@pytest.mark.parametrize("name", OPTIMIZATIONS)
def test_table_entry(name: str) -> None:
    cls = optimization_class(name)
    assert cls.name == name
    assert cls.__doc__
    assert cls.__module__.endswith(name)
    card = Path(__file__).parents[1] / "docs" / "optimizations" / f"{name}.md"
    assert card.is_file()


@pytest.mark.parametrize("values", [{}, None, True])
def test_defaults(values: Any) -> None:
    assert len(build_optimizations({"precision": values})) == 1


def test_switched_off() -> None:
    assert build_optimizations({"precision": False}) == []
    assert build_optimizations(None) == []


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"precisoin": {}}, "did you mean 'precision'"),
        ({"precision": {"dtyp": "bf16"}}, "did you mean 'dtype'"),
        ({"precision": 3}, "mapping"),
        ("precision", "map names to settings"),
    ],
)
def test_bad_settings(settings: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build_optimizations(settings)


class TestDecide:
    class Args:
        process_index, world_size = 0, 1

    def context(self, folder: Path, resuming: bool) -> Context:
        return Context(args=self.Args(), folder=folder, resuming=resuming)  # type: ignore[arg-type]

    def test_is_written_before_it_is_used_and_read_again(self, tmp_path: Path) -> None:
        assert self.context(tmp_path, False).decide("cut", lambda: {"keep": [1]}) == {"keep": [1]}
        assert self.context(tmp_path, True).decide("cut", lambda: {"keep": [2]}) == {"keep": [1]}
        assert self.context(tmp_path, False).decide("cut", lambda: {"keep": [2]}) == {"keep": [2]}

    def test_damaged(self, tmp_path: Path) -> None:
        (tmp_path / "decisions").mkdir()
        (tmp_path / "decisions" / "cut.json").write_text("{")
        with pytest.raises(ConfigError, match="delete it"):
            self.context(tmp_path, True).decide("cut", dict)

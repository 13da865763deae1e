"""Plain values become typed settings; findings are worded for the user."""

from dataclasses import dataclass
from typing import Any

import pytest
from pydantic import BaseModel, ConfigDict

from hf_efficient.errors import ConfigError
from hf_efficient.settings import parse


@dataclass(kw_only=True)
class Settings:
    __pydantic_config__ = ConfigDict(extra="forbid")

    rate: float = 0.1
    layers: int | None = None
    mode: str = "a"

    def __post_init__(self) -> None:
        if self.rate < 0:
            raise ConfigError(f"rate must not be negative, got {self.rate}")


class Inner(BaseModel):
    model_config = ConfigDict(extra="forbid")
    depth: int = 1


class Outer(BaseModel):
    model_config = ConfigDict(extra="forbid")
    inner: Inner = Inner()
    many: dict[str, Inner] = {}
    name: str


def test_values_are_coerced() -> None:
    assert parse(Settings, {"rate": "3e-5", "layers": "4"}, "x") == Settings(rate=3e-5, layers=4)


@pytest.mark.parametrize(
    ("cls", "values", "message"),
    [
        (Settings, {"rat": 1}, "x: unknown key 'rat'; did you mean 'rate'? Allowed: layers, mode, rate"),
        (Settings, {"rate": "fast"}, "x.rate: input should be a valid number"),
        (Settings, {"rate": -1}, "x: rate must not be negative, got -1.0"),
        (Settings, [1], "x must be a mapping"),
        (Outer, {}, "x.name is missing; add it"),
        (Outer, {"name": "n", "inner": {"dept": 2}}, "x.inner: unknown key 'dept'; did you mean 'depth'?"),
        (Outer, {"name": "n", "many": {"one": {"dept": 2}}}, "x.many.one: unknown key 'dept'; did you mean 'depth'?"),
    ],
)
def test_findings(cls: type, values: Any, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(cls, values, "x")
    assert str(caught.value).startswith(message)


def test_several_findings_at_once() -> None:
    with pytest.raises(ConfigError, match=r"rate.*; .*layers"):
        parse(Settings, {"rate": "fast", "layers": "none"}, "")

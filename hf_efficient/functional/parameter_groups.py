"""Optimizer classes with something in front of them, and parameter groups in parts."""

from collections.abc import Callable, Mapping
from typing import Any


def combined(behaviour: type, cls: type) -> type:
    """The optimizer class ``cls`` with ``behaviour`` in front of it, under its own name."""
    return type(cls.__name__, (behaviour, cls), {"__module__": behaviour.__module__})


def split_group(group: Mapping[str, Any], key: Callable[[Any], Any]) -> dict[Any, dict[str, Any]]:
    """A parameter group as several, by what ``key`` says of each parameter, in the order in which that comes up."""
    members: dict[Any, list[Any]] = {}
    for parameter in group["params"]:
        members.setdefault(key(parameter), []).append(parameter)
    return {value: {**group, "params": ones} for value, ones in members.items()}

"""Typed settings: plain values (YAML, JSON, command line) into dataclasses and pydantic models.

pydantic does the coercion (PyYAML reads ``3e-5`` as a string); this module only words its findings for the user.
"""

from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from hf_efficient.errors import ConfigError, unknown

T = TypeVar("T")


def parse(cls: type[T], values: Mapping[str, Any], where: str) -> T:
    """Build ``cls`` (a dataclass or pydantic model that forbids extra keys) from plain ``values``.

    Args:
        where: dotted name that prefixes each key in messages, e.g. ``stages.compress.optimizations.precision``.

    Raises:
        ConfigError: unknown key (with the nearest allowed one), wrong type, or a value that the class refuses.
    """
    if not isinstance(values, Mapping):
        raise ConfigError(f"{where or 'settings'} must be a mapping of keys to values, got {values!r}")
    try:
        return TypeAdapter(cls).validate_python(dict(values))
    except ValidationError as error:
        raise ConfigError("; ".join(_message(cls, detail, where) for detail in error.errors())) from None


def _message(cls: type, detail: Mapping[str, Any], where: str) -> str:
    path = [str(part) for part in detail["loc"]]
    names = [*([where] if where else []), *path]
    if detail["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
        parent = ".".join(names[:-1])
        return f"{parent + ': ' if parent else ''}{unknown('key', path[-1], _keys(cls, path[:-1]))}"
    name = ".".join(names)
    if detail["type"] in ("missing", "missing_argument"):
        return f"{name} is missing; add it"
    cause = (detail.get("ctx") or {}).get("error")
    if cause is not None:  # raised by the class itself, already worded for the user
        return f"{name}: {cause}" if name else str(cause)
    text = detail["msg"]
    return f"{name}: {text[0].lower()}{text[1:]}, got {detail['input']!r} ({type(detail['input']).__name__})"


def _keys(cls: Any, path: list[str]) -> list[str]:
    """Field names of ``cls``, or of the model nested in it at ``path``."""
    for part in path:
        annotation = getattr(_fields(cls).get(part), "annotation", None)
        # dict[str, Model] and Model | None: the model is among the arguments; a dict key names no field
        models = [a for a in (annotation, *getattr(annotation, "__args__", ())) if _fields(a)]
        cls = models[0] if models else cls
    return list(_fields(cls))


def _fields(cls: Any) -> dict[str, Any]:
    return getattr(cls, "model_fields", None) or getattr(cls, "__dataclass_fields__", {})


def require_same(name: str, saved: Mapping[str, Any], given: Mapping[str, Any]) -> None:
    """Refuse to resume an optimizer whose state is of other settings.

    Args:
        name: of the optimization that chose it.
        saved: its settings when the checkpoint was written.

    Raises:
        ConfigError: they are not those ``given`` now.
    """
    if saved != given:
        raise ConfigError(
            f"the checkpoint holds state of {name} {dict(saved)}, which {dict(given)} cannot take over; resume with "
            "the same settings"
        )

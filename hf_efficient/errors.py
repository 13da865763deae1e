"""Errors and warnings: each message names what was given, what is allowed and what to do."""

import difflib
from collections.abc import Iterable

TERMINATED = 128 + 15
"""Exit code of a process that SIGTERM ended, as a shell reports it."""


class EfficientError(Exception):
    """Base of every error that hf_efficient raises on purpose; the command line turns it into exit code 2."""


class ConfigError(EfficientError, ValueError):
    """A setting, recipe, model or checkpoint that cannot work as given."""


class ConflictError(ConfigError):
    """Two optimizations that cannot run together."""


class DataError(EfficientError, ValueError):
    """A data set that cannot be read or does not fit the task."""


class ExportError(EfficientError):
    """An export that does not compute what its model does; nothing of it was kept."""


class HubError(EfficientError, OSError):
    """A model that did not get to the Hub."""


class TrainingError(EfficientError):
    """A training that cannot go on as it is, for a reason outside of it; its checkpoints stay."""


class RequestError(EfficientError, ValueError):
    """A request to an app that cannot be answered as it is."""


class BusyError(EfficientError):
    """Too many requests wait already; ask again after a moment."""


class Preempted(SystemExit):
    """SIGTERM came during a training, whose state is saved: a process that does not catch it ends with `code`.

    Attributes:
        checkpoint: what to resume from.
    """

    def __init__(self, checkpoint: str):
        super().__init__(TERMINATED)
        self.checkpoint = checkpoint


class MissingDependencyError(EfficientError, ImportError):
    """An optional package that the request needs is not installed."""

    def __init__(self, feature: str, package: str, extra: str):
        super().__init__(
            f"{feature} needs the package `{package}`, which is not installed. "
            f"Install it with: pip install 'hf-efficient[{extra}]'"
        )


class NoEffectWarning(UserWarning):
    """An optimization that was asked for but changes nothing."""


def unknown(kind: str, given: str, allowed: Iterable[str]) -> str:
    """Message for a name that does not exist, with the nearest allowed one.

    >>> unknown("recipe", "costumer-service", ["customer-service"])
    "unknown recipe 'costumer-service'; did you mean 'customer-service'? Allowed: customer-service"
    """
    names = sorted(allowed)
    near = difflib.get_close_matches(given, names, n=1, cutoff=0.6)
    hint = f"; did you mean '{near[0]}'?" if near else "."
    return f"unknown {kind} '{given}'{hint} Allowed: {', '.join(names) or '(none)'}"

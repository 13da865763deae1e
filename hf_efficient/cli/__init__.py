"""The command line: one module per sub-command, each with `add(subparsers)`.

Exit codes: 0 done, 1 a bug, 2 bad input (one message on standard error), 130 interrupted.
"""

import argparse
import errno
import importlib
import sys
from collections.abc import Sequence

from hf_efficient import __version__
from hf_efficient.errors import EfficientError

COMMANDS = (
    "run",
    "autotune",
    "profile",
    "compress",
    "export",
    "search",
    "serve",
    "predict",
    "push",
    "monitor",
    "list",
    "show",
    "doctor",
)
"""Each lives in `hf_efficient.cli.<name>_command`."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    options = _parsed(arguments)
    try:
        return options.command(options)
    except EfficientError as error:
        print(f"hf-efficient: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        print(f"hf-efficient: the disk is full ({error}); free some space and continue with --resume", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("hf-efficient: interrupted", file=sys.stderr)
        return 130


def _parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    """With overrides from anywhere on the line: argparse itself takes those before the first option alone."""
    parser = _parser()
    options, left = parser.parse_known_args(arguments)
    overrides = [each for each in left if "=" in each and not each.startswith("-")] if "overrides" in options else []
    if unknown := [each for each in left if each not in overrides]:
        parser.error(f"unrecognized arguments: {' '.join(unknown)}")
    if overrides:
        options.overrides = [*options.overrides, *overrides]
    return options


def _parser() -> argparse.ArgumentParser:
    purpose = "Fine-tune a transformer once; come out with a model that is measured smaller and faster."
    parser = argparse.ArgumentParser(prog="hf-efficient", description=purpose)
    parser.add_argument("--version", action="version", version=__version__)
    subparsers = parser.add_subparsers(required=True, metavar="COMMAND")
    for name in COMMANDS:
        importlib.import_module(f"hf_efficient.cli.{name}_command").add(subparsers)
    return parser

"""The command line: one module per sub-command, each with `add(subparsers)`.

With --json, standard output has lines of JSON and nothing else; the last one of a command that was refused is
``{"error": ..., "kind": ...}``. Exit codes: `EXIT_CODES`.
"""

import argparse
import errno
import importlib
import logging
import sys
from collections.abc import Sequence

import shtab

from hf_efficient import __version__
from hf_efficient.cli.telling import Teller, teller
from hf_efficient.errors import TERMINATED, EfficientError, Preempted

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
PATHS = frozenset({"recipe", "model", "run", "file", "to", "runs", "space", "storage", "follow", "feed", "backtest"})
"""Arguments that a shell completes with names of files."""
DONE, BAD_INPUT, INTERRUPTED = 0, 2, 130
EXIT_CODES = (
    "exit codes: 0 done, 1 a bug, 2 bad input (one message on standard error), 130 interrupted, 143 told to end "
    "(SIGTERM) and saved: continue with --resume"
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    options = _parsed(arguments)
    # Imported with transformers, by peft; it warns of a kernel for 4-bit weights that is in none of its wheels
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    with teller(options.json) as tell:
        try:
            options.command(options, tell)
            return DONE
        except EfficientError as error:
            return _refused(tell, error, str(error))
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            return _refused(tell, error, f"the disk is full ({error}); free some space and continue with --resume")
        except Preempted as error:
            message = f"told to end; saved as {error.checkpoint}; the same command goes on (`run`: with --resume)"
            return _refused(tell, error, message, TERMINATED)
        except KeyboardInterrupt as error:
            return _refused(tell, error, "interrupted", INTERRUPTED)


def _refused(tell: Teller, error: BaseException, message: str, code: int = BAD_INPUT) -> int:
    print(f"hf-efficient: {message}", file=sys.stderr)
    tell({"error": message, "kind": type(error).__name__})
    return code


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
    parser = argparse.ArgumentParser(prog="hf-efficient", description=purpose, epilog=EXIT_CODES)
    parser.add_argument("--version", action="version", version=__version__)
    shtab.add_argument_to(parser, "--print-completion", help="of a shell; put it where that shell looks for them")
    subparsers = parser.add_subparsers(required=True, metavar="COMMAND")
    for name in COMMANDS:
        importlib.import_module(f"hf_efficient.cli.{name}_command").add(subparsers)
    for each in subparsers.choices.values():
        each.add_argument("--json", action="store_true", help="print the result as JSON, and nothing else")
        for action in each._actions:
            if action.dest in PATHS:
                action.complete = shtab.FILE  # type: ignore[attr-defined]
    return parser

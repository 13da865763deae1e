"""`hf-efficient autotune`: the fastest way to train a recipe's first stage on this machine."""

import argparse
from typing import Any

from hf_efficient.cli.telling import Teller


def add(subparsers: Any) -> None:
    parser = subparsers.add_parser("autotune", help="find the fastest way to train a recipe on this machine")
    parser.add_argument("recipe", help="name of a bundled recipe (see `list`) or path of a YAML file")
    parser.add_argument("overrides", nargs="*", metavar="key.key=value", help="e.g. data.train=train.csv")
    parser.add_argument("--to", default="autotune", help="folder for table, picture and JSON (default: autotune)")
    parser.set_defaults(command=command)


def command(options: argparse.Namespace, tell: Teller) -> None:
    from hf_efficient.cli.run_command import quiet_libraries

    quiet_libraries()
    from dataclasses import asdict
    from pathlib import Path

    from rich.console import Console

    from hf_efficient.files import refuse_other_contents
    from hf_efficient.run import autotune

    folder = Path(options.to)
    refuse_other_contents(folder, "autotune.json")
    with Console(stderr=True).status("autotune"):
        tuning = autotune(options.recipe, options.overrides, folder=folder)
    if tuning is not None:
        where = f"table   {folder / 'autotune.md'}\npicture {folder / 'autotune.png'}"
        tell({"folder": folder, **asdict(tuning)}, tuning, where)

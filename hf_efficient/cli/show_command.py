"""`hf-efficient show`: the text of a recipe."""

import argparse
from typing import Any


def add(subparsers: Any) -> None:
    parser = subparsers.add_parser("show", help="print a recipe")
    parser.add_argument("recipe", help="name of a bundled recipe or path of a YAML file")
    parser.set_defaults(command=command)


def command(options: argparse.Namespace) -> int:
    from hf_efficient.recipe import source

    print(source(options.recipe), end="")
    return 0

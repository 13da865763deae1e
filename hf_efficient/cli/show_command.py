"""`hf-efficient show`: the text of a recipe."""

import argparse
from typing import Any

from hf_efficient.cli.telling import Teller


def add(subparsers: Any) -> None:
    parser = subparsers.add_parser("show", help="print a recipe")
    parser.add_argument("recipe", help="name of a bundled recipe or path of a YAML file")
    parser.set_defaults(command=command)


def command(options: argparse.Namespace, tell: Teller) -> None:
    import yaml

    from hf_efficient.recipe import source

    text = source(options.recipe)
    tell(yaml.safe_load(text), text.removesuffix("\n"))

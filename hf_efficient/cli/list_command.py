"""`hf-efficient list`: bundled recipes, tasks, optimizations and apps."""

import argparse
import re
from typing import Any

from hf_efficient.cli.telling import Teller, tables


def add(subparsers: Any) -> None:
    parser = subparsers.add_parser("list", help="list bundled recipes, tasks, optimizations and apps")
    parser.set_defaults(command=command)


def command(options: argparse.Namespace, tell: Teller) -> None:
    from hf_efficient.app import APPS, get_app
    from hf_efficient.plan import OPTIMIZATIONS, optimization_class
    from hf_efficient.recipe import bundled
    from hf_efficient.task import TASKS, get_task

    optimizations = {name: _summary(optimization_class(name)) for name in OPTIMIZATIONS}
    tasks = {name: _summary(get_task(name)) for name in TASKS}
    apps = {name: _summary(get_app(name)) for name in APPS}
    found = {"Recipes": bundled(), "Tasks": tasks, "Optimizations": optimizations, "Apps": apps}
    tell(found, *tables(found))


def _summary(cls: type) -> str:
    """The first sentence of a docstring."""
    paragraph = " ".join((cls.__doc__ or "").strip().split("\n\n")[0].split())
    return re.split(r"(?<=\.)\s(?=[A-Z])", paragraph)[0]

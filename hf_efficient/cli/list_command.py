"""`hf-efficient list`: bundled recipes, tasks, optimizations and apps."""

import argparse
from typing import Any


def add(subparsers: Any) -> None:
    parser = subparsers.add_parser("list", help="list bundled recipes, tasks, optimizations and apps")
    parser.set_defaults(command=command)


def command(options: argparse.Namespace) -> int:
    from rich.console import Console
    from rich.table import Table

    from hf_efficient.app import APPS, get_app
    from hf_efficient.plan import OPTIMIZATIONS, optimization_class
    from hf_efficient.recipe import bundled
    from hf_efficient.task import TASKS, get_task

    optimizations = {name: _summary(optimization_class(name)) for name in OPTIMIZATIONS}
    tasks = {name: _summary(get_task(name)) for name in TASKS}
    apps = {name: _summary(get_app(name)) for name in APPS}
    found = {"Recipes": bundled(), "Tasks": tasks, "Optimizations": optimizations, "Apps": apps}
    for title, rows in found.items():
        table = Table(title=title, title_justify="left", show_header=False, box=None, padding=(0, 2))
        for name, purpose in rows.items():
            table.add_row(name, purpose)
        Console().print(table)
    return 0


def _summary(cls: type) -> str:
    return (cls.__doc__ or "").strip().splitlines()[0]

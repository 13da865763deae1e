"""`hf-efficient search`: the best recipe within a budget of trials."""

import argparse
from pathlib import Path
from typing import Any

from hf_efficient.cli.telling import Teller


def add(subparsers: Any) -> None:
    parser = subparsers.add_parser("search", help="find the best values of a recipe, by accuracy and measured speed")
    parser.add_argument("recipe", help="name of a bundled recipe, or path of a YAML file, with a search: block")
    parser.add_argument("overrides", nargs="*", metavar="key.key=value", help="as for `run`")
    parser.add_argument(
        "--trials", type=int, help="finished trials in all, earlier calls counted; none: look at what is there"
    )
    parser.add_argument(
        "--space", metavar="FILE", help="YAML file with a search: block's keys, in place of the recipe's"
    )
    parser.add_argument(
        "--objective", action="append", metavar="GOAL", help="e.g. accuracy or 'min latency_ms'; may repeat"
    )
    parser.add_argument("--constraint", action="append", metavar="BOUND", help="e.g. 'accuracy >= 0.91'; may repeat")
    parser.add_argument(
        "--launch", metavar="COMMAND", help="trains each stage, e.g. 'accelerate launch --num_processes 2'"
    )
    parser.add_argument("--sampler", help="auto, tpe, gp, cmaes, nsga2, nsga3, random or grid")
    parser.add_argument(
        "--pick", metavar="RULE", help="e.g. 'accuracy >= 0.92, min latency_ms'; picks anew at any time"
    )
    parser.add_argument("--workers", type=int, default=1, help="processes on this machine (default: 1)")
    parser.add_argument("--storage", metavar="URL", help="of Optuna, or a file ending in .log (default: SQLite)")
    parser.add_argument("--name", default="search", help="of the search's folder (default: search)")
    parser.add_argument("--runs", default="runs", help="folder of run folders (default: runs)")
    parser.add_argument("--no-finish", action="store_true", help="do not make a finished run of the chosen trial")
    parser.set_defaults(command=command)


def command(options: argparse.Namespace, tell: Teller) -> None:
    from hf_efficient.cli.run_command import quiet_libraries

    quiet_libraries()
    from hf_efficient.search import search

    result = search(
        options.recipe,
        [*options.overrides, *_settings(options)],
        trials=options.trials,
        runs=options.runs,
        name=options.name,
        storage=options.storage,
        workers=options.workers,
        pick=options.pick,
        finish=not options.no_finish,
        say=lambda line: print(line, flush=True),
    )
    lines = [f"\n{(result.folder / 'study.md').read_text(encoding='utf-8')}"]
    lines += [] if result.recipe is None else [f"recipe   {result.recipe}"]
    lines += [] if result.run is None else [f"model    {result.run / 'final'}\nreport   {result.run / 'report.md'}"]
    found = {"folder": result.folder, "recipe": result.recipe, "run": result.run, **result.found.plain()}
    tell(found, *lines, f"pictures {result.folder}")


def _settings(options: argparse.Namespace) -> list[str]:
    """What stands on the command line, as overrides of the recipe's search: block."""
    import json

    found = []
    if options.space is not None:
        found.append(f"search={json.dumps(_block(Path(options.space)))}")
    for key, value in (
        ("objectives", options.objective),
        ("constraints", options.constraint),
        ("sampler", options.sampler),
        ("launch", options.launch),
    ):
        if value is not None:
            found.append(f"search.{key}={json.dumps(value)}")
    return found


def _block(path: Path) -> Any:
    import yaml

    from hf_efficient.errors import ConfigError

    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"--space: {path} cannot be read ({' '.join(str(error).split())[:150]})") from None

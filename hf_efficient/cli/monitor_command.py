"""`hf-efficient monitor`: watch a stream of headlines with a finished run, or tell what would have been."""

import argparse
import signal
from pathlib import Path
from typing import Any

from hf_efficient.cli.telling import Teller

APP = "finance-monitor"


def add(subparsers: Any) -> None:
    parser = subparsers.add_parser("monitor", help="watch the sentiment of a stream, with alarms on surges")
    parser.add_argument("run", help="folder of a run, or of a recipe's runs (the newest finished one is taken)")
    parser.add_argument("overrides", nargs="*", metavar="app.key=value", help="settings of the app")
    parser.add_argument("--stdin", action="store_true", help="read lines of JSON from standard input")
    parser.add_argument("--follow", action="append", default=[], metavar="FILE", help="a file of JSON lines that grows")
    parser.add_argument("--feed", action="append", default=[], metavar="URL_OR_FILE", help="an RSS or Atom feed")
    parser.add_argument("--feed-seconds", type=float, default=300, help="between two looks at a feed (default: 300)")
    parser.add_argument("--once", action="store_true", help="read what is there, then stop")
    parser.add_argument("--print", action="store_true", help="print each item as a line of JSON when it is kept")
    parser.add_argument("--backtest", metavar="FILE", help="a dated file: what would have been shown, in a folder")
    parser.add_argument("--text-column", default="text", help="of the dated file (default: text)")
    parser.add_argument("--time-column", help="of the dated file (default: time, date or the like)")
    parser.add_argument("--to", help="folder of the back-test (default: backtest/<file's name> in the run's folder)")
    parser.add_argument("--threads", type=int, help="CPU threads of the model (default: the runtime's choice)")
    parser.set_defaults(command=command)


def command(options: argparse.Namespace, tell: Teller) -> None:
    from hf_efficient.cli.run_command import quiet_libraries

    quiet_libraries()
    import logging

    from hf_efficient.errors import ConfigError

    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(message)s")
    streams = options.stdin or options.follow or options.feed
    if bool(streams) == bool(options.backtest):
        raise ConfigError(
            "give what to read: --stdin, --follow FILE, --feed URL_OR_FILE (several may be given), or --backtest FILE"
        )
    (_backtest if options.backtest else _watch)(options, tell)


def _watch(options: argparse.Namespace, tell: Teller) -> None:
    import json
    import sys

    from hf_efficient.tasks.apps.finance_monitor import shown, watch
    from hf_efficient.tasks.apps.stream import Feed, Followed, Lines, Source

    sources: list[Source] = [Followed(file, whole=options.once) for file in options.follow]
    sources += [Feed(where, options.feed_seconds, options.once) for where in options.feed]
    if options.stdin:
        sources.append(Lines(sys.stdin.buffer))

    def kept(marked: Any) -> None:
        if options.print:
            values = shown(marked)
            tell(values, json.dumps(values, ensure_ascii=False))

    stopped = []
    before = {
        number: signal.signal(number, lambda *_: stopped.append(True)) for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        with _open(options, []) as app:
            watch(app, sources, kept, lambda: bool(stopped))
            count, where = app.store.count(), app.store.shown_url
        print(f"{count:,} items kept in {where}", file=sys.stderr)
        tell({"items": count, "database": where})
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _backtest(options: argparse.Namespace, tell: Teller) -> None:
    from rich.progress import Progress

    from hf_efficient.files import refuse_other_contents
    from hf_efficient.predictor import newest_finished
    from hf_efficient.tasks.apps.backtest import DATABASE, RESULT, backtest, dated_items, save, told
    from hf_efficient.tasks.apps.monitor_store import sqlite_url

    file = Path(options.backtest)
    items, left_out = dated_items(file, options.text_column, options.time_column)
    folder = Path(options.to or newest_finished(options.run) / "backtest" / file.stem)
    refuse_other_contents(folder, RESULT)
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob(f"{DATABASE}*"):
        old.unlink()
    with _open(options, [f"app.database={sqlite_url(folder / DATABASE)}", "app.webhook=null"]) as app:
        with Progress(transient=True) as progress:
            bar = progress.add_task("back-test", total=len(items))
            result = backtest(app, items, lambda count: progress.advance(bar, count))
        result = {"file": str(file), "left_out": left_out, **result}
        save(app, result, folder)
    lines = [f"{left_out} rows without a text or a date were left out"] if left_out else []
    tell({**result, "folder": folder}, told(result), *lines, f"\nback-test {folder / RESULT}")


def _open(options: argparse.Namespace, overrides: list[str]) -> Any:
    """The monitor of the run, started; a run without an app has it with its defaults."""
    from hf_efficient.errors import ConfigError
    from hf_efficient.predictor import newest_finished
    from hf_efficient.recipe import Recipe
    from hf_efficient.service import ServiceSettings, open_app

    run = newest_finished(options.run)
    given = Recipe.load(run / "recipe.yaml").app
    name = [f"app.name={APP}"] if given is None else []
    if given is not None and given.get("name") != APP:
        raise ConfigError(f"{run} is a run with the app '{given.get('name')}'; name one with {APP}, or without an app")
    settings = ServiceSettings(threads=options.threads)
    return open_app(run, settings, [*name, *options.overrides, *overrides])

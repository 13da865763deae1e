"""What commands say: to people as text and tables, to programs as lines of JSON."""

import contextlib
import json
import os
import sys
from collections.abc import Iterator, Mapping
from typing import Any, TextIO

from rich.console import Console
from rich.table import Table


class Teller:
    """Told by a command what came of it.

    Args:
        as_json: a line of JSON for each call; else what is shown to people.
    """

    def __init__(self, as_json: bool = False, stream: TextIO | None = None):
        self.as_json, self._stream = as_json, stream

    def __call__(self, values: Mapping[str, Any], *shown: Any) -> None:
        """
        Args:
            values: plain ones; paths become texts.
            shown: the same for people: texts, and what rich prints.
        """
        if self.as_json:
            print(json.dumps(values, ensure_ascii=False, default=str), file=self._stream, flush=True)
            return
        for each in shown:
            if hasattr(each, "__rich_console__"):
                Console(file=self._stream).print(each)
            else:
                print(each, file=self._stream, flush=True)


def tables(sections: Mapping[str, Mapping[str, str]]) -> list[Table]:
    """A table of names and what there is to say of them, for each title."""
    made = []
    for title, rows in sections.items():
        table = Table(title=title, title_justify="left", show_header=False, box=None, padding=(0, 2))
        for name, value in rows.items():
            table.add_row(name, value)
        made.append(table)
    return made


@contextlib.contextmanager
def teller(as_json: bool) -> Iterator[Teller]:
    """With ``as_json``, what anything else prints, child processes too, goes to standard error."""
    if not as_json:
        yield Teller()
        return
    sys.stdout.flush()
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as real:
        # A test, or a notebook, puts something else in the place of standard output
        stream = real if _is_real(sys.stdout) else sys.stdout
        os.dup2(2, 1)
        try:
            with contextlib.redirect_stdout(sys.stderr):
                yield Teller(True, stream)
        finally:
            os.dup2(real.fileno(), 1)


def _is_real(stream: TextIO) -> bool:
    try:
        return stream.fileno() == 1
    except (OSError, ValueError):
        return False

"""`hf-efficient predict`: a finished run over a whole file."""

import argparse
import contextlib
from typing import Any

from hf_efficient.cli.model_and_data import add_run
from hf_efficient.cli.telling import Teller


def add(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "predict", help="answer every row of a file with a finished run; goes on where it stopped"
    )
    add_run(parser)
    parser.add_argument("file", help="csv, tsv, json, jsonl, parquet, or txt with a text on each line")
    parser.add_argument("--to", help="JSON lines to write (default: <file>.predicted.jsonl beside it)")
    parser.add_argument("--text", help="column of the text (default: the columns that the run was trained on)")
    parser.add_argument("--scores", action="store_true", help="write the probabilities of all classes")
    parser.add_argument("--batch-size", type=int, default=32, help="rows computed at once (default: 32)")
    parser.set_defaults(command=command)


def command(options: argparse.Namespace, tell: Teller) -> None:
    from hf_efficient.cli.run_command import quiet_libraries

    quiet_libraries()
    from rich.progress import Progress, TextColumn, TimeElapsedColumn

    from hf_efficient.predict import output_of, predict
    from hf_efficient.predictor import Predictor, newest_finished

    predictor = Predictor.load(newest_finished(options.run), model=options.model, threads=options.threads)
    to = options.to or output_of(options.file)
    columns = (
        *Progress.get_default_columns(),
        TimeElapsedColumn(),
        TextColumn("{task.completed} of {task.total} rows"),
    )
    bar = Progress(*columns)
    rows = bar.add_task("predict", total=None)
    with contextlib.ExitStack() as shown:

        def progress(done: int, count: int) -> None:
            if not bar.live.is_started:  # not before the file is known to be good
                shown.enter_context(bar)
            bar.update(rows, completed=done, total=count)

        found = predict(
            predictor,
            options.file,
            to,
            text=options.text,
            scores=options.scores,
            batch_size=options.batch_size,
            progress=progress,
        )
    tell({"file": to, "rows_before": found}, f"{to}" + (f" ({found} rows were there already)" if found else ""))

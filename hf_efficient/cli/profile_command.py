"""`hf-efficient profile`: where a model's time and bytes go here, and what each technique can give at most."""

import argparse
from typing import Any

from hf_efficient.cli.telling import Teller

EXAMPLES = 256


def add(subparsers: Any) -> None:
    parser = subparsers.add_parser("profile", help="where a model's time and bytes go, and what could be gained")
    parser.add_argument("model", help="folder of a model with its processor, e.g. runs/.../final")
    parser.add_argument("data", nargs="+", metavar="data.key=value", help="real inputs, e.g. data.test=test.csv")
    parser.add_argument("--batch-size", type=int, default=32, help="beside single examples (default: 32)")
    parser.add_argument("--to", help="folder to write (default: `profile` beside the model's folder)")
    parser.add_argument("--task", help="e.g. text-classification (default: as the model's class tells)")
    parser.set_defaults(command=command)


def command(options: argparse.Namespace, tell: Teller) -> None:
    from hf_efficient.cli.run_command import quiet_libraries

    quiet_libraries()
    from pathlib import Path

    from rich.console import Console

    from hf_efficient.cli.model_and_data import judged_split, prepare
    from hf_efficient.files import refuse_other_contents
    from hf_efficient.profiling import PROFILE, profile

    folder = Path(options.to or Path(options.model).absolute().parent / "profile")
    refuse_other_contents(folder, PROFILE)
    task, model, splits = prepare(options.model, options.task, options.data)
    _, rows = judged_split(splits)
    drawn = task.encode(rows.shuffle(0).select(range(min(EXAMPLES, len(rows)))))
    with Console(stderr=True).status("profile") as status:
        made = profile(
            model,
            list(drawn),
            task.collator(),
            options.batch_size,
            tell=lambda step: status.update(f"profile: {step}"),
        )
    made.save(folder)
    tell({"folder": folder, **made.to_dict()}, made, f"\nprofile {folder / 'profile.md'}")

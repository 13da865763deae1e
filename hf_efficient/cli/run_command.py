"""`hf-efficient run`: run a recipe."""

import argparse
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hf_efficient.job import RunResult


def add(subparsers: Any) -> None:
    parser = subparsers.add_parser("run", help="run a recipe: train, compress, measure")
    parser.add_argument("recipe", help="name of a bundled recipe (see `list`) or path of a YAML file")
    parser.add_argument("overrides", nargs="*", metavar="key.key=value", help="e.g. data.train=train.csv seed=1")
    parser.add_argument("--runs", default="runs", help="folder that holds the run folders (default: runs)")
    parser.add_argument("--resume", action="store_true", help="continue the newest unfinished run of this recipe")
    parser.set_defaults(command=command)


def command(options: argparse.Namespace) -> int:
    quiet_libraries()
    from hf_efficient.run import run

    result = run(options.recipe, options.overrides, runs=options.runs, resume=options.resume)
    if result is None:  # another process prints
        return 0
    print(result.report)
    print(f"\nmodel   {result.model}\nreport  {result.folder / 'report.md'}\n        {result.folder / 'report.png'}")
    if result.exported is not None:
        print(f"export  {result.exported.folder}")
        print_answer(result)
    return 0


def print_answer(result: "RunResult") -> None:
    """What the export says to one real question."""
    answers = result.answer()
    if not answers:
        return
    print(f"\nquestion  {result.sample}")
    for answer in answers:
        label = answer.get("label") or answer.get("entity_group") or answer.get("entity")
        print(f"answer    {label} ({answer['score']:.3f})")


def quiet_libraries() -> None:
    """Leave the terminal to training progress and our tables."""
    import logging

    import datasets
    import transformers

    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()  # of weight loading; training shows its own
    datasets.disable_progress_bars()
    datasets.logging.set_verbosity_error()

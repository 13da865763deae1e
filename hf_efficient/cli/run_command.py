"""`hf-efficient run`: run a recipe."""

import argparse
from typing import Any

from hf_efficient.cli.telling import Teller


def add(subparsers: Any) -> None:
    parser = subparsers.add_parser("run", help="run a recipe: train, compress, measure")
    parser.add_argument("recipe", help="name of a bundled recipe (see `list`) or path of a YAML file")
    parser.add_argument("overrides", nargs="*", metavar="key.key=value", help="e.g. data.train=train.csv seed=1")
    parser.add_argument("--runs", default="runs", help="folder that holds the run folders (default: runs)")
    parser.add_argument(
        "--resume",
        nargs="?",
        const="newest",
        choices=("newest", "auto"),
        help="continue the newest unfinished run of this recipe; with 'auto', start one where there is none",
    )
    parser.set_defaults(command=command)


def command(options: argparse.Namespace, tell: Teller) -> None:
    quiet_libraries()
    from hf_efficient.run import run

    result = run(
        options.recipe,
        options.overrides,
        runs=options.runs,
        resume=options.resume or False,
        say=lambda line: print(line, flush=True),
    )
    if result is None:  # another process prints
        return
    exported, answers = result.exported, result.answer()
    values = {
        "folder": result.folder,
        "model": result.model,
        "exported": None if exported is None else exported.folder,
        "report": result.report.to_dict(),
        "question": result.sample if answers else None,
        "answers": answers,
    }
    lines = [f"\nmodel   {result.model}", f"report  {result.folder / 'report.md'}"]
    lines += [f"        {result.folder / 'report.png'}"]
    lines += [] if exported is None else [f"export  {exported.folder}"]
    tell(values, result.report, *lines, *told_answers(result.sample, answers))


def told_answers(question: Any, answers: list[dict[str, Any]]) -> list[str]:
    """What the export says to one real question."""
    lines = [f"\nquestion  {question}"] if answers else []
    for answer in answers:
        label = answer.get("label") or answer.get("entity_group") or answer.get("entity")
        lines.append(f"answer    {label} ({answer['score']:.3f})")
    return lines


def quiet_libraries() -> None:
    """Leave the terminal to training progress and our tables."""
    import datasets
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()  # of weight loading; training shows its own
    datasets.disable_progress_bars()
    datasets.logging.set_verbosity_error()

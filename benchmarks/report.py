"""Write docs/benchmarks.md from the results of full runs: `python -m benchmarks.report`."""

import importlib
import json
from pathlib import Path
from typing import Any

from benchmarks.harness import FOLDER, RESULTS, Claim
from hf_efficient.files import write_text

PAGE = FOLDER.parent / "docs" / "benchmarks.md"
HEAD = """# Benchmarks

Written by `python -m benchmarks.report` from `benchmarks/results/*.json`, which full runs leave; `make bench` runs
all. `python -m benchmarks.<name> --quick` does the same on less work. Speeds are ratios against a
peer in the same run, on the machine named; yours will differ. Values are medians over the repeats, with the least and
the greatest.
"""


def page(folder: Path = RESULTS) -> str:
    """The document, one section for each result file."""
    parts = [HEAD]
    for path in sorted(folder.glob("*.json")):
        parts.append(section(path.stem, json.loads(path.read_text(encoding="utf-8"))))
    return "\n".join(parts)


def section(name: str, result: dict[str, Any]) -> str:
    """What the benchmark does in the words of its module, its claims, and the machine."""
    what = (importlib.import_module(f"benchmarks.{name}").__doc__ or "").strip()
    claims = [Claim(**{**claim, "spread": tuple(claim["spread"])}) for claim in result["claims"]]
    machine, versions, notes = result["machine"], result["versions"], result.get("notes", [])
    lines = [
        f"## {name}",
        "",
        *what.splitlines(),
        "",
        "| claim | value | least, greatest | repeats | target | | unit |",
        "|:---|---:|---:|---:|---:|:---|:---|",
        *(_row(claim) for claim in claims),
        "",
        *(f"- {note}" for note in notes),
        *([""] if notes else []),  # else the machine were part of the last note
        f"Machine: {machine['processor']}, {machine['logical_cores']} cores, {machine['memory_gb']} GB"
        f"{', ' + machine['accelerator'] if machine['accelerator'] else ''}; Python {machine['python']}, "
        f"torch {machine['torch']}, transformers {machine['transformers']}, hf_efficient {versions['hf_efficient']}.",
        "",
    ]
    return "\n".join(lines)


def _row(claim: Claim) -> str:
    verdict = {None: "", True: "reached", False: "**missed**"}[claim.reached]
    spread = f"{claim.spread[0]:g}, {claim.spread[1]:g}"
    return (
        f"| {claim.name} | {claim.value:g} | {spread} | {claim.repeats} | {claim.target} | {verdict} | {claim.unit} |"
    )


if __name__ == "__main__":
    write_text(PAGE, page())
    print(f"written to {PAGE.relative_to(FOLDER.parent)}")

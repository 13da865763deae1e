"""What earlier searches found best, as first trials of a new one."""

import json
import logging
from pathlib import Path
from typing import Any

from hf_efficient.search.goals import Goals
from hf_efficient.search.space import Space

logger = logging.getLogger(__name__)

MOST = 3
STUDY = "study.json"


def earlier(folder: Path, space: Space, goals: Goals) -> list[tuple[dict[str, Any], str]]:
    """Parameters of Optuna of up to `MOST` trials, each with the folder of the search that it is from.

    Taken are trials of the fronts of searches beside ``folder`` and in the folders of other recipes, newest first, that
    searched every key of ``space`` and had values inside it.

    Args:
        folder: of the new search, ``<runs>/<recipe>/<name>``.
    """
    files = [file for file in folder.parent.parent.glob(f"*/*/{STUDY}") if file.parent != folder]
    found: list[tuple[dict[str, Any], str]] = []
    for file in sorted(files, key=lambda file: file.stat().st_mtime, reverse=True):
        try:
            told = json.loads(file.read_text(encoding="utf-8"))
            best = [trial for trial in told["trials"] if trial["number"] in told["front"] and not trial["as_given"]]
            if told["objectives"] != list(map(str, goals.objectives)):
                continue
        except (OSError, ValueError, KeyError, TypeError) as error:
            logger.info("%s is no search to start from: %s", file, error)
            continue
        for trial in best:
            parameters = space.parameters(trial["values"])
            if set(parameters) == set(space.dimensions) and parameters not in [each for each, _ in found]:
                found.append((parameters, f"{file.parent.parent.name}/{file.parent.name}"))
    return found[:MOST]

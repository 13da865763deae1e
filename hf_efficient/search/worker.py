"""A worker of a search, as a process: `python -m hf_efficient.search.worker FOLDER TRIALS [STORAGE]`."""

import sys
from pathlib import Path

from hf_efficient.errors import EfficientError
from hf_efficient.recipe import Recipe
from hf_efficient.search.searching import RECIPE
from hf_efficient.search.study import Search


def main(folder: str, trials: str, storage: str | None = None) -> int:
    try:
        recipe = Recipe.load(Path(folder) / RECIPE)
        one = Search(recipe, Path(folder), storage)
        one.work(one.open(int(trials), parallel=True), int(trials), lambda line: print(line, flush=True))
    except EfficientError as error:
        print(f"hf-efficient: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))

"""What trainings that begin alike share: what an optimization decided before it trained, and what a teacher said.

Trials that only learn in another way, and a trial's rungs, cut a model to the same shape; and all that learn from one
teacher ask it about the same examples.
"""

import contextlib
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hf_efficient.example_cache import FOLDER as EXAMPLE_CACHE
from hf_efficient.files import atomic_path
from hf_efficient.optimization import DECISIONS, GIVEN_DECISIONS, overrides
from hf_efficient.plan import build_optimizations
from hf_efficient.recipe import Stage
from hf_efficient.search.digest import digest

SHARED = "_shared"
LEARNING = frozenset(
    {
        "learning_rate",
        "lr_scheduler_kwargs",
        "lr_scheduler_type",
        "max_grad_norm",
        "max_steps",
        "num_train_epochs",
        "warmup_ratio",
        "warmup_steps",
        "weight_decay",
    }
)
"""Training arguments that take hold only once a model learns."""


class Beginnings:
    """Under ``folder``/_shared."""

    def __init__(self, folder: Path):
        self.folder = folder / SHARED

    def give(self, stage: Path, decisions: Mapping[str, str]) -> None:
        """Put into the folder of a stage that is to be trained what is known.

        Args:
            decisions: `decisions`.
        """
        stage.mkdir(parents=True, exist_ok=True)
        for name, key in decisions.items():
            known = self._decision(key)
            if known.is_file():
                (stage / GIVEN_DECISIONS).mkdir(exist_ok=True)
                shutil.copyfile(known, stage / GIVEN_DECISIONS / f"{name}.json")
        cache = stage / EXAMPLE_CACHE
        if not cache.is_symlink() and not cache.exists():
            (self.folder / EXAMPLE_CACHE).mkdir(parents=True, exist_ok=True)
            with contextlib.suppress(OSError):  # where there are no links, each stage has a cache of its own
                cache.symlink_to(Path("..") / SHARED / EXAMPLE_CACHE, target_is_directory=True)

    def take(self, stage: Path, decisions: Mapping[str, str]) -> None:
        """Keep what a stage that was trained decided; nothing stays in its folder that was given to it."""
        for name, key in decisions.items():
            made, known = stage / DECISIONS / f"{name}.json", self._decision(key)
            if made.is_file() and not known.is_file():
                with atomic_path(known) as path:
                    shutil.copyfile(made, path)
        shutil.rmtree(stage / GIVEN_DECISIONS, ignore_errors=True)
        if (stage / EXAMPLE_CACHE).is_symlink():
            (stage / EXAMPLE_CACHE).unlink()

    def _decision(self, key: str) -> Path:
        return self.folder / DECISIONS / f"{key}.json"


def decisions(before: str, name: str, stage: Stage) -> dict[str, str]:
    """Name of each optimization of a stage that decides without regard to how it will learn -> hash of all that counts.

    Args:
        before: hash of all that comes before the stage.
        name: of the stage.
    """
    listed = build_optimizations(stage.optimizations, f"stages.{name}.optimizations")
    training = {key: value for key, value in stage.training.items() if key not in LEARNING}
    found = {}
    for one in listed:
        if one.decides_by_training():
            continue
        # Those that come later see what it decides, and have no part in it, unless they change how anything is computed
        counts: dict[str, Any] = {
            other.name: stage.optimizations[other.name]
            for other in listed
            if other is one or other.order <= one.order or overrides(other, "configure")
        }
        found[one.name] = digest([before, one.name, counts, training])
    return found

"""Stages that were trained once, by what decides what comes of them: trials that share a stage take the same folder."""

import hashlib
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

import pyarrow
from datasets import DatasetDict
from filelock import FileLock

from hf_efficient import __version__
from hf_efficient.files import read_json
from hf_efficient.job import Job, clear_stage
from hf_efficient.outcome import STAGE_FILE
from hf_efficient.phase import FINAL
from hf_efficient.search.beginnings import Beginnings, decisions
from hf_efficient.search.digest import digest
from hf_efficient.search.launched import training

_PACKAGES = ("torch", "transformers", "accelerate", "datasets")


class StageStore:
    """Folders of trained stages under ``folder``, each named by a hash of its recipe up to there.

    A stage depends on the model, the data with its content, the seed, all stages up to itself, and the versions of
    what trains. One worker at a time trains a stage, and one that was killed is gone on with from its checkpoints.

    Args:
        launch: command that a stage is trained by; empty: this process.

    Raises:
        ConfigError: ``launch`` is no command line.
    """

    def __init__(self, folder: Path, launch: str = ""):
        self.folder, self.launch = folder, launch
        self._train = training(launch)
        self._beginnings = Beginnings(folder)
        self._hashed: tuple[Any, str] = (None, "")  # trials share their data, which need not be read for each

    def keys(self, job: Job) -> dict[str, str]:
        """Name of each stage of the job's recipe -> its hash."""
        recipe, common = job.recipe, self._common(job)
        found: dict[str, str] = {}
        before: list[Any] = []
        for name, stage in recipe.stages.items():
            before.append([name, stage.model_dump()])
            found[name] = digest([common, before])
        return found

    def _common(self, job: Job) -> dict[str, Any]:
        """What all stages depend on."""
        recipe = job.recipe
        common = {
            "versions": {"hf_efficient": __version__, **{name: metadata.version(name) for name in _PACKAGES}},
            "recipe": {name: getattr(recipe, name) for name in ("task", "model", "data", "seed")},
            "content": self._content(job.data),
        }
        if self.launch:  # on more processes a step sees more examples
            common["launch"] = self.launch
        return common

    def trained(self, job: Job) -> tuple[dict[str, Path], dict[str, Any]]:
        """The finished stages of the job's recipe, those that lack trained first.

        Returns:
            name of each stage -> its folder; and name -> what its `stage.json` tells.
        """
        folders: dict[str, Path] = {}
        told: dict[str, Any] = {}
        model, before = job.recipe.model, digest(self._common(job))
        for name, key in self.keys(job).items():
            folder = self.folder / key
            earlier = {one: str(path / FINAL) for one, path in folders.items()}
            with self._alone(key):
                known = decisions(before, name, job.recipe.stages[name])
                if not (folder / STAGE_FILE).is_file():
                    self._beginnings.give(folder, known)
                    self._train(job, name, folder, model, earlier)
                clear_stage(folder)  # a worker may have died after the one and before the other
                self._beginnings.take(folder, known)
            folders[name], model, before = folder, str(folder / FINAL), key
            told[name] = read_json(folder / STAGE_FILE)
        return folders, told

    def keep(self, keys: set[str]) -> list[str]:
        """Remove all stages but ``keys``; returns what was removed. Not while others search in the same folder."""
        if not self.folder.is_dir():
            return []
        gone = [path.name for path in sorted(self.folder.iterdir()) if path.is_dir() and path.name not in keys]
        for name in gone:
            shutil.rmtree(self.folder / name)
        for lock in self.folder.glob("*.lock"):
            lock.unlink(missing_ok=True)
        return gone

    def _content(self, data: DatasetDict) -> str:
        if self._hashed[0] is not data:
            self._hashed = data, _hash(data)
        return self._hashed[1]

    @contextmanager
    def _alone(self, key: str) -> Iterator[None]:
        self.folder.mkdir(parents=True, exist_ok=True)
        with FileLock(self.folder / f"{key}.lock"):  # the system lets go of it when its process dies
            yield


def _hash(data: DatasetDict) -> str:
    """Hash of the rows of all splits."""
    said = hashlib.sha256()
    for split, rows in sorted(data.items()):
        said.update(split.encode())
        for batch in rows.with_format("arrow").iter(batch_size=10_000):
            table = batch.replace_schema_metadata(None)
            written = pyarrow.BufferOutputStream()
            with pyarrow.ipc.new_stream(written, table.schema) as stream:
                stream.write_table(table)
            said.update(written.getvalue())
    return said.hexdigest()

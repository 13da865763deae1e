"""Repositories of a model hub on disk: contents by their hash, and for each repository one file that says the rest.

A repository's file is replaced as a whole, so that a server that is killed and started again has all commits or none
of each.
"""

import hashlib
import json
import os
import tempfile
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

MAIN = "main"
FIRST = {".gitattributes": b"*.bin filter=lfs\n"}


@dataclass
class Commit:
    oid: str
    message: str
    parent: str | None
    files: dict[str, str]
    """Path -> hash of its content."""
    time: float


@dataclass
class Repository:
    """
    Attributes:
        kind: models, datasets or spaces.
        refs: branches, tags and `refs/pr/<number>` -> hash of a commit.
    """

    kind: str
    name: str
    private: bool = False
    commits: dict[str, Commit] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)

    @property
    def owner(self) -> str:
        return self.name.partition("/")[0]

    def at(self, revision: str) -> Commit | None:
        """The commit of a branch, tag or hash."""
        return self.commits.get(self.refs.get(revision) or self.tags.get(revision) or revision)

    def history(self, revision: str) -> list[Commit]:
        """Commits up to ``revision``, newest first."""
        found, commit = [], self.at(revision)
        while commit is not None:
            found.append(commit)
            commit = self.commits.get(commit.parent or "")
        return found


class Store:
    """All repositories, under ``folder``."""

    def __init__(self, folder: Path):
        self.folder = folder
        for name in ("objects", "repositories"):
            (folder / name).mkdir(parents=True, exist_ok=True)

    def repository(self, kind: str, name: str) -> Repository | None:
        path = self._path(kind, name)
        if not path.is_file():
            return None
        values = json.loads(path.read_text())
        commits = {oid: Commit(**commit) for oid, commit in values.pop("commits").items()}
        return Repository(**values, commits=commits)

    def create(self, kind: str, name: str, private: bool) -> Repository:
        made = Repository(kind, name, private)
        self.commit(made, MAIN, "initial commit", FIRST, parent=None)
        return made

    def save(self, repository: Repository) -> None:
        path = self._path(repository.kind, repository.name)
        self._replace(path, json.dumps(asdict(repository)).encode())

    def delete(self, kind: str, name: str) -> None:
        self._path(kind, name).unlink()

    def commit(
        self,
        repository: Repository,
        ref: str,
        message: str,
        changes: Mapping[str, bytes | str | None],
        parent: Commit | None,
    ) -> Commit:
        """A commit on top of ``parent``, to which ``ref`` then points.

        Args:
            changes: path -> content, hash of a content that is there, or None for what goes.
        """
        files = dict(parent.files) if parent else {}
        for path, content in changes.items():
            if content is None:
                files.pop(path, None)
            else:
                files[path] = content if isinstance(content, str) else self.put(content)
        said = json.dumps([message, parent and parent.oid, files, len(repository.commits)])
        oid = hashlib.sha1(said.encode()).hexdigest()
        made = Commit(oid, message, parent and parent.oid, files, time.time())
        repository.commits[oid] = made
        repository.refs[ref] = oid
        self.save(repository)
        return made

    def has(self, digest: str) -> bool:
        return self._object(digest).is_file()

    def get(self, digest: str) -> bytes:
        return self._object(digest).read_bytes()

    def size(self, digest: str) -> int:
        return self._object(digest).stat().st_size

    def put(self, content: bytes) -> str:
        digest = hashlib.sha256(content).hexdigest()
        if not self.has(digest):
            self._replace(self._object(digest), content)
        return digest

    def _object(self, digest: str) -> Path:
        return self.folder / "objects" / digest

    def _path(self, kind: str, name: str) -> Path:
        return self.folder / "repositories" / f"{kind}--{name.replace('/', '--')}.json"

    def _replace(self, path: Path, content: bytes) -> None:
        handle, temporary = tempfile.mkstemp(dir=self.folder)
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        os.replace(temporary, path)


def git_oid(content: bytes) -> str:
    """Hash of a file as git stores it."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def plain(repository: Repository, endpoint: str) -> dict[str, Any]:
    """URL of a repository, as answers name it."""
    prefix = "" if repository.kind == "models" else f"{repository.kind}/"
    return {"url": f"{endpoint}/{prefix}{repository.name}", "name": repository.name, "id": repository.name}

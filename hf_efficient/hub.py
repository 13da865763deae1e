"""What leaves this machine: the folder of a finished model as one commit on the Hub, without what names the machine."""

import contextlib
import fnmatch
import functools
import json
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path, PureWindowsPath
from typing import Any

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, ModelCard, snapshot_download

from hf_efficient.errors import HubError
from hf_efficient.files import write_json, write_text

KEPT_HERE = [
    "training_args.bin",  # a pickle that holds output_dir
    "trainer_state.json",  # best_model_checkpoint is a path
    "optimizer.*",
    "scheduler.*",
    "scaler.pt",
    "rng_state*.pth",
    "optimizations.pt",
    "*tfevents*",  # their names hold the host's
    "checkpoint-*",
    "_*",
    ".*",
]
"""Patterns of files, from the model's folder on, that are of use on the machine that trained only."""

CARD = "README.md"
LOCAL = "(local path)"
_CONFIGS = ("*config*.json", "special_tokens_map.json")
_ADAPTER = "adapter_config.json"
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")


def hub_id(name: str | None) -> str | None:
    """``name`` if it is the id of a model or data set on the Hub; None where it is a path here, or nothing."""
    if not name or not _HUB_ID.fullmatch(name) or os.path.exists(name):
        return None
    return name


def is_local_path(text: str) -> bool:
    """Whether ``text`` as a whole is a path on this machine."""
    windows = PureWindowsPath(text)
    if os.path.isabs(text) or (windows.drive and windows.root) or text.startswith(("~/", "./", "../")):
        return True
    return "/" in text and os.path.exists(text)


def without_paths(value: Any) -> Any:
    """Plain ``value`` with every string that is a path on this machine replaced, however deep."""
    if isinstance(value, dict):
        return {key: without_paths(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [without_paths(inner) for inner in value]
    return LOCAL if isinstance(value, str) and is_local_path(value) else value


def remove_local_names(folder: str | Path) -> None:
    """Take out of a saved model what names the machine: `training_args.bin`, and paths in configs and model card.

    The base of an adapter stays, since the adapter does not load without it; `push_folder` takes that out of its copy.
    """
    folder = Path(folder)
    (folder / "training_args.bin").unlink(missing_ok=True)
    for path in {path for pattern in _CONFIGS for path in folder.rglob(pattern)}:
        if path.name == _ADAPTER:
            continue
        values = json.loads(path.read_text(encoding="utf-8"))
        if (cleaned := _without_names(values)) != values:
            write_json(path, cleaned)
    card = folder / CARD
    if card.is_file() and (text := _clean_card(card)) is not None:
        write_text(card, text)


def _without_names(value: Any) -> Any:
    """A config without entries that are local paths: whoever reads them falls back to what lies beside the config."""
    if isinstance(value, list):
        return [_without_names(inner) for inner in value]
    if not isinstance(value, dict):
        return value
    return {key: _without_names(inner) for key, inner in value.items() if not _names_this_machine(key, inner)}


def _names_this_machine(key: str, value: Any) -> bool:
    if not isinstance(value, str) or not value:
        return False
    return hub_id(value) is None if key.endswith("name_or_path") else is_local_path(value) and os.path.exists(value)


def _clean_card(path: Path) -> str | None:
    """Text of a card, as peft writes it, without a local base model; None where there is nothing to take out."""
    card = ModelCard.load(path, ignore_metadata_errors=True)
    base = card.data.get("base_model")
    if not isinstance(base, str) or hub_id(base):
        return None
    card.data.base_model = None
    card.data.tags = [tag for tag in card.data.get("tags") or [] if base not in tag] or None
    return str(card).replace(base, LOCAL)


def repository(
    name: str, folder: str | Path, *, token: str | None = None, private: bool | None = None, kind: str = "model"
) -> str:
    """Full id of the repository ``name``, which is created if there is none.

    Args:
        folder: what is to be pushed, for the error's text.
        kind: model, or space for one of Gradio.

    Raises:
        HubError: no right to, or the Hub cannot be reached.
    """
    with _explained(folder, name):
        sdk = "gradio" if kind == "space" else None
        made = _api().create_repo(name, token=token, private=private, repo_type=kind, space_sdk=sdk, exist_ok=True)
        return made.repo_id


def branch(repo_id: str, name: str, folder: str | Path, *, token: str | None = None, kind: str = "model") -> None:
    """Make the branch ``name`` where there is none.

    Raises:
        HubError: as for `repository`.
    """
    with _explained(folder, repo_id):
        _api().create_branch(repo_id, branch=name, token=token, repo_type=kind, exist_ok=True)


def push_folder(folder: str | Path, repo_id: str, **options: Any) -> Any:
    """`push_files` of ``folder`` but for `KEPT_HERE`."""
    folder = Path(folder)
    return push_files({name: folder / name for name in pushed_files(folder)}, folder, repo_id, **options)


def push_files(
    files: Mapping[str, Path | bytes],
    folder: str | Path,
    repo_id: str,
    *,
    message: str = "Finished model",
    token: str | None = None,
    revision: str | None = None,
    pull_request: bool = False,
    kind: str = "model",
    blocking: bool = True,
) -> Any:
    """Push ``files`` in one commit, which deletes what stays here (`KEPT_HERE`) where earlier commits left any of it.

    Text is read and weights are hashed here: if a later training replaces them before a push in the background has
    sent them, that push fails instead of sending other weights.

    Args:
        files: path in the repository -> file, or content.
        folder: what is pushed, for an error's text.
        pull_request: ask for the commit to be taken over, rather than change the revision.

    Returns:
        `huggingface_hub.CommitInfo`, or a Future of it when not ``blocking``.

    Raises:
        HubError: it did not arrive as a whole; nothing of it is visible on the Hub then. (Of a push in the background:
            the Future's exception.)
    """
    additions = [
        CommitOperationAdd(name, content if isinstance(content, bytes) else _content(content))
        for name, content in files.items()
    ]
    options: dict[str, Any] = {
        "commit_message": message,
        "token": token,
        "revision": revision,
        "create_pr": pull_request,
        "repo_type": kind,
    }
    push = functools.partial(_commit, folder, repo_id, additions, options)
    return push() if blocking else _api().run_as_future(push)


def pushed_files(folder: str | Path) -> list[str]:
    """Names, from ``folder`` on, of the files that `push_folder` sends.

    Raises:
        HubError: there are none.
    """
    folder = Path(folder)
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    kept = [name for name in names if not _stays(name)]
    if not kept:
        raise HubError(f"nothing to push in {folder}; name the folder of a finished model, e.g. <output_dir>/final")
    return kept


def _stays(name: str) -> bool:
    return any(fnmatch.fnmatch(part, pattern) for part in name.split("/") for pattern in KEPT_HERE)


def _content(path: Path) -> str | bytes:
    if path.name != _ADAPTER:
        return path.read_bytes() if path.suffix in (".json", ".md", ".txt", ".yaml", ".py") else str(path)
    values = json.loads(path.read_text(encoding="utf-8"))
    cleaned = without_paths(values)
    if not hub_id(values.get("base_model_name_or_path")):
        cleaned["base_model_name_or_path"] = None
    return (json.dumps(cleaned, indent=2, ensure_ascii=False) + "\n").encode()


def _commit(folder: str | Path, repo_id: str, additions: list[CommitOperationAdd], options: Mapping[str, Any]) -> Any:
    with _explained(folder, repo_id):
        where = {name: options[name] for name in ("revision", "token", "repo_type")}
        found: Any = _api().repo_info(repo_id, **where)
        there = found.siblings or []
        left = [file.rfilename for file in there if "/" not in file.rfilename and _stays(file.rfilename)]
        deletions = [CommitOperationDelete(name) for name in left if name != ".gitattributes"]
        return _api().create_commit(repo_id, [*additions, *deletions], **options)


def downloaded(repo_id: str, patterns: list[str]) -> Path:
    """Folder of the cache with those files of a model repository that match one of ``patterns``.

    Raises:
        HubError: no such repository, no right to it, or no network.
    """
    try:
        return Path(snapshot_download(repo_id, allow_patterns=patterns, library_name="hf_efficient"))
    except Exception as error:  # as in `_explained`
        words = " ".join(str(error).split()) or type(error).__name__
        raise HubError(
            f"'{repo_id}' cannot be downloaded ({type(error).__name__}: {words}). It is no folder here; check "
            "the name, the token (HF_TOKEN) and the network"
        ) from error


@contextlib.contextmanager
def _explained(folder: str | Path, repo_id: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # HTTP, network, a malformed id or card: the client has a class of error for each
        words = " ".join(str(error).split()) or type(error).__name__
        raise HubError(
            f"{folder} was not pushed to '{repo_id}' ({type(error).__name__}: {words}). The model is complete in that "
            "folder; check the repository's name, the token (HF_TOKEN) and the network, then push again"
        ) from error


def _api() -> HfApi:
    return HfApi(library_name="hf_efficient")

"""What leaves this machine: the folder of a finished model as one commit on the Hub, without what names the machine."""

import contextlib
import fnmatch
import functools
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path, PureWindowsPath
from typing import Any

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, ModelCard

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


def repository(name: str, folder: str | Path, *, token: str | None = None, private: bool | None = None) -> str:
    """Full id of the model repository ``name``, which is created if there is none.

    Args:
        folder: what is to be pushed, for the error's text.

    Raises:
        HubError: no right to, or the Hub cannot be reached.
    """
    with _explained(folder, name):
        return _api().create_repo(name, token=token, private=private, exist_ok=True).repo_id


def push_folder(
    folder: str | Path,
    repo_id: str,
    *,
    message: str = "Finished model",
    token: str | None = None,
    revision: str | None = None,
    blocking: bool = True,
) -> Any:
    """Push ``folder`` but for `KEPT_HERE` in one commit, which deletes such files where earlier commits left any.

    Text is read and weights are hashed here: if a later training replaces them before a push in the background has
    sent them, that push fails instead of sending other weights.

    Returns:
        `huggingface_hub.CommitInfo`, or a Future of it when not ``blocking``.

    Raises:
        HubError: it did not arrive as a whole; nothing of it is visible on the Hub then. (Of a push in the background:
            the Future's exception.)
    """
    folder = Path(folder)
    additions = [
        CommitOperationAdd(path_in_repo=name, path_or_fileobj=_content(folder / name)) for name in pushed_files(folder)
    ]
    push = functools.partial(_commit, folder, repo_id, additions, message, token, revision)
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


def _commit(
    folder: Path,
    repo_id: str,
    additions: list[CommitOperationAdd],
    message: str,
    token: str | None,
    revision: str | None,
) -> Any:
    with _explained(folder, repo_id):
        there = _api().model_info(repo_id, revision=revision, token=token).siblings or []
        left = [file.rfilename for file in there if "/" not in file.rfilename and _stays(file.rfilename)]
        deletions = [CommitOperationDelete(name) for name in left if name != ".gitattributes"]
        return _api().create_commit(
            repo_id, [*additions, *deletions], commit_message=message, token=token, revision=revision
        )


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

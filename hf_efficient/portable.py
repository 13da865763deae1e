"""Finished models that load without hf_efficient: where layers have sizes of their own, by a small file of code."""

import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from transformers import PreTrainedConfig
from transformers.models.auto import modeling_auto

from hf_efficient.checkpoint import manifest_of
from hf_efficient.errors import ConfigError
from hf_efficient.pretrained import class_of

CODE, CLASS, SIZES = "modeling_resized.py", "Resized", "module_sizes"

_SOURCE = '''"""{architecture} whose modules have the sizes in its config, under `{sizes}`. Written by hf_efficient."""

from torch import nn
from transformers import {architecture}
from transformers.pytorch_utils import Conv1D


class {name}({architecture}):
    def __init__(self, config, *args, **kwargs):
        super().__init__(config, *args, **kwargs)
        for path, sizes in config.{sizes}.items():
            module = self.base_model.get_submodule(path)
            if isinstance(module, nn.Linear):
                inputs = sizes.get("in_features", module.in_features)
                outputs = sizes.get("out_features", module.out_features)
                self.base_model.set_submodule(path, nn.Linear(inputs, outputs, module.bias is not None))
            elif isinstance(module, Conv1D):
                self.base_model.set_submodule(path, Conv1D(sizes.get("nf", module.nf), sizes.get("nx", module.nx)))
            else:
                for attribute, size in sizes.items():
                    setattr(module, attribute, size)
'''


def portable_files(folder: Path) -> dict[str, bytes]:
    """Files to put in place of, or beside, those of a finished model; empty where it needs nothing of ours.

    Weights that are packed come out whole; sizes go from our manifest to a class of the repository's own, for
    ``trust_remote_code=True``.

    Raises:
        ConfigError: a class that no auto class knows.
    """
    config = PreTrainedConfig.from_json_file(folder / "config.json")
    manifest = manifest_of(config)
    if manifest is None:
        return {}
    values = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    del values["quantization_config"]
    files = _whole_weights(folder) if manifest.codebooks else {}
    if manifest.modules:
        (architecture,) = config.architectures or [""]
        name = f"{CLASS}{architecture}"
        values["auto_map"] = {_auto_class(architecture): f"{Path(CODE).stem}.{name}"}
        values[SIZES] = manifest.modules
        files[CODE] = _SOURCE.format(architecture=architecture, name=name, sizes=SIZES).encode()
    return {**files, "config.json": (json.dumps(values, indent=2, sort_keys=True) + "\n").encode()}


def _auto_class(architecture: str) -> str:
    """The auto class whose table has ``architecture``."""
    for name, cls in vars(modeling_auto).items():
        mapping: Any = getattr(cls, "_model_mapping", None)
        if mapping is not None and name.startswith("AutoModelFor"):
            for known in mapping._model_mapping.values():
                if architecture in ((known,) if isinstance(known, str) else known):
                    return name
    raise ConfigError(
        f"'{architecture}' is of no auto class of transformers, so that no repository can carry its code; push without "
        "--portable"
    )


def _whole_weights(folder: Path) -> dict[str, bytes]:
    with TemporaryDirectory() as made:
        class_of(folder).from_pretrained(folder).save_pretrained(made)
        return {path.name: path.read_bytes() for path in Path(made).glob("*.safetensors*")}

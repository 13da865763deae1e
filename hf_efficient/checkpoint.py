"""Loading of models whose shapes differ from what their config alone would build.

A changed model carries a manifest in `config.json`::

    "quantization_config": {"quant_method": "hf_efficient", "version": 1,
                            "modules": {"encoder.layer.0.intermediate.dense": {"out_features": 48}, ...}}

transformers looks for a quantizer of that name while loading; ours resizes the named modules on the meta device, stock
code then fills them, and what comes out is an ordinary model. Module paths start at the base model
(`model.base_model`), so that a classifier's checkpoint also loads as its bare encoder. A change that plain config
fields can express (fewer layers) writes no manifest: such a checkpoint needs nothing imported.
"""

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from safetensors import SafetensorError
from torch import nn
from transformers.quantizers import HfQuantizer, register_quantization_config, register_quantizer
from transformers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME, WEIGHTS_NAME
from transformers.utils.quantization_config import QuantizationConfigMixin

from hf_efficient.errors import ConfigError, unknown

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

METHOD = "hf_efficient"
FORMAT_VERSION = 1
STATE_FILE = "optimizations.pt"
STATE_VERSION = 1

Shapes = Mapping[str, Mapping[str, int]]
"""Module path from the base model -> attribute -> size."""


class ManifestConfig(QuantizationConfigMixin):
    """The manifest in `config.json`; `modules` maps module paths to the sizes that differ from the config's."""

    def __init__(self, modules: Shapes | None = None, version: int = FORMAT_VERSION, **unknown_keys: Any):
        self.quant_method = METHOD  # type: ignore[assignment]  # transformers types it as its own enum
        if not isinstance(version, int) or not 1 <= version <= FORMAT_VERSION:
            raise ConfigError(
                f"this checkpoint has manifest format {version!r}; hf_efficient here reads formats 1 to "
                f"{FORMAT_VERSION}. Upgrade with: pip install -U hf-efficient"
            )
        unknown_keys.pop("quant_method", None)
        if unknown_keys:
            raise ConfigError(f"manifest: {unknown('key', next(iter(unknown_keys)), ['modules', 'version'])}")
        self.version = version
        self.modules = {path: dict(sizes) for path, sizes in (modules or {}).items()}


class ManifestQuantizer(HfQuantizer):
    """Gives the modules named in the manifest their sizes before weights are loaded; quantizes nothing itself."""

    requires_calibration = False
    is_trainable = True

    def is_serializable(self) -> bool:
        return True

    def _process_model_before_weight_loading(self, model: "PreTrainedModel", **kwargs: Any) -> None:
        apply_shapes(model, cast(ManifestConfig, self.quantization_config).modules)

    def postprocess_model(self, model: "PreTrainedModel", **kwargs: Any) -> None:
        # From here on an ordinary dense model: flagged as quantized, `.half()`, Trainer and PEFT would refuse it.
        # The manifest stays in the config, which is all that saving it again needs.
        model.config.quantization_config = self.quantization_config
        del model.hf_quantizer
        del model.quantization_method
        model.is_quantized = False  # type: ignore[assignment]


def register_loader() -> None:
    """Make `from_pretrained` understand the manifest. Safe to call again."""
    if METHOD in AUTO_QUANTIZATION_CONFIG_MAPPING:
        return
    register_quantization_config(METHOD)(ManifestConfig)
    register_quantizer(METHOD)(ManifestQuantizer)


def apply_shapes(model: "PreTrainedModel", shapes: Shapes) -> None:
    """Resize modules of ``model`` in place; new weights are uninitialised unless the module keeps its size.

    Raises:
        ConfigError: a path or attribute that the model does not have.
    """
    base = model.base_model
    for path, sizes in shapes.items():
        try:
            module = base.get_submodule(path)
        except AttributeError:
            raise ConfigError(
                f"the manifest names the module '{path}', which {type(model).__name__} does not have; "
                "the checkpoint belongs to another architecture or was edited"
            ) from None
        for attribute in sizes:
            if type(getattr(module, attribute, None)) is not int:  # a bool is no size
                allowed = [name for name, value in vars(module).items() if type(value) is int]
                raise ConfigError(f"manifest, module '{path}': {unknown('size', attribute, allowed)}")
        _resize(base, path, module, sizes)


def _resize(base: nn.Module, path: str, module: nn.Module, sizes: Mapping[str, int]) -> None:
    if not isinstance(module, nn.Linear):
        for attribute, size in sizes.items():  # e.g. num_attention_heads: the forward pass reads it
            setattr(module, attribute, size)
        return
    weight = module.weight
    resized = nn.Linear(
        sizes.get("in_features", module.in_features),
        sizes.get("out_features", module.out_features),
        bias=module.bias is not None,
        device=weight.device,
        dtype=weight.dtype,
    )
    base.set_submodule(path, resized.train(module.training))


def record_shapes(model: "PreTrainedModel", shapes: Shapes) -> None:
    """Write ``shapes`` into the model's manifest, on top of what is there already."""
    known = shapes_of(model.config)
    merged = {path: {**known.get(path, {}), **shapes.get(path, {})} for path in {**known, **shapes}}
    model.config.quantization_config = ManifestConfig(modules=merged)


def forget_shapes(model: "PreTrainedModel", paths: Sequence[str]) -> None:
    """Take modules out of the manifest: the config alone gives them the sizes they have."""
    shapes = {path: sizes for path, sizes in shapes_of(model.config).items() if path not in paths}
    if shapes:
        model.config.quantization_config = ManifestConfig(modules=shapes)
    elif shapes_of(model.config):
        del model.config.quantization_config


def keep_shapes_of_layers(model: "PreTrainedModel", stack: str, kept: Sequence[int]) -> None:
    """Let the manifest follow a cut of the layers at path ``stack``: entry ``kept[i]`` becomes entry i, others go."""
    shapes: dict[str, dict[str, int]] = {}
    for path, sizes in shapes_of(model.config).items():
        if path.startswith(f"{stack}."):
            index, _, rest = path.removeprefix(f"{stack}.").partition(".")
            if int(index) not in kept:
                continue
            path = f"{stack}.{kept.index(int(index))}.{rest}"
        shapes[path] = sizes
    if shapes:
        model.config.quantization_config = ManifestConfig(modules=shapes)
    elif shapes_of(model.config):
        del model.config.quantization_config


def shapes_of(config: "PreTrainedConfig") -> dict[str, dict[str, int]]:
    """Sizes in the manifest of ``config``; empty where it has none."""
    manifest = getattr(config, "quantization_config", None)
    if isinstance(manifest, Mapping) and manifest.get("quant_method") == METHOD:
        manifest = ManifestConfig(**manifest)
    return copy.deepcopy(manifest.modules) if isinstance(manifest, ManifestConfig) else {}


def build(config: "PreTrainedConfig", auto_class: Any) -> "PreTrainedModel":
    """A model with random weights in the shapes of ``config``, which ``auto_class.from_config`` alone would ignore.

    Args:
        auto_class: e.g. `transformers.AutoModelForSequenceClassification`.
    """
    model = auto_class.from_config(config)
    shapes = shapes_of(config)
    apply_shapes(model, shapes)
    for path in shapes:
        module = model.base_model.get_submodule(path)
        if isinstance(module, nn.Linear):  # `from_config` initialised what was there before
            module._is_hf_initialized = False  # type: ignore[assignment]
            model._init_weights(module)
    return model


def load_weights(model: "PreTrainedModel", folder: str | Path) -> None:
    """Fill ``model``, in the shapes it has, with the weights that `save_pretrained` wrote to ``folder``.

    Raises:
        ConfigError: no readable weights there, or of other shapes.
    """
    if not any((Path(folder) / name).is_file() for name in (SAFE_WEIGHTS_NAME, SAFE_WEIGHTS_INDEX_NAME, WEIGHTS_NAME)):
        raise ConfigError(f"no model weights in {folder}; resume from another checkpoint")
    try:
        loaded = type(model).from_pretrained(folder)
        model.load_state_dict(loaded.state_dict())
    except (OSError, RuntimeError, SafetensorError) as error:
        raise ConfigError(f"the weights in {folder} do not fit or cannot be read: {error}") from error


def save_state(folder: str | Path, phase: str, states: Mapping[str, Any]) -> None:
    """Write what the optimizations need to resume (`optimizations.pt`) into a checkpoint folder."""
    from hf_efficient.files import atomic_path  # only needed while training

    with atomic_path(Path(folder) / STATE_FILE) as path:
        torch.save({"version": STATE_VERSION, "phase": phase, "optimizations": dict(states)}, path)


def load_state(folder: str | Path) -> dict[str, Any] | None:
    """Read `optimizations.pt`: ``{"version", "phase", "optimizations"}``; None where the folder has none.

    Raises:
        ConfigError: unreadable, or of a newer version.
    """
    path = Path(folder) / STATE_FILE
    if not path.is_file():
        return None
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        version = state["version"]
    except Exception as error:  # torch raises anything from EOFError to UnpicklingError on damaged files
        raise ConfigError(
            f"cannot read {path} ({type(error).__name__}: {error}); resume from an earlier checkpoint"
        ) from error
    if version != STATE_VERSION:
        raise ConfigError(f"{path} has version {version!r}, this hf_efficient reads {STATE_VERSION}; upgrade it")
    return state

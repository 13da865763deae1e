"""Loading of models whose shapes differ from what their config alone would build.

A changed model carries a manifest in `config.json`::

    "quantization_config": {"quant_method": "hf_efficient", "version": 1,
                            "modules": {"encoder.layer.0.intermediate.dense": {"out_features": 48}, ...}}

transformers looks for a quantizer of that name while loading; ours resizes the named modules on the meta device, stock
code then fills them, and what comes out is an ordinary model. Module paths start at the base model
(`model.base_model`), so that a classifier's checkpoint also loads as its bare encoder. A change that plain config
fields can express (fewer layers) writes no manifest: such a checkpoint needs nothing imported.

Tensors that hold few values may be stored as indices (`pack_weights`): under their own names, packed, with the values
beside them under `<name>.codebook`. The manifest then maps these names, as they are in the file, to the bits of an
index::

    "codebooks": {"bert.encoder.layer.0.intermediate.dense.weight": 4, ...}

They are expanded while they load. A model in memory never claims codebooks: saved again, its weights are whole.
"""

import copy
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import nn
from transformers.core_model_loading import ConversionOps, WeightConverter
from transformers.quantizers import HfQuantizer, register_quantization_config, register_quantizer
from transformers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME, WEIGHTS_NAME
from transformers.utils.quantization_config import QuantizationConfigMixin

from hf_efficient.errors import ConfigError, unknown
from hf_efficient.functional.cluster import BITS, codebook_of, packed_bytes, unpack
from hf_efficient.functional.structured import Projection, resized, size_names

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

METHOD = "hf_efficient"
FORMAT_VERSION = 1
STATE_FILE = "optimizations.pt"
STATE_VERSION = 1
CODEBOOK = ".codebook"
"""After the name of a packed tensor: the values that it has."""

Shapes = Mapping[str, Mapping[str, int]]
"""Module path from the base model -> attribute -> size."""


class ManifestConfig(QuantizationConfigMixin):
    """The manifest in `config.json`.

    Attributes:
        modules: module paths -> the sizes that differ from the config's.
        codebooks: names of packed tensors in the file -> bits of an index.
    """

    codebooks: Mapping[str, int] = {}

    def __init__(
        self,
        modules: Shapes | None = None,
        version: int = FORMAT_VERSION,
        codebooks: Mapping[str, int] | None = None,
        **unknown_keys: Any,
    ):
        self.quant_method = METHOD  # type: ignore[assignment]  # transformers types it as its own enum
        if not isinstance(version, int) or not 1 <= version <= FORMAT_VERSION:
            raise ConfigError(
                f"this checkpoint has manifest format {version!r}; hf_efficient here reads formats 1 to "
                f"{FORMAT_VERSION}. Upgrade with: pip install -U hf-efficient"
            )
        unknown_keys.pop("quant_method", None)
        if unknown_keys:
            allowed = ["modules", "codebooks", "version"]
            raise ConfigError(f"manifest: {unknown('key', next(iter(unknown_keys)), allowed)}")
        self.version = version
        self.modules = {path: dict(sizes) for path, sizes in (modules or {}).items()}
        if codebooks:  # else there is no attribute, and nothing about them is written
            self.codebooks = dict(codebooks)


class ManifestQuantizer(HfQuantizer):
    """Gives the modules named in the manifest their sizes before weights are loaded, and expands what is packed;
    quantizes nothing itself."""

    requires_calibration = False
    is_trainable = True

    def is_serializable(self) -> bool:
        return True

    def _process_model_before_weight_loading(
        self, model: "PreTrainedModel", checkpoint_files: Sequence[str] | None = None, **kwargs: Any
    ) -> None:
        manifest = cast(ManifestConfig, self.quantization_config)
        if manifest.codebooks and checkpoint_files:
            _check_codebooks(checkpoint_files, manifest.codebooks)
        apply_shapes(model, manifest.modules)

    def get_weight_conversions(self) -> list[Any]:
        return [_expansion()] if cast(ManifestConfig, self.quantization_config).codebooks else []

    def postprocess_model(self, model: "PreTrainedModel", **kwargs: Any) -> None:
        # From here on an ordinary dense model: flagged as quantized, `.half()`, Trainer and PEFT would refuse it.
        # The shapes stay in the config, which is all that saving it again needs.
        manifest = cast(ManifestConfig, self.quantization_config)
        _set_shapes(model.config, manifest.modules)
        if manifest.codebooks:
            conversions = cast(list[Any], model._weight_conversions)
            model._weight_conversions = [one for one in conversions if not _is_expansion(one)]  # type: ignore[assignment]
        del model.hf_quantizer
        del model.quantization_method
        model.is_quantized = False  # type: ignore[assignment]


class _Expand(ConversionOps):
    """Packed indices and their codebook -> the weights; weights that are not packed pass."""

    def convert(
        self, input_dict: dict[str, Any], model: Any = None, full_layer_name: str = "", **kwargs: Any
    ) -> dict[str, torch.Tensor]:
        found = {name: value[0] if isinstance(value, list) else value for name, value in input_dict.items()}
        weight, codebook = found[_WEIGHT], found.get(_WEIGHT_CODEBOOK)
        if codebook is not None:
            shape = model.get_parameter(full_layer_name).shape
            bits = len(codebook).bit_length() - 1
            fits = len(weight) == -(-shape.numel() * bits // 8)
            index = unpack(weight.to(torch.uint8), bits, shape.numel() if fits else 8 // bits * len(weight))
            weight = codebook[index.int()]
            weight = weight.view(shape) if fits else weight  # which stock refuses, or replaces where it was told to
        return {full_layer_name: weight}


_WEIGHT, _WEIGHT_CODEBOOK = r"\.weight$", rf"\.weight\{CODEBOOK}$"


def _expansion() -> WeightConverter:
    return WeightConverter([_WEIGHT_CODEBOOK, _WEIGHT], ".weight", [_Expand()])


def _is_expansion(conversion: Any) -> bool:
    return any(isinstance(operation, _Expand) for operation in getattr(conversion, "operations", ()))


def _check_codebooks(files: Sequence[str], codebooks: Mapping[str, int]) -> None:
    """Refuse weights that are not packed as the manifest says.

    Raises:
        ConfigError: a packed tensor or its codebook is missing, or damaged.
    """
    found: dict[str, torch.Tensor] = {}
    packed: dict[str, str] = {}
    for file in files:
        with safe_open(file, "pt") as opened:
            for name in opened.keys():  # noqa: SIM118  (no mapping)
                if name in codebooks:
                    packed[name] = opened.get_slice(name).get_dtype()
                elif name.removesuffix(CODEBOOK) in codebooks:
                    found[name.removesuffix(CODEBOOK)] = opened.get_tensor(name)
    for name, bits in codebooks.items():
        values = found.get(name)
        if bits not in BITS:
            wrong = f"has indices of {bits!r} bits, and {', '.join(map(str, BITS))} can be"
        elif packed.get(name) != "U8":
            wrong = "is not there" if name not in packed else f"is {packed[name]}, not indices in bytes (U8)"
        elif values is None:
            wrong = f"has no codebook: '{name}{CODEBOOK}' is not there"
        elif values.shape != (2**bits,) or not values.is_floating_point() or not values.isfinite().all():
            wrong = f"has a damaged codebook: '{name}{CODEBOOK}' is not {2**bits} finite floats"
        else:
            continue
        raise ConfigError(
            f"{Path(files[0]).parent}: the manifest says that '{name}' is packed, but it {wrong}; copy or download "
            "the whole checkpoint again, or train it again"
        )


def pack_weights(folder: str | Path, bits: int) -> dict[str, int]:
    """Store those matrices of a saved model that hold at most 2^bits values as indices, where that is smaller.

    Returns:
        what the manifest in ``folder`` says of it: name of each tensor -> ``bits``.

    Raises:
        ConfigError: no weights there, or in several files.
    """
    from hf_efficient.files import atomic_path, write_json  # only needed while training

    weights, config = Path(folder) / SAFE_WEIGHTS_NAME, Path(folder) / "config.json"
    if not weights.is_file():
        raise ConfigError(f"no {SAFE_WEIGHTS_NAME} in {folder}: weights can only be packed where one file holds them")
    with safe_open(weights, "pt") as opened:
        metadata = opened.metadata()
    made: dict[str, torch.Tensor] = {}
    codebooks = {}
    for name, tensor in load_file(weights).items():
        made[name] = tensor
        is_matrix = name.endswith(".weight") and tensor.dim() == 2 and tensor.is_floating_point()
        if not is_matrix or packed_bytes(tensor.numel(), bits, tensor.itemsize) >= tensor.nbytes:
            continue
        if (found := codebook_of(tensor, bits)) is not None:
            made[name + CODEBOOK], made[name] = found
            codebooks[name] = bits
    if codebooks:
        with atomic_path(weights) as path:
            save_file(made, path, metadata)
        values = json.loads(config.read_text(encoding="utf-8"))
        known = ManifestConfig(**values.get("quantization_config", {}))
        values["quantization_config"] = ManifestConfig(known.modules, codebooks=codebooks).to_dict()
        write_json(config, values)
    return codebooks


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
    if not isinstance(module, Projection):
        for attribute, size in sizes.items():  # e.g. num_attention_heads: the forward pass reads it
            setattr(module, attribute, size)
        return
    weight = module.weight
    inputs, outputs = (sizes.get(name, getattr(module, name)) for name in size_names(module))
    made = resized(module, inputs, outputs, device=weight.device, dtype=weight.dtype)
    base.set_submodule(path, made.train(module.training))


def record_shapes(model: "PreTrainedModel", shapes: Shapes) -> None:
    """Write ``shapes`` into the model's manifest, on top of what is there already."""
    known = shapes_of(model.config)
    _set_shapes(model.config, {path: {**known.get(path, {}), **shapes.get(path, {})} for path in {**known, **shapes}})


def forget_shapes(model: "PreTrainedModel", paths: Sequence[str]) -> None:
    """Take modules out of the manifest: the config alone gives them the sizes they have."""
    _set_shapes(model.config, {path: sizes for path, sizes in shapes_of(model.config).items() if path not in paths})


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
    _set_shapes(model.config, shapes)


def _set_shapes(config: "PreTrainedConfig", shapes: Shapes) -> None:
    """Let the manifest say ``shapes`` and nothing else; without any there is none."""
    if shapes:
        config.quantization_config = ManifestConfig(modules=shapes)
    elif manifest_of(config) is not None:
        del config.quantization_config


def manifest_of(config: "PreTrainedConfig") -> ManifestConfig | None:
    """The manifest in ``config``; None where it has none."""
    manifest = getattr(config, "quantization_config", None)
    if isinstance(manifest, Mapping) and manifest.get("quant_method") == METHOD:
        manifest = ManifestConfig(**manifest)
    return manifest if isinstance(manifest, ManifestConfig) else None


def shapes_of(config: "PreTrainedConfig") -> dict[str, dict[str, int]]:
    """Sizes in the manifest of ``config``; empty where it has none."""
    manifest = manifest_of(config)
    return copy.deepcopy(manifest.modules) if manifest is not None else {}


def build(config: "PreTrainedConfig", auto_class: Any) -> "PreTrainedModel":
    """A model with random weights in the shapes of ``config``, which ``auto_class.from_config`` alone would ignore.

    Args:
        auto_class: e.g. `transformers.AutoModelForSequenceClassification`.
    """
    model = auto_class.from_config(config)
    shapes = shapes_of(config)
    _set_shapes(model.config, shapes)
    apply_shapes(model, shapes)
    for path in shapes:
        module = model.base_model.get_submodule(path)
        if isinstance(module, Projection):  # `from_config` initialised what was there before
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

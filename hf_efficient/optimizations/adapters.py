"""Adapters: train a product of two thin matrices beside each linear layer, and add it to the layer at the end."""

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from hf_efficient.errors import ConfigError
from hf_efficient.optimization import Context, Optimization, Order
from hf_efficient.runtimes import require_packages

ADAPTER = "default"
Layer = Any
"""`LoraLayer` of peft, which is a module too, and not typed as one."""


@dataclass(eq=False, kw_only=True)
class Adapters(Optimization):
    """LoRA (Hu et al. 2021, arXiv 2106.09685) or DoRA (Liu et al. 2024, arXiv 2402.09353) by peft, in every linear
    layer of the model but its head, which is trained as it is; all else stands still.

    When training ends, adapters are merged: an ordinary model. Checkpoints hold merged weights, too.
    """

    rank: int = 8
    """Width of the thin matrices."""
    alpha: float = 16.0
    """Their product is multiplied by alpha / rank."""
    dropout: float = 0.0
    """Share of an adapter's inputs that is dropped in training."""
    dora: bool = False
    """Train the length of each row of the weights apart from its direction."""
    frozen: Literal["float", "bitsandbytes-fp4", "bitsandbytes-nf4"] = "float"
    """What the weights that stand still are kept in while training: 4 bits take less memory (QLoRA, Dettmers et al.
    2023, arXiv 2305.14314), and round them for good."""

    name = "adapters"
    order = Order.ADAPTER
    conflicts = frozenset({"pruning", "quantization", "structured_pruning", "weight_fusion"})

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise ConfigError(f"rank must be at least 1, got {self.rank}")
        if not self.alpha > 0:
            raise ConfigError(f"alpha must be greater than 0, got {self.alpha:g}")
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"dropout must be from 0 to below 1, got {self.dropout:g}")
        self.reset()

    def reset(self) -> None:
        self._kept: dict[str, dict[str, torch.Tensor]] = {}
        self._layers: dict[str, Layer] = {}
        self._trained: dict[str, bool] = {}
        self._described: dict[str, Any] = {}

    def check(self, context: Context) -> None:
        require_packages(["peft"], self.name, "peft")
        if self.frozen == "float":
            return
        from hf_efficient.low_bit import require_low_bit

        require_low_bit(self.frozen, context.args.device)
        if context.args.load_best_model_at_end:
            raise ConfigError(
                "adapters: load_best_model_at_end needs weights that can be loaded, which those of 4 bits cannot; "
                "set it to false, or frozen to float"
            )

    def whole_weights(self) -> str:
        return "merges into whole weights"

    def needs_first_weights(self) -> bool:
        return True  # a checkpoint has them merged with what was learnt

    def prepare_model(self, model: nn.Module, context: Context) -> nn.Module:
        if self._layers:
            model = self.finalize(model)  # what a dense phase learnt is what the main phase starts from
        if hasattr(model, "peft_config"):
            raise ConfigError("adapters: the model carries adapters already; merge them first (merge_and_unload())")
        base = getattr(model, "base_model", model)
        targets = {name for name, module in base.named_modules() if type(module) is nn.Linear}
        if not targets:
            raise ConfigError(
                f"adapters: {type(model).__name__} has no nn.Linear layers below its head to adapt; drop adapters"
            )
        self._trained = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
        if self.frozen != "float":
            self._round(base, context.args.device)
        base.requires_grad_(False)
        self._inject(base, targets)
        self._layers = dict(_adapted(model))
        for path, layer in self._layers.items():
            _restore(layer, self._kept.get(path, {}))
            layer.register_state_dict_post_hook(_merged_state)
            layer.register_load_state_dict_pre_hook(self._load)
        trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
        self._described = {"adapted_layers": len(self._layers), "rank": self.rank, "trained_parameters": trained}
        return model

    def _round(self, base: nn.Module, device: torch.device) -> None:
        from hf_efficient.low_bit import LOW_BIT, convert_layers

        if not convert_layers(base, self.frozen, device)[0]:
            takes = LOW_BIT[self.frozen].takes
            raise ConfigError(f"adapters.frozen={self.frozen} takes {takes}; no layer here is like that")

    def _inject(self, base: nn.Module, targets: set[str]) -> None:
        import peft

        config = peft.LoraConfig(
            r=self.rank,
            lora_alpha=self.alpha,  # type: ignore[arg-type]  # a factor, whatever its annotation says
            lora_dropout=self.dropout,
            use_dora=self.dora,
            target_modules=sorted(targets),
        )
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "`is_gradient_checkpointing`", FutureWarning)  # peft reads the old name
            peft.inject_adapter_in_model(config, base, ADAPTER)
        del base.peft_config  # the mark of adapters that stay, which these do not

    def _load(self, layer: Layer, state: dict[str, Any], prefix: str, *args: Any) -> None:
        """Weights of a checkpoint: of the best one they become the layer's, with an adapter that adds nothing. Where
        training resumes, the layer and its adapter are in place.
        """
        weight, bias = state.pop(f"{prefix}weight"), state.pop(f"{prefix}bias", None)
        own = {**dict(layer.named_parameters()), **dict(layer.named_buffers())}
        state.update({f"{prefix}{name}": value.detach() for name, value in own.items()})
        if self._kept:
            return
        state[f"{prefix}base_layer.weight"] = weight
        if bias is not None:
            state[f"{prefix}base_layer.bias"] = bias
        state[f"{prefix}lora_B.{ADAPTER}.weight"] = torch.zeros_like(layer.lora_B[ADAPTER].weight)
        if self.dora:
            state[f"{prefix}lora_magnitude_vector.{ADAPTER}.weight"] = weight.norm(dim=1)

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        super().on_train_begin(args, state, control, **kwargs)
        self._kept = {}

    def finalize(self, model: nn.Module) -> nn.Module:
        for path, layer in self._layers.items():
            model.set_submodule(path, _merged(layer))
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(self._trained[name])
        self._layers = {}
        return model

    def state_dict(self) -> dict[str, Any]:
        return {
            "layers": {
                path: {
                    name: value.detach().cpu() for name, value in layer.named_parameters() if name.startswith("lora_")
                }
                for path, layer in self._layers.items()
            }
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._kept = state.get("layers", {})

    def describe(self) -> dict[str, Any]:
        return dict(self._described)


def _adapted(model: nn.Module) -> Iterator[tuple[str, Layer]]:
    from peft.tuners.lora import LoraLayer

    for path, module in model.named_modules():
        if isinstance(module, LoraLayer):
            yield path, module


@torch.no_grad()
def _restore(layer: Layer, values: dict[str, torch.Tensor]) -> None:
    own = dict(layer.named_parameters())
    for name, value in values.items():
        own[name].copy_(value)


@torch.no_grad()
def _merged_weight(layer: Layer) -> torch.Tensor:
    """What the layer multiplies by, (out, in)."""
    base = layer.get_base_layer().weight
    if hasattr(base, "quant_state"):
        from bitsandbytes.functional import dequantize_4bit

        base = dequantize_4bit(base.data, base.quant_state)
    merged = base + layer.get_delta_weight(ADAPTER).to(base)
    if ADAPTER in layer.lora_magnitude_vector:
        merged = merged * (layer.lora_magnitude_vector[ADAPTER].weight / merged.norm(dim=1))[:, None]
    return merged


def _merged(layer: Layer) -> nn.Linear:
    base, weight = layer.get_base_layer(), _merged_weight(layer).float()
    linear = nn.Linear(base.in_features, base.out_features, base.bias is not None, device=weight.device)
    linear.weight = nn.Parameter(weight)
    if base.bias is not None:
        linear.bias = nn.Parameter(base.bias.detach().float())  # 4-bit layers cast it to what they compute in
    return linear.train(base.training)


def _merged_state(layer: Layer, state: dict[str, Any], prefix: str, metadata: Any) -> None:
    """Put the layer into a state dict under its own name, as if it had never been adapted."""
    bias = state.get(f"{prefix}base_layer.bias")
    for name in [name for name in state if name.startswith((f"{prefix}base_layer.", f"{prefix}lora_"))]:
        del state[name]
    state[f"{prefix}weight"] = _merged_weight(layer)
    if bias is not None:
        state[f"{prefix}bias"] = bias.to(state[f"{prefix}weight"])

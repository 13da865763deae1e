"""Structured pruning: cut layers, heads and feed-forward features out of a fine-tuned model until it hits a target."""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from hf_efficient.blocks import layer_stacks, layers_of, require_heads_can_go
from hf_efficient.calibration import require_trained
from hf_efficient.cutting.search import Search, all_units
from hf_efficient.cutting.shape import Shape, applied_alike, cut, fits
from hf_efficient.cutting.target import TARGETS, Target, reach
from hf_efficient.errors import ConfigError, NoEffectWarning
from hf_efficient.example_cache import FOLDER as EXAMPLE_CACHE
from hf_efficient.families import LayerStack
from hf_efficient.optimization import Context, Optimization, Order, refuse_adapters

if TYPE_CHECKING:
    from torch import nn


@dataclass(eq=False, kw_only=True)
class StructuredPruning(Optimization):
    """Cut whole layers, attention heads and feed-forward features, repair what is left, then train on.

    With a target, what is cut is chosen by dynamic programming over the measured error and the measured cost of each
    cut (ZipLM, Kurtic et al. 2023, arXiv 2302.04089; layers: Sajjad et al. 2023, arXiv 2004.03844), and output
    projections are refitted by least squares (Kwon et al. 2022, arXiv 2204.09656).
    """

    target_speedup: float | None = None
    """How many times faster than the uncut model, in ``runtime`` on this machine."""
    target_latency_ms: float | None = None
    """Milliseconds for one batch of ``batch_size`` examples, in ``runtime`` on this machine."""
    target_size_mb: float | None = None
    """MB (1e6 bytes) of the saved weights."""
    target_parameters: int | None = None
    """Number of parameters."""
    keep_layers: int | list[int] | None = None
    """How many layers to keep in each stack, or which (indices from 0); null keeps all, or leaves it to the target."""
    keep_heads: float | None = None
    """Share of the heads to keep in each layer; not with a target."""
    keep_ffn: float | None = None
    """Share of the feed-forward features to keep in each layer; not with a target."""
    uniform: bool = False
    """Cut only what config fields can express, so that the model loads with nothing imported: layers, and one
    feed-forward width for all of them."""
    runtime: str = "torch"
    """What will serve the model, and so is timed: torch, or a format and quantization such as onnx-dynamic."""
    batch_size: int | None = None
    """Of the timed batches; by default 1 for a latency and 32 for a speed-up."""
    importance: Literal["auto", "obs", "taylor", "fisher", "activation"] = "auto"
    """How units are ranked; auto compares all on calibration batches."""
    repair: bool = True
    """Refit what is left by least squares."""
    calibration_batches: int = 32
    """Training batches on which all of this is measured."""

    name = "structured_pruning"
    order = Order.STRUCTURE
    cheaper: ClassVar[Mapping[str, int]] = {
        **dict.fromkeys(("keep_layers", "keep_heads", "keep_ffn"), -1),
        **dict.fromkeys(("target_latency_ms", "target_size_mb", "target_parameters"), -1),
        "target_speedup": 1,
    }

    def __post_init__(self) -> None:
        keep = self.keep_layers
        if isinstance(keep, int) and keep < 1:
            raise ConfigError(f"keep_layers must be at least 1, got {keep}")
        if isinstance(keep, list) and (not keep or sorted(set(keep)) != keep or keep[0] < 0):
            raise ConfigError(f"keep_layers must be ascending indices from 0, each once, got {keep}")
        for setting in ("calibration_batches", "batch_size"):
            if (value := getattr(self, setting)) is not None and value < 1:
                raise ConfigError(f"{setting} must be at least 1, got {value}")
        shares = {name: getattr(self, name) for name in ("keep_heads", "keep_ffn") if getattr(self, name) is not None}
        for setting, share in shares.items():
            if not 0 < share <= 1:
                raise ConfigError(f"{setting} must be in (0, 1], got {share}")
        targets = [name for name in TARGETS if getattr(self, name) is not None]
        for setting in targets:
            if not getattr(self, setting) > 0:
                raise ConfigError(f"{setting} must be above 0, got {getattr(self, setting)}")
        if len(targets) > 1 or (targets and shares):
            raise ConfigError(
                f"{' and '.join([*targets, *shares])} cannot be set together; give one target, or the shares to keep"
            )
        if self.uniform and self.keep_heads not in (None, 1):
            raise ConfigError("uniform cannot go with keep_heads: no config field expresses fewer heads of equal width")
        self.reset()

    def reset(self) -> None:
        self._decision: dict[str, Any] = {}
        self._restored = False

    def milder(self) -> dict[str, Any]:
        if self.target_speedup is not None:
            return {"target_speedup": 1 + (self.target_speedup - 1) / 2}
        if (target := self._target) is not None:  # of what the whole model has nobody knows before it is measured
            return {target.name: type(target.value)(target.value * 1.5)}
        shares = {name: getattr(self, name) for name in ("keep_heads", "keep_ffn")}
        return {name: (1 + share) / 2 for name, share in shares.items() if share not in (None, 1)}

    def decides_by_training(self) -> bool:
        return self._target is not None  # then trainings of the shapes in question compare them

    @property
    def _target(self) -> Target | None:
        name = next((name for name in TARGETS if getattr(self, name) is not None), None)
        if name is None:
            return None
        batch_size = self.batch_size or (1 if name == "target_latency_ms" else 32)
        return Target(name, getattr(self, name), self.runtime, batch_size, self.uniform)

    @property
    def _asks_nothing(self) -> bool:
        shares = (self.keep_heads, self.keep_ffn)
        return self.keep_layers is None and self._target is None and all(share in (None, 1) for share in shares)

    def check(self, context: Context) -> None:
        model: Any = context.model
        if model is None or self._asks_nothing:
            return
        refuse_adapters(model, "structured_pruning cannot cut a model that carries")
        if self.keep_heads not in (None, 1):
            require_heads_can_go(model, self.name, "keep_heads", self.keep_heads)
        for stack in layer_stacks(model):
            self._check_stack(stack, len(layers_of(model, stack)))

    def _check_stack(self, stack: LayerStack, layers: int) -> None:
        asked = self.keep_layers
        needed = max(asked) + 1 if isinstance(asked, list) else asked or 0
        if needed > layers:
            allowed = f"indices from 0 to {layers - 1}" if isinstance(asked, list) else f"1 to {layers}"
            raise ConfigError(
                f"structured_pruning.keep_layers={asked} does not fit: the model has {layers} layers in "
                f"'{stack.path}'; allowed: {allowed}"
            )
        if stack.layers_stay and needed:
            raise ConfigError(
                f"structured_pruning.keep_layers={asked}: no layer of this model can go, because {stack.layers_stay}; "
                "drop keep_layers"
            )
        if stack.first_is_special and isinstance(asked, list) and asked[0] != 0:
            raise ConfigError(
                f"structured_pruning.keep_layers={asked} must contain 0: layer 0 of this model is special"
            )

    def prepare_model(self, model: Any, context: Context) -> "nn.Module":
        if self._asks_nothing:
            warnings.warn("structured_pruning without a target or shares to keep cuts nothing", NoEffectWarning, 2)
            return model
        search = _Lazily(lambda: self._search(model, context))
        if not self._decision:
            self.check(Context(args=context.args, model=model))
            self._decision = context.decide(self.name, lambda: self._choose(model, context, search))
        shape = Shape(**self._decision["shape"])
        if _is_whole(model, shape):
            warnings.warn(f"structured_pruning ({self._wish()}) keeps the whole model", NoEffectWarning, 2)
        elif not fits(model, shape):  # else: cut already, loaded from a checkpoint
            if self._restored or not self.repair:
                cut(model, shape)
            else:
                applied_alike(model, shape, lambda: search().apply(model, shape), context.args)
        return model

    def _wish(self) -> str:
        names = (*TARGETS, "keep_layers", "keep_heads", "keep_ffn")
        return ", ".join(f"{name}={getattr(self, name)}" for name in names if getattr(self, name) is not None)

    def _search(self, model: Any, context: Context) -> Search:
        batches = context.calibration(self.calibration_batches)
        shared = context.folder / EXAMPLE_CACHE  # trials of a search have one between them
        return Search(
            model,
            batches,
            importance=self.importance,
            repairing=self.repair,
            steps=context.steps,
            rate=context.args.learning_rate,
            folder=shared if shared.is_dir() else None,
        )

    def _choose(self, model: Any, context: Context, search: "_Lazily") -> dict[str, Any]:
        """Plain values: {"shape": ..., and what led to it}."""
        whole = Shape.of(model)
        fixed = dict.fromkeys(whole.layers, self.keep_layers) if isinstance(self.keep_layers, list) else None
        if self._target is None and self.keep_heads in (None, 1) and self.keep_ffn in (None, 1):
            if fixed is not None:
                return {"shape": Shape(fixed, {}).to_dict()}
            if all(len(kept) == self.keep_layers for kept in whole.layers.values()):
                return {"shape": whole.to_dict()}
        require_trained(self.name, model, context.calibration(self.calibration_batches))
        made: Search = search()
        layers = fixed
        if isinstance(self.keep_layers, int):
            layers = made.kept_layers(self.keep_layers)
        if self._target is not None:
            return reach(self._target, made, context, layers)
        return self._by_shares(made, layers or whole.layers)

    def _by_shares(self, search: Search, layers: dict[str, list[int]]) -> dict[str, Any]:
        shares = {"attention": self.keep_heads or 1, "ffn": self.keep_ffn or 1}
        widths = {
            key: max(1, round(count * shares[key[2]]))
            for key, count in all_units(search.model, layers).items()
            if shares[key[2]] < 1
        }
        found = search.best_of(layers, widths)
        return {"shape": found.shape.to_dict(), **found.told()}

    def state_dict(self) -> dict[str, Any]:
        return dict(self._decision)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._decision, self._restored = dict(state), bool(state)

    def describe(self) -> dict[str, Any]:
        if not self._decision:
            return {}
        shape = Shape(**self._decision["shape"])
        told = {name: value for name, value in self._decision.items() if name != "shape"}
        return {"kept_layers": shape.layers, "widths": shape.widths(), **told}


class _Lazily:
    """A value computed when it is first called for."""

    def __init__(self, compute: Any):
        self._compute, self._value = compute, None

    def __call__(self) -> Any:
        if self._value is None:
            self._value = self._compute()
        return self._value


def _is_whole(model: Any, shape: Shape) -> bool:
    return shape.layers == Shape.of(model).layers and fits(model, shape)

"""Layer freezing: the first layers stop training once they have settled, and the backward pass ends above them."""

import math
import shutil
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn
from transformers import TrainingArguments

from hf_efficient.blocks import layer_stacks, layers_of
from hf_efficient.errors import ConfigError, NoEffectWarning
from hf_efficient.example_cache import ExampleCache
from hf_efficient.optimization import Context, Optimization, Order, changed, refuse_adapters
from hf_efficient.prefix import FrozenPrefix, used_before

FOLDER = "_frozen_layers"
"""Of the cache, in a phase's folder: what is in it is of the weights of this training alone."""


@dataclass(eq=False, kw_only=True)
class LayerFreezing(Optimization):
    """Freeze layers from the bottom up, one after the other, when they have stopped moving.

    How fast a layer moves is the distance of its weights from where they were `every` steps before, over the learning
    rates summed up between: steps that go one way add up, steps that go to and fro do not. A layer has settled when it
    moves at no more than `threshold` of its greatest speed. Freezing from below, by change measured while training:
    AutoFreeze (Liu et al. 2021, arXiv 2102.01386); on a schedule: FreezeOut (Brock et al. 2017, arXiv 1706.04983).
    """

    layers: int | None = None
    """How many layers may freeze, with what comes before the first; null: all but the last. In a model with two stacks,
    those of the encoder."""
    threshold: float = 0.5
    """At which part of its greatest speed a layer has settled, from 0 to 1."""
    start: float = 0.1
    """From which part of the training on layers may freeze, from 0 to 1."""
    every: int = 50
    """Steps after which speeds are measured, and at most one more layer freezes."""
    cache: bool | Literal["auto"] = "auto"
    """Keep what frozen layers put out for each example, so that later epochs do not run them; auto: where that is
    measured faster. Frozen layers drop nothing out, with it or without."""
    cache_gb: float = 4.0
    """Size of the cache, in GB of 1e9 bytes, at which it takes no more."""

    name = "layer_freezing"
    order = Order.LOSS

    def __post_init__(self) -> None:
        if self.layers is not None and self.layers < 0:
            raise ConfigError(f"layers must be at least 0, got {self.layers}")
        for setting in ("threshold", "start"):
            if not 0 <= getattr(self, setting) <= 1:
                raise ConfigError(f"{setting} must be from 0 to 1, got {getattr(self, setting):g}")
        if self.every < 1:
            raise ConfigError(f"every must be at least 1, got {self.every}")
        if self.cache_gb <= 0:
            raise ConfigError(f"cache_gb must be greater than 0, got {self.cache_gb:g}")
        self._held: list[nn.Parameter] = []
        self._prefix: FrozenPrefix | None = None
        self.reset()

    def reset(self) -> None:
        self._thaw()
        self._early: tuple[list[str], list[str]] = [], []  # modules and parameters that come before the first layer
        self._folder = Path()
        self._cache: ExampleCache | None = None
        self._saved: dict[str, Any] = {}
        self._steps: list[int] = []  # after which layer 0, 1, ... froze
        self._fastest: list[float] = []
        self._rate = 0.0
        self._before: dict[str, torch.Tensor] = {}
        self._told: dict[str, Any] = {}

    def _thaw(self) -> None:
        for parameter in self._held:
            parameter.requires_grad_(True)
        self._held = []
        if self._prefix is not None:
            self._prefix.remove()
            self._prefix = None

    def check(self, context: Context) -> None:
        if context.model is None:
            return
        refuse_adapters(context.model, "layer_freezing cannot freeze layers that carry")
        count = len(_layers(context.model))
        if self.layers is not None and self.layers > count:
            raise ConfigError(f"layer_freezing.layers={self.layers}, but the model has {count} layers")

    def configure(self, args: TrainingArguments) -> TrainingArguments:
        """`DistributedDataParallel` must not wait for gradients of what froze."""
        return args if self.layers == 0 else changed(args, ddp_find_unused_parameters=True)

    def whole_weights(self) -> str:
        return "measures whole weights"

    def prepare_model(self, model: Any, context: Context) -> nn.Module:
        self.check(Context(args=context.args, model=model))
        if not self._limit(model):
            warnings.warn("layer_freezing: no layer may freeze", NoEffectWarning, 2)
        elif not self._saved:
            batches = context.calibration(1)
            self._early = used_before(model, _layers(model)[0], batches[0]) if batches else ([], [])
        self._folder = context.folder / FOLDER
        return model

    def _limit(self, model: Any) -> int:
        """How many layers may freeze."""
        return len(_layers(model)) - 1 if self.layers is None else self.layers

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        super().on_train_begin(args, state, control, **kwargs)
        if not self._limit(kwargs["model"]):
            return
        model = kwargs["model"]
        if self.cache:
            known = self._saved.get("cache", {"shards": []})  # what another training left is of other weights
            self._cache = ExampleCache(self.name, self._folder, self.cache_gb * 1e9, known)
        before = [model.get_submodule(name) for name in self._early[0]]
        measured, saved = self.cache == "auto", self._saved.get("prefix")
        self._prefix = FrozenPrefix(model, _layers(model), before, self._cache, measured, saved)
        for index in range(len(self._steps)):
            self._freeze(model, index, resumed=True)
        device = next(model.parameters()).device
        self._before = {name: weight.to(device) for name, weight in self._before.items()}
        if not self._before:
            self._look(model)

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        rate = kwargs["optimizer"].param_groups[0]["lr"]
        self._rate += 1.0 if rate is None else float(rate)  # Adafactor finds its own

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        model = kwargs["model"]
        frozen, limit = len(self._steps), self._limit(model)
        if self._prefix is not None:
            self._prefix.decide()
        if frozen >= limit or state.global_step % self.every:
            return
        speeds = self._look(model)
        if not speeds:
            return
        self._fastest = [max(pair) for pair in zip(self._fastest or speeds, speeds, strict=True)]
        settled = speeds[frozen] <= self.threshold * self._fastest[frozen]
        if settled and state.global_step >= math.ceil(self.start * state.max_steps):
            self._steps.append(state.global_step)
            self._freeze(model, frozen)

    @torch.no_grad()
    def _look(self, model: Any) -> list[float]:
        """The speed of each layer since the last look, 0 where it is frozen; empty where none can be told."""
        moved = [torch.zeros(())] * len(self._steps)
        for index, layer in list(enumerate(_layers(model)))[len(self._steps) :]:
            squares = torch.zeros((), device=next(layer.parameters()).device)
            for name, weight in layer.named_parameters():
                kept = self._before.get(f"{index}.{name}")
                if kept is not None:
                    squares = squares + (weight.float() - kept).square().sum()
                self._before[f"{index}.{name}"] = weight.detach().float().clone()
            moved.append(squares.sqrt())
        passed, self._rate = self._rate, 0.0
        return [each.item() / passed for each in moved] if passed else []

    def _freeze(self, model: Any, index: int, resumed: bool = False) -> None:
        frozen = list(_layers(model)[index].parameters())
        if index == 0:
            named = dict(model.named_parameters())
            frozen += [named[name] for name in self._early[1]]
        for parameter in frozen:
            if parameter.requires_grad:
                parameter.requires_grad_(False)
                parameter.grad = None
                self._held.append(parameter)
        for name in [name for name in self._before if name.startswith(f"{index}.")]:
            del self._before[name]
        if self._prefix is not None:
            self._prefix.freeze(resumed)

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self._cache is not None and self._steps:
            self._cache.end_epoch()

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        model = kwargs["model"]
        count, held = len(_layers(model)), sum(parameter.numel() for parameter in self._held)
        spared = sum(state.global_step - step for step in self._steps)
        self._told = {
            "frozen_layers": len(self._steps),
            "of_layers": count,
            "after_steps": list(self._steps),
            "frozen_share_of_parameters": round(held / sum(p.numel() for p in model.parameters()), 4),
            "layer_steps_spared": round(spared / max(1, count * state.global_step), 4),
        }
        if self._cache is not None and self._steps:
            self._cache.exchange()
            self._told["share_from_cache"] = round(self._cache.share_served, 4)
        self._cache = None
        if state.is_world_process_zero:
            shutil.rmtree(self._folder, ignore_errors=True)
        self._thaw()
        if self._limit(model) and not self._steps:
            warnings.warn(
                f"layer_freezing: no layer slowed down to threshold={self.threshold:g} of its greatest speed; raise "
                "threshold, or lower every",
                NoEffectWarning,
                2,
            )

    def state_dict(self) -> dict[str, Any]:
        state: dict[str, Any] = {"steps": [*self._steps], "fastest": [*self._fastest], "rate": self._rate}
        state.update(before=dict(self._before), early=self._early)
        if self._prefix is not None:
            state["prefix"] = self._prefix.state_dict()
        if self._cache is not None and self._steps:
            self._cache.exchange()
            state["cache"] = self._cache.state_dict()
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._saved = state
        if state:
            self._steps, self._fastest, self._rate = list(state["steps"]), list(state["fastest"]), state["rate"]
            self._before, self._early = dict(state["before"]), tuple(state["early"])

    def describe(self) -> dict[str, Any]:
        return dict(self._told)


def _layers(model: Any) -> nn.ModuleList:
    return layers_of(model, layer_stacks(model)[0])

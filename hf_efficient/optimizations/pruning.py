"""Pruning: single weights become zero while the model trains, and it learns to do without them."""

import math
import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

import torch
from pydantic import BeforeValidator
from torch import nn

from hf_efficient.errors import ConfigError, NoEffectWarning
from hf_efficient.functional.masks import MaskedWeight, cubic_ramp, least, least_in_groups, least_of_all
from hf_efficient.functional.optimizer_state import embedding_parameters
from hf_efficient.optimization import Context, Optimization, Order, refuse_adapters

if TYPE_CHECKING:
    from transformers import TrainerState

UNSTRUCTURED = "unstructured"
DEFAULT_SPARSITY = 0.5
SPEED = "a dense kernel is not faster by zeros, and a plain file not smaller"


def _unread(given: Any) -> Any:
    """YAML 1.1 reads 2:4 without quotes as minutes and seconds, which is 124."""
    return f"{given // 60}:{given % 60}" if isinstance(given, int) else given


@dataclass(eq=False, kw_only=True)
class Pruning(Optimization):
    """Set weights of linear layers to zero, more and more of them, those first that matter least.

    The number of zeros grows as in Zhu & Gupta 2017 (arXiv 1710.01878). What matters least is small, or small and on
    its way to zero (after movement pruning, Sanh et al. 2020, arXiv 2005.07683). Embeddings, biases and norms stay.
    """

    sparsity: float | None = None
    """Share of zeros at the end, from 0 to below 1; null: 0.5, or what the pattern says."""
    method: Literal["magnitude", "movement"] = "magnitude"
    """What goes: the smallest weights, or those of them that training moves towards zero most steadily."""
    scope: Literal["layer", "global"] = "layer"
    """Where the share holds: in each weight matrix, or in all of them together."""
    pattern: Annotated[str, BeforeValidator(_unread)] = UNSTRUCTURED
    """`unstructured`, or N:M, as "2:4": of every M consecutive weights of a row, the N that matter most stay."""
    start: float = 0.1
    """From which part of the training on weights go, from 0 to 1."""
    end: float = 0.6
    """At which part of the training the last ones go; from then on the zeros stay where they are."""
    every: int = 10
    """Steps after which it is chosen anew which weights are zero."""
    head: bool = False
    """Prune linear layers outside the blocks, too: a classifier, a pooler. Blocks are what the base model holds in an
    `nn.ModuleList`."""

    name = "pruning"
    order = Order.STRUCTURE
    gathers_weights = True

    def __post_init__(self) -> None:
        self._group = _group(self.pattern)
        if self._group and (self.sparsity is not None or self.scope == "global"):
            raise ConfigError(
                f"pattern={self.pattern} says how many zeros there are and where; drop sparsity and scope"
            )
        if self.sparsity is not None and not 0 <= self.sparsity < 1:
            raise ConfigError(f"sparsity must be in [0, 1), got {self.sparsity:g}")
        if not 0 <= self.start <= self.end <= 1:
            raise ConfigError(f"start and end must be from 0 to 1 in this order, got {self.start:g} and {self.end:g}")
        if self.method == "movement" and self.end == 0:
            raise ConfigError("method=movement is known after some training only, but end is 0; set it above")
        if self.every < 1:
            raise ConfigError(f"every must be at least 1, got {self.every}")
        self.reset()

    def reset(self) -> None:
        self._masked: dict[str, MaskedWeight] = {}
        self._saved: dict[str, Any] = {}
        self._first, self._last = 0, 0
        self._told: dict[str, Any] = {}

    @property
    def _sparsity(self) -> float:
        """Share of zeros at the end."""
        if self._group:
            return 1 - self._group[0] / self._group[1]
        return DEFAULT_SPARSITY if self.sparsity is None else self.sparsity

    def whole_weights(self) -> str:
        return "ranks whole weights" if self._sparsity else ""

    def milder(self) -> dict[str, Any]:
        return {"sparsity": self._sparsity / 2} if self._sparsity and not self._group else {}

    def check(self, context: Context) -> None:
        refuse_adapters(context.model, "pruning cannot set weights to zero under")

    def prepare_model(self, model: nn.Module, context: Context) -> nn.Module:
        if not self._sparsity:
            warnings.warn("pruning with sparsity=0 sets no weight to zero", NoEffectWarning, 2)
            return model
        self.check(Context(args=context.args, model=model))
        return model

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        super().on_train_begin(args, state, control, **kwargs)
        if not self._sparsity:
            return
        self._first, self._last = (math.ceil(part * state.max_steps) for part in (self.start, self.end))
        moves = self.method == "movement"
        for path, weight in self._weights(kwargs["model"]):  # found here: the model is cut by now
            self._masked[path] = MaskedWeight(weight, self._saved.get(path), moves)
        if not self._masked:
            warnings.warn(
                f"pruning finds no linear layers {self._where} of a {type(kwargs['model']).__name__}",
                NoEffectWarning,
                2,
            )
        if state.global_step == 0:
            self._choose(0)

    @property
    def _where(self) -> str:
        fit = f", with inputs in multiples of {self._group[1]}," if self._group else ""
        return f"that train{fit} in {'any place' if self.head else 'the blocks'}"

    def _weights(self, model: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
        """Path of a layer and its weight, each weight once."""
        base: nn.Module = getattr(model, "base_model", model)  # type: ignore[assignment]
        blocks = (module for module in base.modules() if isinstance(module, nn.ModuleList))
        inside = {id(parameter) for block in blocks for parameter in block.parameters()}
        seen = set(embedding_parameters(model))  # the output layer of a language model may be tied to them
        for path, module in model.named_modules():
            if not isinstance(module, nn.Linear) or not module.weight.requires_grad or id(module.weight) in seen:
                continue
            fits = not self._group or module.in_features % self._group[1] == 0
            if fits and (self.head or id(module.weight) in inside):
                seen.add(id(module.weight))
                yield path, module.weight

    # The gradient is read when it is whole: summed over micro-batches, averaged over processes, clipped, and before the
    # optimizer adds momentum and decay to it. Then the optimizer may move zeros, so they are set again after it.
    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        for masked in self._masked.values():
            masked.take_gradient(moving=state.global_step < self._last)

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        for masked in self._masked.values():
            masked.enforce()

    def on_step_end(self, args: Any, state: "TrainerState", control: Any, **kwargs: Any) -> None:
        if not self._masked:
            return
        self._choose(state.global_step)
        if state.global_step <= self._last:  # what was evaluated with fewer zeros cannot be the best model
            state.best_metric = state.best_global_step = state.best_model_checkpoint = None

    def _choose(self, step: int) -> None:
        """Choose anew what is zero, if it is time."""
        ramp = self._first < step < self._last and (step - self._first) % self.every == 0
        if ramp or step == self._last:
            zeros = self._zeros(cubic_ramp(step, self._first, self._last))
            for masked, zero in zip(self._masked.values(), zeros, strict=True):
                masked.mask(zero)

    def _zeros(self, ramp: float) -> list[torch.Tensor]:
        scores = [masked.scores for masked in self._masked.values()]
        if self._group:
            kept, size = self._group
            return [least_in_groups(each, round(ramp * (size - kept)), size) for each in scores]
        share = ramp * self._sparsity
        if self.scope == "global" and scores:
            return least_of_all(scores, share)
        return [least(each, round(share * each.numel())) for each in scores]

    def finalize(self, model: nn.Module) -> nn.Module:
        for masked in self._masked.values():
            masked.enforce()
        self._told = self._found(model) if self._masked else {}
        self._masked = {}
        return model

    def _found(self, model: nn.Module) -> dict[str, Any]:
        zeros = {path: masked.zeros for path, masked in self._masked.items()}
        sizes = {path: masked.weight.numel() for path, masked in self._masked.items()}
        shares = {path: round(zeros[path] / sizes[path], 4) for path in zeros}
        ends = {"least": min(shares, key=shares.__getitem__), "greatest": max(shares, key=shares.__getitem__)}
        return {
            "sparsity": round(sum(zeros.values()) / sum(sizes.values()), 4),
            **{f"{end}_sparsity": {path: shares[path]} for end, path in ends.items()},
            "zeros": sum(zeros.values()),
            "share_of_all_parameters": round(sum(zeros.values()) / sum(p.numel() for p in model.parameters()), 4),
            "speed": SPEED,
        }

    def state_dict(self) -> dict[str, Any]:
        return {path: masked.state() for path, masked in self._masked.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._saved = dict(state)

    def describe(self) -> dict[str, Any]:
        if not self._told:
            return {}
        return {"method": self.method, "pattern": self.pattern, "asked": round(self._sparsity, 4), **self._told}


def _group(pattern: str) -> tuple[int, int] | None:
    """How many stay of how many; None where weights are not grouped."""
    if pattern == UNSTRUCTURED:
        return None
    found = re.fullmatch(r"(\d+):(\d+)", pattern)
    if not found or not 0 < int(found[1]) < int(found[2]):
        raise ConfigError(f'pattern must be {UNSTRUCTURED} or N:M with N from 1 to M - 1, as "2:4", got {pattern!r}')
    return int(found[1]), int(found[2])

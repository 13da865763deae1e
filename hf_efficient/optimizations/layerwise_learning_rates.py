"""A learning rate for each layer: a new head learns fast, what was pretrained the slower the nearer to the input."""

import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from hf_efficient.blocks import layer_stacks, layers_of
from hf_efficient.errors import ConfigError, NoEffectWarning
from hf_efficient.functional.parameter_groups import combined, split_group
from hf_efficient.functional.token_embeddings import predicts_tokens
from hf_efficient.optimization import Context, Optimization, Order, refuse_adapters
from hf_efficient.settings import require_same


@dataclass(eq=False, kw_only=True)
class LayerwiseLearningRates(Optimization):
    """Multiply the learning rate by a factor for each layer and for the head; the schedule is the same for all.

    Rates that fall by a constant factor from layer to layer: discriminative fine-tuning (Howard and Ruder 2018, arXiv
    1801.06146), on Transformers ELECTRA (Clark et al. 2020, arXiv 2003.10555). A head that begins at random at ten
    times the rate of what was pretrained: Long et al. 2015, arXiv 1502.02791.
    """

    decay: float = 0.8
    """Factor from each layer to the one below it, above 0 to 1; what comes before the first layer is one below it. Two
    stacks are counted each from its own top."""
    head: float = 10.0
    """Factor of what comes after the pretrained model, above 0. A head that puts out words is pretrained: it keeps the
    rate of the arguments."""

    name = "layerwise_learning_rates"
    order = Order.PRECISION
    conflicts = frozenset({"adapters"})  # they keep the layers as they are

    def __post_init__(self) -> None:
        if not 0 < self.decay <= 1:
            raise ConfigError(f"layerwise_learning_rates.decay must be above 0 and at most 1, got {self.decay:g}")
        if not 0 < self.head < float("inf"):
            raise ConfigError(f"layerwise_learning_rates.head must be a number above 0, got {self.head:g}")
        self.reset()

    def reset(self) -> None:
        self._told: dict[str, Any] = {}

    def check(self, context: Context) -> None:
        if context.model is not None:
            refuse_adapters(context.model, "layerwise_learning_rates has no factor for")
            self._factors(context.model)

    def choose_optimizer(self, cls: Any, settings: dict[str, Any], model: nn.Module) -> tuple[Any, dict[str, Any]]:
        factors = self._factors(model)
        found = set(factors.values())
        self._told = {"factors": [min(found), max(found)]}
        if found == {1.0}:
            warnings.warn(
                f"layerwise_learning_rates: with decay={self.decay:g} and head={self.head:g} all of this model learns "
                "at the rate of the arguments",
                NoEffectWarning,
                2,
            )
            return cls, settings
        return combined(_ByLayers, cls), {**settings, "factors": factors}

    def _factors(self, model: Any) -> dict[int, float]:
        """`id` of each parameter -> its factor."""
        if not hasattr(model, "base_model"):
            raise ConfigError(
                "layerwise_learning_rates needs a model of transformers, whose head is known; got "
                f"{type(model).__name__}"
            )
        base = model.base_model
        found = {} if self.decay == 1 else self._below(model, base)
        found = {**{id(parameter): 1.0 for parameter in base.parameters()}, **found}
        head = 1.0 if predicts_tokens(model) else self.head
        return {**{id(parameter): head for parameter in model.parameters()}, **found}

    def _below(self, model: Any, base: nn.Module) -> dict[int, float]:
        """Factors of layers, and of what comes before the first: in its stack, and in the whole model."""
        try:
            stacks = layer_stacks(model)
        except ConfigError as error:
            raise ConfigError(
                f"layerwise_learning_rates.decay needs layers that are known: {error}; or set it to 1"
            ) from error
        found: dict[int, float] = {}
        for stack in stacks:
            layers = layers_of(model, stack)
            for depth, layer in enumerate(reversed(layers)):
                found.update({id(parameter): self.decay**depth for parameter in layer.parameters()})
            within = base.get_submodule(stack.path.rpartition(".")[0])
            for holder in (within, base) if stack is stacks[0] else (within,):
                for parameter in _before(layers[0], holder):
                    found.setdefault(id(parameter), self.decay ** len(layers))
        return found

    def state_dict(self) -> dict[str, Any]:
        return {"decay": self.decay, "head": self.head}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        require_same(self.name, state, self.state_dict())

    def describe(self) -> dict[str, Any]:
        return dict(self._told)


def _before(layer: nn.Module, holder: nn.Module) -> Iterator[nn.Parameter]:
    """Parameters that ``holder`` was given before those of ``layer``."""
    first = next(layer.parameters())
    for parameter in holder.parameters():
        if parameter is first:
            return
        yield parameter


class _ByLayers:
    """In front of an optimizer class: groups are split by factor, the one of factor 1 first, whose rate logs tell."""

    def __init__(
        self, groups: Sequence[Mapping[str, Any]], *args: Any, lr: float, factors: Mapping[int, float], **settings: Any
    ):
        parts = []
        for group in groups:
            rate = group.get("lr", lr)
            for factor, part in split_group(group, lambda parameter: factors.get(id(parameter), 1.0)).items():
                parts.append((factor != 1, {**part, "lr": rate * factor}))
        parts.sort(key=lambda part: part[0])
        super().__init__([group for _, group in parts], *args, lr=lr, **settings)  # type: ignore[call-arg]

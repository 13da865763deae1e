"""Only the embeddings of tokens that a step has seen get a gradient and an update."""

import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.utils import parametrize

from hf_efficient.errors import ConfigError, NoEffectWarning
from hf_efficient.functional.parameter_groups import combined
from hf_efficient.functional.rows import adamw_rows, rows_seen, sgd_rows
from hf_efficient.optimization import Context, Optimization, Order
from hf_efficient.proposal import Observed, Proposal

OPTIMIZERS = ("adamw_torch", "adamw_torch_fused", "sgd")
"""Values of `TrainingArguments.optim` that it goes with."""
BEST_GAIN = 0.15
"""Share of forward and backward passes that goes into a dense gradient of the tables, at the very most."""


@dataclass(eq=False, kw_only=True)
class SparseEmbeddings(Optimization):
    """Sparse gradients of token embeddings, and an optimizer that updates their rows alone.

    Exact with plain gradient descent. With AdamW the rows that a step has not seen rest, where AdamW lets them go on by
    momentum; moments are kept of rows that were seen at least once.
    """

    min_rows: int = 1024
    """Tables of fewer rows, such as positions, are left as they are."""

    name = "sparse_embeddings"
    order = Order.PRECISION
    # Another optimizer; tables that are computed from what is trained; tables that are not trained
    conflicts = frozenset({"optimizer", "quantization", "weight_fusion", "adapters"})

    def __post_init__(self) -> None:
        if self.min_rows < 1:
            raise ConfigError(f"min_rows must be at least 1, got {self.min_rows}")
        self.reset()

    def reset(self) -> None:
        self._told: dict[str, Any] = {}

    @classmethod
    def proposals(cls, observed: Observed) -> Iterable[Proposal]:
        tables = sum(table.weight.numel() for table in _tables(observed.model, cls.min_rows))
        if tables and observed.args.optim in OPTIMIZERS and not _gpus(observed.args):
            share = tables / sum(parameter.numel() for parameter in observed.model.parameters())
            yield Proposal(gain=share * observed.updating + BEST_GAIN * observed.computing)

    def whole_weights(self) -> str:
        return "updates rows of whole tables"

    def check(self, context: Context) -> None:
        optim = getattr(context.args.optim, "value", context.args.optim)  # stock makes an enumeration of it
        if optim not in OPTIMIZERS:
            raise ConfigError(f"sparse_embeddings does not go with optim={optim}; allowed: {', '.join(OPTIMIZERS)}")
        if _gpus(context.args):
            raise ConfigError(
                "sparse_embeddings works on several processes on CPUs (gloo) alone: NCCL does not add up sparse "
                "gradients; drop it, or train in one process"
            )

    def choose_optimizer(self, cls: Any, settings: dict[str, Any], model: nn.Module) -> tuple[Any, dict[str, Any]]:
        tables = list(_tables(model, self.min_rows))
        if not tables:
            warnings.warn(
                f"sparse_embeddings: the model has no trained embeddings of its own of {self.min_rows} rows or more",
                NoEffectWarning,
                2,
            )
            return cls, settings
        if settings.get("momentum"):
            raise ConfigError("sparse_embeddings goes with SGD without momentum; drop it or optim_args' momentum")
        for table in tables:
            table.sparse = True
        self._told = {"rows": sum(table.num_embeddings for table in tables)}
        return combined(_ByRows, cls), settings

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        optimizer = getattr(kwargs["optimizer"], "optimizer", kwargs["optimizer"])  # out of Accelerate's wrapper
        kept = [one for one in optimizer.state.values() if "slots" in one]
        if kept:
            self._told["rows_seen"] = sum(map(rows_seen, kept))

    def finalize(self, model: nn.Module) -> nn.Module:
        for table in _tables(model, self.min_rows):
            table.sparse = False
        return model

    def describe(self) -> dict[str, Any]:
        return dict(self._told)


class _ByRows:
    """In front of an optimizer class: what has a sparse gradient is updated by rows, the rest as ever."""

    param_groups: list[dict[str, Any]]
    state: dict[torch.Tensor, dict[str, Any]]

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self._step_supports_amp_scaling = False  # the scaler unscales gradients itself, these too

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        sparse = [
            (parameter, parameter.grad, group)
            for group in self.param_groups
            for parameter in group["params"]
            if parameter.grad is not None and parameter.grad.is_sparse
        ]
        for parameter, _, _ in sparse:
            parameter.grad = None
        result = super().step(closure)  # type: ignore[misc]
        for parameter, gradient, group in sparse:
            parameter.grad = gradient.coalesce()
            settings = {name: group[name] for name in ("lr", "weight_decay")}
            if "betas" in group:
                adamw = {"betas": group["betas"], "eps": group["eps"]}
                adamw_rows(parameter, parameter.grad, self.state[parameter], **adamw, **settings)
            else:
                sgd_rows(parameter, parameter.grad, **settings)
        return result

    def load_state_dict(self, state_dict: Any) -> None:
        super().load_state_dict(state_dict)  # type: ignore[misc]
        for state in self.state.values():
            if "slots" in state:  # PyTorch makes all state what the parameter is
                state["slots"] = state["slots"].long()


def _tables(model: nn.Module, min_rows: int) -> Iterator[nn.Embedding]:
    """Trained embeddings whose weights are no other layer's too, nor computed from others."""
    modules = [module for module in model.modules() if not isinstance(module, nn.Embedding)]
    shared = {id(parameter) for module in modules for parameter in module.parameters(recurse=False)}
    for module in model.modules():
        if isinstance(module, nn.Embedding) and not parametrize.is_parametrized(module):
            weight = module.weight
            if weight.requires_grad and module.num_embeddings >= min_rows and id(weight) not in shared:
                yield module


def _gpus(args: Any) -> bool:
    """Whether several processes train on accelerators."""
    return args.world_size > 1 and args.device.type != "cpu"

"""Weight fusion: units that say nearly the same become one, and weights become indices into a trained codebook."""

import functools
import math
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from torch import nn

from hf_efficient.blocks import layer_stacks, require_heads_can_go
from hf_efficient.calibration import require_trained
from hf_efficient.checkpoint import pack_weights
from hf_efficient.cutting.merging import Merges, find_merges, fold
from hf_efficient.cutting.search import Search, all_units
from hf_efficient.cutting.shape import Shape, applied_alike, cut, fits
from hf_efficient.errors import ConfigError, NoEffectWarning
from hf_efficient.families import ATTENTION, FFN
from hf_efficient.functional.cluster import Tie, packed_bytes
from hf_efficient.optimization import Context, Optimization, Order, refuse_adapters

if TYPE_CHECKING:
    from pathlib import Path


@dataclass(eq=False, kw_only=True)
class WeightFusion(Optimization):
    """Merge units with nearly the same activations, and share weights in clusters; either, or both.

    Merged units are cut out, and what they gave is given by those they are most alike, then repaired by least squares
    (Srinivas & Babu 2015, arXiv 1507.06149; by activations: Mariet & Sra 2016, arXiv 1511.05077).
    Clusters are those of Deep Compression (Han et al. 2016, arXiv 1510.00149): k-means for each tensor, one number for
    each cluster from then on, trained by the gradients of all its weights; on disk, indices and a codebook.
    """

    merge: float = 0.0
    """Share of the feed-forward features, over all layers, that become part of others."""
    merge_heads: float = 0.0
    """The same of attention heads."""
    threshold: float = 0.0
    """Units whose activations correlate less stay apart, even if fewer go then; from 0 to 1."""
    cluster: Literal[2, 4, 8] | None = None
    """Bits of an index: 4, 16 or 256 different weights in a tensor; null leaves weights alone."""
    embeddings: bool = True
    """Cluster embedding tables too: they are half of a small model's bytes."""
    start: float = 0.5
    """From which part of the training on weights are shared, from 0 to 1; 1: at its end, untrained."""
    calibration_batches: int = 32
    """Training batches on which activations are compared."""

    name = "weight_fusion"
    cheaper: ClassVar[Mapping[str, int]] = {"merge": 1, "merge_heads": 1}
    order = Order.FUSION

    def __post_init__(self) -> None:
        for setting in ("merge", "merge_heads"):
            if not 0 <= getattr(self, setting) < 1:
                raise ConfigError(f"{setting} must be in [0, 1), got {getattr(self, setting):g}")
        for setting in ("threshold", "start"):
            if not 0 <= getattr(self, setting) <= 1:
                raise ConfigError(f"{setting} must be from 0 to 1, got {getattr(self, setting):g}")
        if self.calibration_batches < 1:
            raise ConfigError(f"calibration_batches must be at least 1, got {self.calibration_batches}")
        self.reset()

    def reset(self) -> None:
        self._decision: dict[str, Any] = {}
        self._restored = False
        self._ties: dict[str, Tie] = {}
        self._first_step = 0

    @property
    def conflicts(self) -> frozenset[str]:  # type: ignore[override]
        """Rounded weights would be more different numbers than a codebook holds."""
        return frozenset({"quantization"} if self.cluster else ())

    @property
    def _shares(self) -> dict[str, float]:
        return {kind: share for kind, share in ((FFN, self.merge), (ATTENTION, self.merge_heads)) if share}

    def whole_weights(self) -> str:
        return "clusters whole weights" if self.cluster else ""

    def milder(self) -> dict[str, Any]:
        finer = {"cluster": 2 * self.cluster} if self.cluster in (2, 4) else {}
        return {**{name: getattr(self, name) / 2 for name in self.cheaper if getattr(self, name)}, **finer}

    def check(self, context: Context) -> None:
        if context.model is None:
            return
        refuse_adapters(context.model, "weight_fusion cannot change a model that carries")
        if self._shares:
            layer_stacks(context.model)  # type: ignore[arg-type]
        if self.merge_heads:
            require_heads_can_go(context.model, self.name, "merge_heads", self.merge_heads)  # type: ignore[arg-type]

    def prepare_model(self, model: Any, context: Context) -> "nn.Module":
        self.check(Context(args=context.args, model=model))
        if not self._shares and not self.cluster:
            warnings.warn("weight_fusion without merge, merge_heads or cluster changes nothing", NoEffectWarning, 2)
        if self.cluster and not _matrices(model, self.cluster, self.embeddings):
            warnings.warn(f"weight_fusion: no tensor gets smaller by cluster={self.cluster}", NoEffectWarning, 2)
        if self._shares:
            self._merge(model, context)
        return model

    def _merge(self, model: Any, context: Context) -> None:
        @functools.cache
        def search() -> Search:
            return Search(model, context.calibration(self.calibration_batches), "activation")

        def apply() -> None:
            found = search()
            found.look()  # repairs are towards the model as it is now
            fold(model, found.moments, merges)
            found.apply(model, shape)

        if not self._decision:
            self._decision = context.decide(self.name, lambda: self._choose(model, context, search))
        merges, shape = Merges.from_list(self._decision["merges"]), Shape(**self._decision["shape"])
        if not merges.count:
            warnings.warn("weight_fusion finds no units that are alike enough to be merged", NoEffectWarning, 2)
        elif self._restored:
            cut(model, shape)  # the weights come from the checkpoint
        elif not fits(model, shape):
            applied_alike(model, shape, apply, context.args)

    def _choose(self, model: Any, context: Context, search: Callable[[], Search]) -> dict[str, Any]:
        """Plain values: {"merges", "shape", and what to tell of them}."""
        require_trained(self.name, model, context.calibration(self.calibration_batches))
        merges = find_merges(model, search().moments, self._shares, self.threshold)
        units = [count for key, count in all_units(model, Shape.of(model).layers).items() if key[2] in self._shares]
        return {
            "merges": merges.to_list(),
            "shape": merges.shape(model).to_dict(),
            "merged_units": merges.count,
            "of_units": sum(units),
            "variance_lost": merges.lost / len(units),
        }

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        super().on_train_begin(args, state, control, **kwargs)
        self._first_step = math.ceil(self.start * state.max_steps)
        for weight, tie in self._tied(kwargs["model"]):
            tie.to(weight.device)  # from a checkpoint they come on the CPU
        self._begin(state, kwargs["model"], kwargs.get("optimizer"))

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._begin(state, kwargs["model"], kwargs.get("optimizer"))

    @torch.no_grad()
    def _begin(self, state: Any, model: "nn.Module", optimizer: Any) -> None:
        if not self.cluster or self._ties or state.global_step < self._first_step:
            return
        for name, weight in _matrices(model, self.cluster, self.embeddings).items():
            tie = self._ties[name] = Tie.of(weight, 2**self.cluster)
            weight.copy_(tie.means(weight))
            # Moments of single weights, far larger than those of a mean over thousands, would hold these still
            getattr(optimizer, "state", {}).pop(weight, None)

    @torch.no_grad()
    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        for weight, tie in self._tied(kwargs["model"]):
            if weight.grad is not None:
                weight.grad.copy_(tie.means(weight.grad)).masked_fill_(weight == 0, 0.0)  # what is pruned stays so

    @torch.no_grad()
    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        for weight, tie in self._tied(kwargs["model"]):
            weight.copy_(tie.means(weight))  # optimizers may treat equal weights unequally, if only in the last bit

    def _tied(self, model: "nn.Module") -> list[tuple[nn.Parameter, Tie]]:
        return [(model.get_parameter(name), tie) for name, tie in self._ties.items()]

    @torch.no_grad()
    def finalize(self, model: "nn.Module") -> "nn.Module":
        if not self.cluster:
            return model
        for name, weight in _matrices(model, self.cluster, self.embeddings).items():
            tie = self._ties.get(name)
            # The training may have ended, or its best checkpoint may be, before weights were shared
            if tie is None or tie.index.shape != weight.shape or not torch.equal(tie.means(weight), weight):
                tie = self._ties[name] = Tie.of(weight, 2**self.cluster)
            weight.copy_(tie.means(weight))
        return model

    def pack(self, folder: "Path") -> None:
        if self.cluster:
            pack_weights(folder, self.cluster)

    def state_dict(self) -> dict[str, Any]:
        merged = {"merged": self._decision} if self._decision else {}
        return {**merged, **({"indices": {name: tie.index for name, tie in self._ties.items()}} if self._ties else {})}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._decision = dict(state.get("merged", {}))
        self._restored = bool(self._decision)
        if self.cluster:
            indices = state.get("indices", {})
            self._ties = {name: Tie(index, 2**self.cluster) for name, index in indices.items()}

    def describe(self) -> dict[str, Any]:
        told: dict[str, Any] = {}
        if self._decision:
            told = {name: value for name, value in self._decision.items() if name not in ("merges", "shape")}
            told["widths"] = Shape(**self._decision["shape"]).widths()
        if self._ties:
            told |= {"bits": self.cluster, "clustered_tensors": len(self._ties), "from_step": self._first_step}
        return told


def _matrices(model: "nn.Module", bits: int, embeddings: bool) -> dict[str, nn.Parameter]:
    """The weights that get smaller as indices: of linear layers, and embedding tables where these are asked for."""
    tables = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    found: dict[int, tuple[str, nn.Parameter]] = {}
    for path, module in model.named_modules():
        if not isinstance(module, nn.Linear | nn.Embedding) or (not embeddings and id(module.weight) in tables):
            continue
        weight: Any = module.weight
        if packed_bytes(weight.numel(), bits, weight.itemsize) < weight.nbytes:
            found.setdefault(id(weight), (f"{path}.weight", weight))
    return dict(found.values())

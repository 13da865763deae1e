"""A model that computes with rounded numbers while it trains: hooks that leave its parameters and names as they are."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from hf_efficient.functional.fake_quant import (
    fake_quantize_dynamic,
    fake_quantize_range,
    fake_quantize_weight,
    fixed_point,
    weight_scales,
)
from hf_efficient.functional.sharded import own, own_part, whole
from hf_efficient.timing import evaluating

MOMENTUM = 0.99
"""How much of a stored range stays when a new batch is seen."""


@dataclass(frozen=True)
class Scheme:
    """What is rounded, and how.

    Attributes:
        weights: ``channel``, ``tensor`` or ``group`` for integers with such scales, ``step`` for multiples of a step.
        inputs: of linear layers: ``dynamic`` in the range of each batch, ``static`` in the running mean of these,
            ``step``, or empty: as they are.
        bits: of weights with scales; inputs always have 8.
        group, step: see `functional.fake_quant`.
        embeddings: their tables too: ``weights`` like the weights, ``table`` to 8 bits in the range that the table has;
            or empty: as they are.
    """

    weights: str
    inputs: str = ""
    bits: int = 8
    group: int = 32
    step: float = 2**-15
    embeddings: str = "weights"

    def rounded(self, module: nn.Module, parameter: torch.Tensor, beside: Sequence[torch.Tensor] = ()) -> torch.Tensor:
        """``parameter`` of ``module`` as a kernel has it; a scale per tensor is one for the weights ``beside`` too."""
        if isinstance(module, nn.Embedding) and self.embeddings == "table":
            return fake_quantize_dynamic(parameter)
        if self.weights == "step":
            return fixed_point(parameter, self.step)
        if not beside or self.weights != "tensor":
            return fake_quantize_weight(parameter, self.bits, self.weights, self.group)
        scales = [weight_scales(weight.reshape(1, -1), self.bits) for weight in (parameter, *beside)]
        return fake_quantize_weight(parameter, self.bits, self.weights, scales=torch.stack(scales).amax(0))

    def concerns(self, module: nn.Module, name: str) -> bool:
        """Whether the parameter ``name`` of ``module`` is rounded: with a step all are, with scales the matrices."""
        if self.weights == "step":
            return bool(self.embeddings) or not isinstance(module, nn.Embedding)
        kinds = (nn.Linear, nn.Embedding) if self.embeddings else (nn.Linear,)
        return name == "weight" and isinstance(module, kinds)


@dataclass
class Rounding:
    """A scheme at work on a model.

    Attributes:
        ranges: path of a layer -> least and greatest input so far, shape (2,); for static inputs.
        packed: groups of paths of layers whose weights share a scale (`readers`), where weights have one per tensor.
    """

    scheme: Scheme
    ranges: dict[str, torch.Tensor] = field(default_factory=dict)
    packed: Sequence[Sequence[str]] = ()
    _handles: list[Any] = field(default_factory=list)
    _kept: dict[nn.Module, dict[str, Any]] = field(default_factory=dict)
    _beside: dict[nn.Module, list[nn.Module]] = field(default_factory=dict)

    @property
    def attached(self) -> bool:
        return bool(self._handles)

    def attach(self, model: nn.Module) -> int:
        """Round in every forward pass from now on; returns how many modules do."""
        found = dict(self._modules(model))
        self._pack(model)
        for path, module in found.items():
            self._handles.append(module.register_forward_pre_hook(self._before(path)))
            self._handles.append(module.register_forward_hook(self._after, always_call=True))
        return len(found)

    def remove(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles = []

    @torch.no_grad()
    def fold(self, model: nn.Module) -> None:
        """Round the parameters themselves, for good."""
        self._pack(model)
        seen = set()
        for _, module in self._modules(model):
            for _, parameter in self._parameters(module):
                if id(parameter) not in seen:
                    seen.add(id(parameter))
                    own(parameter).copy_(own_part(self._rounded(module, whole(parameter)), parameter))

    def agree(self) -> None:
        """Make `ranges` those of all processes' batches: each saw its own. All of them have to ask for it."""
        if self.ranges:
            paths = sorted(self.ranges)
            outwards = torch.tensor([-1.0, 1.0], device=self.ranges[paths[0]].device)
            ends = torch.stack([self.ranges[path] for path in paths]) * outwards
            torch.distributed.all_reduce(ends, torch.distributed.ReduceOp.MAX)
            self.ranges = dict(zip(paths, ends * outwards, strict=True))

    def _pack(self, model: nn.Module) -> None:
        groups = [[model.get_submodule(path) for path in paths] for paths in self.packed]
        self._beside = {one: [other for other in group if other is not one] for group in groups for one in group}

    def _rounded(self, module: nn.Module, parameter: torch.Tensor) -> torch.Tensor:
        beside = [whole(other.get_parameter("weight")) for other in self._beside.get(module, [])]
        return self.scheme.rounded(module, parameter, beside)

    def _modules(self, model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
        for path, module in model.named_modules():
            if any(True for _ in self._parameters(module)):
                yield path, module

    def _parameters(self, module: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
        for name, parameter in module.named_parameters(recurse=False):
            if parameter.is_floating_point() and self.scheme.concerns(module, name):
                yield name, parameter

    def _before(self, path: str) -> Any:
        def hook(module: nn.Module, args: Any) -> Any:
            kept = dict(self._parameters(module))
            self._kept[module] = kept
            for name, parameter in kept.items():
                # As `functional_call` does it: the forward pass sees a rounded tensor, gradients reach the parameter
                module._parameters[name] = self._rounded(module, parameter)  # type: ignore[assignment]
            if self.scheme.inputs and isinstance(module, nn.Linear) and args:
                return (self._input(path, module, args[0]), *args[1:])
            return None

        return hook

    def _after(self, module: nn.Module, args: Any, output: Any) -> None:
        module._parameters.update(self._kept.pop(module, {}))

    def _input(self, path: str, module: nn.Module, values: torch.Tensor) -> torch.Tensor:
        if self.scheme.inputs == "step":
            return fixed_point(values, self.scheme.step)
        if self.scheme.inputs == "dynamic":
            return fake_quantize_dynamic(values)
        if module.training or path not in self.ranges:
            found = values.detach()
            now = torch.stack([found.min(), found.max()]).float()
            before = self.ranges.get(path)
            self.ranges[path] = now if before is None else MOMENTUM * before.to(now) + (1 - MOMENTUM) * now
        return fake_quantize_range(values, *self.ranges[path])


def readers(model: nn.Module, batch: Mapping[str, torch.Tensor]) -> list[list[str]]:
    """Groups of linear layers that read the same tensor, as query, key and value do; paths in order of computation.

    An exporter that packs them into one product leaves them one scale where scales are per tensor.

    Args:
        batch: inputs that ``model`` is run on once.
    """
    seen: dict[int, tuple[torch.Tensor, list[str]]] = {}  # holds the tensors: an id is free again when its object goes

    def note(path: str) -> Any:
        def hook(module: nn.Module, args: Any) -> None:
            if args:
                seen.setdefault(id(args[0]), (args[0], []))[1].append(path)

        return hook

    layers = [(path, module) for path, module in model.named_modules() if isinstance(module, nn.Linear)]
    handles = [module.register_forward_pre_hook(note(path)) for path, module in layers]
    try:
        with evaluating(model), torch.no_grad():
            model(**batch)
    finally:
        for handle in handles:
            handle.remove()
    return [paths for _, paths in seen.values() if len(paths) > 1]

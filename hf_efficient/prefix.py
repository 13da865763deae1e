"""The first layers of a stack while they stand still: evaluated, and looked up where their outputs are known."""

import functools
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from accelerate.utils import gather_object
from torch import nn

from hf_efficient.example_cache import ExampleCache
from hf_efficient.functional.examples import DECODER, example_keys, join, positions, split
from hf_efficient.functional.packing import padded
from hf_efficient.timing import evaluating

logger = logging.getLogger(__name__)

TRIED_BATCHES = 3
"""After how many batches it is decided whether looking up is faster than computing."""


@torch.no_grad()
def used_before(model: nn.Module, module: nn.Module, batch: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """Names of modules that a forward pass on ``batch`` runs before it comes to ``module`` and not after, without those
    that hold it; and of parameters that it uses so.
    """
    early: list[nn.Module] = []
    late: set[nn.Module] = {model}
    reached = False

    def note(each: nn.Module, inputs: Any) -> None:
        nonlocal reached
        reached = reached or each is module
        late.add(each) if reached else early.append(each)

    hooks = [each.register_forward_pre_hook(note) for each in model.modules()]
    try:
        with evaluating(model):
            model(**batch)
    finally:
        for hook in hooks:
            hook.remove()
    later = {id(parameter) for each in late for parameter in each.parameters(recurse=False)}
    ours = {id(parameter) for each in early for parameter in each.parameters(recurse=False)} - later
    alone = {each for each in early if each not in late and module not in each.modules()}
    return (
        [name for name, each in model.named_modules() if each in alone],
        [name for name, parameter in model.named_parameters() if id(parameter) in ours],
    )


class FrozenPrefix:
    """The first layers of ``model`` while they stand still.

    In training they are evaluated, so that an example's output is always the same; with a cache, that of each example
    is kept, and layers do not run where all of a batch is known. It is left alone where it cannot serve: the output of
    a layer is not one tensor, needs gradients, has no position for each of the attention mask, or comes out otherwise
    the second time; and at a depth at which looking up is measured no faster than computing.

    Args:
        layers: of ``model``, the lowest first.
        before: modules that run before the first and stand still with it.
        cache: None to compute always.
        measured: whether to try which is faster; else the cache is always used.
        state: what `state_dict` gave.
    """

    def __init__(
        self,
        model: nn.Module,
        layers: nn.ModuleList,
        before: Sequence[nn.Module] = (),
        cache: ExampleCache | None = None,
        measured: bool = True,
        state: Mapping[str, Any] | None = None,
    ):
        self.cache, self._measured = cache, measured
        self._layers, self._before, self._depth = layers, list(before), 0
        self._kept_at: list[int] = list((state or {}).get("kept_at", []))  # depths of which the cache has outputs
        self._writing = bool((state or {}).get("writing", True))
        self._trying = False
        self._checked: set[int] = set()
        self._tried: list[tuple[float, float]] = []  # seconds to compute and to look up, of a batch
        self._keys: list[str] = []
        self._known: torch.Tensor | None = None
        self._hook = model.register_forward_pre_hook(self._begin, with_kwargs=True)

    def freeze(self, resumed: bool = False) -> None:
        """Take the next layer in."""
        layer = self._layers[self._depth]
        layer.forward = functools.partial(self._forward, self._depth, layer.forward)  # type: ignore[method-assign]
        self._depth += 1
        self._kept_at = [depth for depth in self._kept_at if depth >= self._depth - 1]
        if not resumed:
            self._writing, self._trying, self._tried = True, self._measured, []

    def remove(self) -> None:
        self._hook.remove()
        for layer in self._layers[: self._depth]:
            vars(layer).pop("forward", None)
        self._depth = 0

    def decide(self) -> None:
        """Whether to go on with the cache at this depth; all processes call this after the same steps."""
        if not self._trying or len(self._tried) < TRIED_BATCHES:
            return
        told = gather_object([[sum(seconds) for seconds in zip(*self._tried, strict=True)]])
        computing, looking_up = (sum(seconds) for seconds in zip(*told, strict=True))
        self._trying = False
        if looking_up >= computing:
            logger.info(
                "layer_freezing: %d frozen layers take %.2g s for %d batches, and %.2g s to look up: they compute",
                *(self._depth, computing, len(self._tried), looking_up),
            )
            self._writing, self._kept_at = False, []

    def state_dict(self) -> dict[str, Any]:
        return {"kept_at": list(self._kept_at), "writing": self._writing}

    def _begin(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._keys, self._known = [], None
        if not model.training or not self._depth or torch.compiler.is_compiling():
            return
        for module in [*self._before, *self._layers[: self._depth]]:
            module.eval()
        if self.cache is None or args or not (self._writing or self._kept_at):
            return
        start = time.perf_counter()
        self._mask = positions(kwargs)
        read = {name: value for name, value in kwargs.items() if name != "labels" and not name.startswith(DECODER)}
        tensors = {name: value for name, value in read.items() if isinstance(value, torch.Tensor) and value.dim()}
        self._keys = example_keys(tensors, self._mask, self._mask)
        self._hashing = time.perf_counter() - start
        for depth in sorted(self._kept_at, reverse=True):
            self._known, self._known_at = self._look_up(depth), depth
            if self._known is not None:
                break

    def _look_up(self, depth: int) -> torch.Tensor | None:
        """What the first ``depth`` layers put out, if it is known of all examples."""
        rows = [self.cache.get(f"{depth}-{key}") for key in self._keys]  # type: ignore[union-attr]
        found = [row["hidden"] for row in rows if row is not None]
        if len(found) < len(rows):
            return None
        device = next(self._layers.parameters()).device
        return join(found, self._mask, device).to(found[0].dtype)

    def _forward(self, index: int, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        if torch.compiler.is_compiling():
            return forward(*args, **kwargs)
        if self._known is not None and index < self._known_at and self._known_at in self._checked:
            return self._known
        if index == 0 and self._keys:
            self._started = _now()
            if [*args, *kwargs.values()][0].requires_grad:
                self._give_up("what comes before the first layer still learns")
        output = forward(*args, **kwargs)
        if self._keys and index == self._depth - 1:
            self._keep(padded(self._layers[index], output))
        return output

    def _keep(self, output: Any) -> None:
        if not isinstance(output, torch.Tensor):
            return self._give_up("the output of a layer is not one tensor")
        if self._mask is not None and output.shape[:2] != self._mask.shape:
            return self._give_up("hidden states have other positions than the attention mask")
        if self._known is not None and self._known_at == self._depth:
            return self._compare(output, self._known)
        if not self._writing:
            return None
        passed = _now() - self._started
        if self._depth not in self._kept_at:
            self._kept_at.append(self._depth)
        for key, row in zip(self._keys, split(output, self._mask), strict=True):
            if (name := f"{self._depth}-{key}") not in self.cache:  # type: ignore[operator]
                self.cache.put(name, {"hidden": row.contiguous().clone()})  # type: ignore[union-attr]
        if self._trying and self._known is None and len(self._tried) < TRIED_BATCHES:
            start = _now()
            self._look_up(self._depth)
            self._tried.append((passed, _now() - start + self._hashing))
        return None

    def _compare(self, output: torch.Tensor, known: torch.Tensor) -> None:
        """What is computed with what is known, the first time that anything is."""
        mask = torch.ones_like(output[..., 0], dtype=torch.bool) if self._mask is None else self._mask
        ours, theirs = (each.float()[mask] for each in (output, known))
        if (ours - theirs).norm() > 0.02 * ours.norm():  # 16-bit numbers in batches of another length differ by less
            return self._give_up("the same example came out otherwise the second time")
        self._checked.add(self._depth)
        return None

    def _give_up(self, reason: str) -> None:
        logger.warning("layer_freezing: %s, so outputs of frozen layers are computed each time", reason)
        self.cache, self._keys, self._known, self._trying = None, [], None, False


def _now() -> float:
    if torch.accelerator.is_available():
        torch.accelerator.synchronize()
    return time.perf_counter()

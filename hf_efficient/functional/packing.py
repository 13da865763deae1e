"""Tokens of a padded batch side by side without the padding, while an encoder's layers compute."""

import functools
import inspect
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface

NAME = "packed"
"""Of the attention implementation, and of its masks, in transformers' interfaces."""


@dataclass(frozen=True)
class Layout:
    """Where the tokens of a padded batch are.

    Attributes:
        mask: (examples, positions), true at tokens.
        index: (tokens,) of those positions, counted through the whole batch.
    """

    mask: torch.Tensor
    index: torch.Tensor

    def pack(self, values: torch.Tensor) -> torch.Tensor:
        """(examples, positions, *) -> (tokens, *)."""
        return _Pack.apply(values.flatten(0, 1), self.index)

    def unpack(self, values: torch.Tensor) -> torch.Tensor:
        """(tokens, *) -> (examples, positions, *), zero at padding."""
        return _Unpack.apply(values, self.index, self.mask.numel()).unflatten(0, self.mask.shape)


class _Pack(torch.autograd.Function):
    """Rows at distinct indices. The gradient is put into its rows, where that of indexing would be added up in them."""

    @staticmethod
    def forward(ctx: Any, values: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(index)
        ctx.rows = len(values)
        return values.index_select(0, index)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:  # type: ignore[override]
        (index,) = ctx.saved_tensors
        return _Unpack.apply(gradient, index, ctx.rows), None


class _Unpack(torch.autograd.Function):
    """Rows put at distinct indices of so many, the others zero."""

    @staticmethod
    def forward(ctx: Any, values: torch.Tensor, index: torch.Tensor, rows: int) -> torch.Tensor:
        ctx.save_for_backward(index)
        return values.new_zeros(rows, *values.shape[1:]).index_copy_(0, index, values)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None, None]:  # type: ignore[override]
        (index,) = ctx.saved_tensors
        return _Pack.apply(gradient, index), None, None


def register() -> None:
    """Make `packed_attention` and `padding_mask` known to transformers, by `NAME`."""
    AttentionInterface.register(NAME, packed_attention)
    AttentionMaskInterface.register(NAME, padding_mask)


def padding_mask(attention_mask: torch.Tensor | None = None, **kwargs: Any) -> torch.Tensor | None:
    """What an encoder hands to its layers as mask: (examples, positions), or None where nothing is padding."""
    return None if attention_mask is None or bool(attention_mask.all()) else attention_mask.bool()


def packed_attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: "Layout | torch.Tensor | None",
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Attention of each token to those of its own example.

    Args:
        query, key, value: (1, heads, tokens, width) of a packed batch, else (examples, heads, positions, width).
        attention_mask: the layout of a packed batch; else a mask as `scaled_dot_product_attention` takes it, or None.
        sliding_window: one more than how far a token sees to each side.

    Returns:
        (1, tokens, heads, width), or (examples, positions, heads, width).

    Raises:
        NotImplementedError: attention to earlier tokens alone, or by learnt distances.
    """
    if getattr(module, "is_causal", False):
        raise NotImplementedError("each token sees those before it alone")
    if kwargs.get("position_bias") is not None:
        raise NotImplementedError("attention is biased by distances")
    reach = None if sliding_window is None else sliding_window - 1
    attend = functools.partial(scaled_dot_product_attention, dropout_p=dropout, scale=scaling)
    if not isinstance(attention_mask, Layout):
        mask = _within(reach, attention_mask, query)
        return attend(query, key, value, mask).transpose(1, 2), None
    tokens = [each[0].transpose(0, 1) for each in (query, key, value)]
    if _has_kernel(query, dropout):
        return _variable_lengths(tokens, attention_mask, scaling, reach)[None], None
    query, key, value = (attention_mask.unpack(each).transpose(1, 2) for each in tokens)
    mask = _within(reach, attention_mask.mask[:, None, None, :], query)
    return attention_mask.pack(attend(query, key, value, mask).transpose(1, 2))[None], None


def _within(reach: int | None, mask: torch.Tensor | None, query: torch.Tensor) -> torch.Tensor | None:
    """``mask``, and nothing farther than ``reach``; a row at padding sees its own neighbours, never nothing."""
    length = query.shape[2]
    if reach is None or length <= reach + 1:
        return mask
    place = torch.arange(length, device=query.device)
    near = (place[:, None] - place).abs() <= reach
    if mask is None:
        return near
    both = mask & near
    return both | ~both.any(-1, keepdim=True)


def _has_kernel(query: torch.Tensor, dropout: float) -> bool:
    """Whether flash attention for variable lengths, which has no dropout, takes it."""
    if query.device.type != "cuda" or dropout or query.dtype not in (torch.float16, torch.bfloat16):
        return False
    return torch.cuda.get_device_capability(query.device) >= (8, 0) and query.shape[-1] % 8 == 0


def _variable_lengths(
    tokens: list[torch.Tensor], layout: Layout, scaling: float | None, reach: int | None
) -> torch.Tensor:
    from torch.nn.attention.varlen import varlen_attn

    ends = layout.mask.sum(1, dtype=torch.int32).cumsum(0, dtype=torch.int32)
    starts = nn.functional.pad(ends, (1, 0))
    longest = layout.mask.shape[1]
    window = (-1, -1) if reach is None else (reach, reach)
    query, key, value = (each.contiguous() for each in tokens)
    found = varlen_attn(query, key, value, starts, starts, longest, longest, scale=scaling, window_size=window)
    assert isinstance(found, torch.Tensor)  # a tuple only where more is asked for
    return found


class PackedLayers:
    """Hooks by which a stack of layers computes on packed batches.

    The first layer's input is packed, the last one's output has its padding back, zero; so what comes before and after,
    position embeddings and pooling, is as ever. So is the output of a layer in between that other hooks look at.

    Args:
        layers: that take hidden states (examples, positions, width) first, and an ``attention_mask`` that
            `padding_mask` made.
    """

    def __init__(self, layers: nn.ModuleList):
        self.layout: Layout | None = None
        self.tokens = self.positions = 0
        self._layers = list(layers)
        self._handles: list[Any] = []
        for index, layer in enumerate(self._layers):
            before, after = self._before(layer, index == 0), self._after(index == len(self._layers) - 1)
            self._handles.append(layer.register_forward_pre_hook(before, with_kwargs=True))
            self._handles.append(layer.register_forward_hook(after, prepend=True))
            layer._packed = self  # type: ignore[assignment]

    def remove(self) -> None:
        for handle in self._handles:
            handle.remove()
        for layer in self._layers:
            vars(layer).pop("_packed", None)
        self._handles, self.layout = [], None

    def _before(self, layer: nn.Module, first: bool) -> Any:
        names = list(inspect.signature(type(layer).forward).parameters)[1:]
        place = names.index("attention_mask")

        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            given: dict[Any, Any] = {**dict(enumerate(args)), **kwargs}
            key = "attention_mask" if "attention_mask" in kwargs else place
            mask, hidden = given.get(key), given[0 if args else names[0]]
            if first:
                self._lay_out(mask, hidden, module.training)
            if self.layout is None:
                return None
            given[key] = self.layout
            if hidden.shape[:2] == self.layout.mask.shape:
                given[0 if args else names[0]] = self.layout.pack(hidden)[None]
            if "position_embeddings" in given:
                given["position_embeddings"] = tuple(self._rows(each) for each in given["position_embeddings"])
            return tuple(given[index] for index in range(len(args))), {name: given[name] for name in kwargs}

        return hook

    def _lay_out(self, mask: torch.Tensor | None, hidden: torch.Tensor, training: bool) -> None:
        self.layout = None
        if mask is not None and mask.shape == hidden.shape[:2]:
            self.layout = Layout(mask, mask.flatten().nonzero()[:, 0])
        if training:
            self.positions += hidden[..., 0].numel()
            self.tokens += hidden[..., 0].numel() if self.layout is None else len(self.layout.index)

    def _rows(self, values: torch.Tensor) -> torch.Tensor:
        """(1 or examples, positions, *) of each position -> (1, tokens, *)."""
        assert self.layout is not None
        return self.layout.pack(values.expand(len(self.layout.mask), *values.shape[1:]))[None]

    def _after(self, last: bool) -> Any:
        def hook(module: nn.Module, args: Any, output: Any) -> Any:
            if last or len(module._forward_hooks) > 1:
                return self.padded(output)
            return None

        return hook

    def padded(self, output: Any) -> Any:
        """``output`` of a layer, or of a module in one, with the batch's padding; of a tuple, its first."""
        if isinstance(output, tuple):
            return (self.padded(output[0]), *output[1:])
        if self.layout is None or output.shape[:2] != (1, len(self.layout.index)):
            return output
        return self.layout.unpack(output[0])


def padded(layer: nn.Module, output: Any) -> Any:
    """``output`` of ``layer``, or of a module in it, as it would be if the layer's batches were not packed."""
    packed: PackedLayers | None = vars(layer).get("_packed")
    return output if packed is None else packed.padded(output)

"""A model with fewer token embeddings: rows, output layer, padding and the token ids in its configs."""

import re
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from hf_efficient.errors import ConfigError
from hf_efficient.functional.vocabulary import trim_embedding

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_IDS = re.compile(r"_token_ids?$|_to_id$")
_SUPPRESSED = re.compile(r"^(begin_)?suppress_tokens$")


def token_embeddings(model: nn.Module) -> nn.Embedding | None:
    """The embedding of token ids; None where the model takes none, as image models."""
    try:
        found = model.get_input_embeddings()  # type: ignore[operator]
    except (AttributeError, NotImplementedError):
        return None
    return found if isinstance(found, nn.Embedding) else None


def predicts_tokens(model: nn.Module) -> bool:
    """Whether the model has a language-modelling head, so that its labels are token ids."""
    return getattr(model, "get_output_embeddings", lambda: None)() is not None


def special_ids(model: nn.Module) -> set[int]:
    """Ids that ``model`` or its configs name, e.g. padding; and those that must not move.

    Families that count positions from the padding id (RoBERTa) would look other positions up if it moved.
    """
    embeddings = token_embeddings(model)
    rows = 0 if embeddings is None else embeddings.num_embeddings
    found = {index for config in _configs(model) for name, value in _named(config, _IDS) for index in _ids(value)}
    padding = None if embeddings is None else embeddings.padding_idx
    if padding is not None:
        found.add(padding)
        if any(_counts_from(module, padding) for module in model.modules() if not _is_tied(module, embeddings)):
            found.update(range(padding + 1))
    return {index for index in found if 0 <= index < rows}


def _counts_from(module: nn.Module, padding: int) -> bool:
    if hasattr(module, "create_position_ids_from_input_ids"):
        return True
    return isinstance(module, nn.Embedding) and module.padding_idx == padding


def _is_tied(module: nn.Module, embeddings: nn.Embedding | None) -> bool:
    return embeddings is not None and getattr(module, "weight", None) is embeddings.weight


def trim_token_embeddings(model: "PreTrainedModel", kept: torch.Tensor) -> None:
    """Keep only the rows ``kept`` of ``model``'s token embeddings, in place; its output layer and configs follow.

    Args:
        kept: [new id -> old id], shape (kept,), ascending, `special_ids` among them.

    Raises:
        ConfigError: encoder and decoder have vocabularies of their own.
    """
    embeddings: Any = token_embeddings(model)
    rows, count = embeddings.num_embeddings, len(kept)
    _require_one_vocabulary(model, embeddings)
    padding = embeddings.padding_idx
    modules: list[Any] = list(model.modules())
    padded = [] if padding is None else [m for m in modules if getattr(m, "padding_idx", None) == padding]
    output: Any = model.get_output_embeddings()
    tensors = {id(t): t for t in (embeddings.weight, getattr(output, "weight", None), getattr(output, "bias", None))}
    with torch.no_grad():
        for tensor in tensors.values():
            if tensor is not None:
                tensor[:count] = trim_embedding(tensor, kept)
        for name, buffer in model.named_buffers():
            if name.endswith("final_logits_bias"):
                buffer[..., :count] = buffer[..., kept.to(buffer.device)]
    model.resize_token_embeddings(count, mean_resizing=False)  # what is left are the first rows
    new = {int(old): index for index, old in enumerate(kept)}
    if isinstance(output, nn.Linear):  # Marian leaves it as it was
        model.get_output_embeddings().out_features = count
    for module in padded:
        module.padding_idx = new[padding]
    for config in _configs(model):
        _renumber(config, new, rows)


def _require_one_vocabulary(model: Any, embeddings: nn.Embedding) -> None:
    if not getattr(model.config, "is_encoder_decoder", False):
        return
    for name in ("get_encoder", "get_decoder"):
        part = getattr(model, name, lambda: None)()
        own = None if part is None else token_embeddings(part)
        if own is not None and own.weight is not embeddings.weight:
            raise ConfigError(
                f"the vocabulary of {type(model).__name__} cannot be trimmed: its encoder and decoder have embeddings "
                "of their own; allowed are models that share them"
            )


def _configs(model: Any) -> Iterator[Any]:
    """The model's config, the configs within it, and the generation config."""
    config = getattr(model, "config", None)
    if config is not None:
        yield config
        for name in getattr(config, "sub_configs", {}):
            if (part := getattr(config, name, None)) is not None:
                yield part
    if getattr(model, "generation_config", None) is not None:
        yield model.generation_config


def _named(config: Any, pattern: re.Pattern[str]) -> list[tuple[str, Any]]:
    return [(name, value) for name, value in vars(config).items() if pattern.search(name) and value is not None]


def _ids(value: Any) -> Iterator[int]:
    if isinstance(value, int) and not isinstance(value, bool):
        yield value
    elif isinstance(value, Mapping | list | tuple):
        for item in value.values() if isinstance(value, Mapping) else value:
            yield from _ids(item)


def _renumber(config: Any, new: Mapping[int, int], rows: int) -> None:
    """Ids beyond the embedding's ``rows`` are no tokens of this model, and stay."""
    for name, value in _named(config, _IDS):
        setattr(config, name, _mapped(value, lambda index: new[index] if 0 <= index < rows else index))
    for name, value in _named(config, _SUPPRESSED):
        setattr(config, name, [new[index] for index in value if index in new])


def _mapped(value: Any, change: Callable[[int], int]) -> Any:
    if isinstance(value, Mapping):
        return {key: _mapped(item, change) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_mapped(item, change) for item in value]
    return change(value) if isinstance(value, int) and not isinstance(value, bool) else value

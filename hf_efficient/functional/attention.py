"""Which kernel computes a model's attention."""

from typing import Any

from hf_efficient.errors import ConfigError


def implementation_of(model: Any) -> str | None:
    """Which one a model uses; None where its code knows no choice."""
    return getattr(getattr(model, "config", None), "_attn_implementation", None)


def is_fused(model: Any) -> bool:
    """Whether a training of the model runs PyTorch's fused kernel: it has none with dropout on a CPU."""
    return implementation_of(model) == "sdpa" and not any("att" in name for name in configured_dropout(model))


def configured_dropout(model: Any) -> dict[str, float]:
    """Rates above 0 in its configuration, by their names there: of attention alone, as "attn_pdrop", and of more."""
    config = getattr(model, "config", None)
    named = config.to_dict() if config is not None else {}
    return {name: value for name, value in named.items() if "drop" in name and isinstance(value, float) and value > 0}


def switch_attention(model: Any, implementation: str, asked: str, remedy: str) -> None:
    """Compute attention by another implementation of transformers' interface.

    Args:
        asked: who asks for it, as "attention.implementation=eager".
        remedy: what to do where the model's code has only one.

    Raises:
        ConfigError: starts with ``asked``: the implementation does not work here, or not with this model.
    """
    try:
        model.set_attn_implementation(implementation)
    except (ValueError, ImportError) as error:
        raise ConfigError(f"{asked} does not work here: {error}") from error
    if implementation_of(model) != implementation:
        raise ConfigError(f"{asked}: the code of {type(model).__name__} has only {implementation_of(model)}; {remedy}")

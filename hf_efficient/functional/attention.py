"""Which kernel computes a model's attention."""

from typing import Any

from hf_efficient.errors import ConfigError


def implementation_of(model: Any) -> str | None:
    """Which one a model uses; None where its code knows no choice."""
    return getattr(getattr(model, "config", None), "_attn_implementation", None)


def is_fused(model: Any) -> bool:
    """Whether a training of the model runs PyTorch's fused kernel: it has none with dropout on a CPU."""
    names = ("attention_probs_dropout_prob", "attention_dropout")
    dropped = any(getattr(getattr(model, "config", None), name, 0) for name in names)
    return implementation_of(model) == "sdpa" and not dropped


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

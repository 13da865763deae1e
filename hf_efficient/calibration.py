"""What a model must have learnt before others can learn from it: judged on calibration batches."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch

from hf_efficient.errors import ConfigError
from hf_efficient.functional.structured import majority_share
from hf_efficient.timing import evaluating

if TYPE_CHECKING:
    from torch import nn

Batches = Sequence[Mapping[str, torch.Tensor]]


def require_trained(name: str, model: "nn.Module", batches: Batches, remedies: Sequence[str] = ()) -> None:
    """Refuse a classifier that is no better on ``batches`` than always answering the most frequent class.

    Models that do not classify, and batches without integer labels, pass.

    Args:
        name: who needs a trained model: starts the message.
        remedies: what else would help, besides training it first.

    Raises:
        ConfigError: an untrained classifier.
    """
    right, labels = [], []
    for logits, target in _predictions(model, batches):
        valid = target != -100
        labels.append(target[valid])
        right.append(logits.argmax(-1)[valid] == target[valid])
    if not labels:
        return
    accuracy, majority = torch.cat(right).float().mean().item(), majority_share(torch.cat(labels))
    if accuracy > majority:
        return
    ways = [
        "set dense_epochs (e.g. dense_epochs=3)",
        "train a stage before this one for long enough",
        *remedies,
    ]
    raise ConfigError(
        f"{name} needs a trained model: on calibration data this one has accuracy {accuracy:.3g}, the most frequent "
        f"class alone gives {majority:.3g}. Fine-tune it first: {', '.join(ways[:-1])}, or {ways[-1]}"
    )


@torch.no_grad()
def _predictions(model: "nn.Module", batches: Batches) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Pairs (logits (..., classes), integer labels (...)); empty for models that do not classify."""
    pairs: list[tuple[torch.Tensor, torch.Tensor]] = []
    if type(model).__name__.endswith("ForCTC"):  # labels tell what comes one after the other, not when
        return pairs
    with evaluating(model):
        for batch in batches:
            logits = getattr(model(**batch), "logits", None)
            labels = batch.get("labels")
            if logits is None or not isinstance(labels, torch.Tensor):  # of objects, lists
                break
            if labels.is_floating_point() or logits.shape[:-1] != labels.shape:
                break
            pairs.append((logits, labels))
    return pairs

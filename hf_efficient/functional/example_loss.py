"""The loss of each example by itself, from logits and labels."""

import torch
import torch.nn.functional as F

IGNORED = -100


def shifts_labels(model_class: str) -> bool:
    """Whether a model of this class predicts the next token: logits at a position go with the label after it."""
    return model_class.endswith(("ForCausalLM", "LMHeadModel"))


def example_losses(
    logits: torch.Tensor,
    labels: torch.Tensor,
    multi_label: bool = False,
    shifted: bool = False,
    label_smoothing: float = 0.0,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean loss of each example, and how many labels it is a mean over; both (examples,), the losses fp32.

    The mean of the losses, each weighted by its number of labels, is what transformers' models return for the batch.

    Args:
        logits: (examples, classes), or (examples, positions, classes).
        labels: classes, (examples,) or (examples, positions), -100 where there is none: cross entropy. Floats of the
            shape of the logits or (examples,): binary cross entropy with ``multi_label``, else squared error.
        shifted: see `shifts_labels`.
        label_smoothing: of cross entropy (Szegedy et al. 2016, arXiv 1512.00567).

    Raises:
        ValueError: the shapes do not go together.
    """
    logits = logits.float()
    if labels.is_floating_point():
        said = logits.reshape(labels.shape) if logits.numel() == labels.numel() else logits
        if said.shape != labels.shape:
            raise ValueError(f"logits {tuple(logits.shape)} do not go with labels {tuple(labels.shape)}")
        each = (
            F.binary_cross_entropy_with_logits(said, labels.float(), reduction="none")
            if multi_label
            else F.mse_loss(said, labels.float(), reduction="none")
        )
        return each.flatten(1).mean(1) if each.dim() > 1 else each, torch.ones(len(labels), device=labels.device)
    if shifted:
        logits, labels = logits[:, :-1], labels[:, 1:]
    if logits.shape[:-1] != labels.shape:
        raise ValueError(f"logits {tuple(logits.shape)} do not go with labels {tuple(labels.shape)}")
    flat = F.cross_entropy(
        logits.flatten(0, -2),
        labels.flatten(),
        ignore_index=IGNORED,
        reduction="none",
        label_smoothing=label_smoothing,
    )
    counts = labels.ne(IGNORED).reshape(len(labels), -1).sum(1).float()
    return flat.reshape(len(labels), -1).sum(1) / counts.clamp_min(1), counts

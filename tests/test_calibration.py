"""Who has learnt something, and who has not."""

import pytest
import torch

from hf_efficient.calibration import require_trained
from hf_efficient.errors import ConfigError
from tests.tiny import pad, text_examples, text_model


def test_untrained_classifier_is_refused() -> None:
    batch = pad(text_examples(16).examples)
    model = text_model().train()
    torch.nn.init.zeros_(model.classifier.weight)
    with pytest.raises(
        ConfigError, match=r"^pruning needs .*accuracy 0.*dense_epochs.*stage before this one for long enough, or rest$"
    ):
        require_trained("pruning", model, [batch], ["rest"])
    assert model.training
    require_trained("pruning", model, [{key: batch[key] for key in ("input_ids", "attention_mask")}])


def test_better_than_the_majority_passes() -> None:
    batch = pad(text_examples(16).examples)
    model = text_model().eval()
    with torch.no_grad():
        logits = model(**batch).logits
        model.classifier.bias[0] -= (logits[:, 0] - logits[:, 1]).median()  # so that it answers both
        batch["labels"] = model(**batch).logits.argmax(-1)
    require_trained("pruning", model, [batch])

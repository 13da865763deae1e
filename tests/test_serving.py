"""Models in the runtime that will serve them, for as long as they are timed."""

from typing import Any

import pytest
import torch

from hf_efficient import ConfigError
from hf_efficient.candidates import CANDIDATES
from hf_efficient.guard import logits_of
from hf_efficient.serving import KINDS, serving
from tests.exports import CASES


def test_names_follow_the_table() -> None:
    assert set(KINDS.values()) == {None, *(key for key, one in CANDIDATES.items() if not one.mixed)}
    assert {"torch", "onnx", "onnx-dynamic", "openvino-static"} <= set(KINDS)


@pytest.mark.parametrize("kind", ["torch", "onnx-dynamic", "openvino-static"])
def test_computes_what_the_model_does(kind: str) -> None:
    case = CASES["text"]
    model, examples = case.model(), case.examples()
    with serving(model, kind, examples, case.collate) as served:
        batch = served.collate(list(served.examples[:4]))
        found = logits_of(served.runtime.predict(batch))
    with torch.no_grad():
        expected = model(**batch).logits
    assert (found - expected).abs().max() < 0.2 * expected.abs().max()


def test_refuses_what_it_cannot_serve() -> None:
    case = CASES["text"]
    for kind, examples, message in (
        ("onx", case.examples(), "did you mean 'onnx'"),
        ("torch", [], "real examples"),
    ):
        with pytest.raises(ConfigError, match=message), serving(case.model(), kind, examples, case.collate):
            pass


def test_a_trainer_hands_it_to_optimizations(tmp_path: Any) -> None:
    from hf_efficient import EfficientTrainer, EfficientTrainingArguments
    from tests.test_parity import build

    trainer = build(EfficientTrainer, EfficientTrainingArguments, tmp_path)
    with trainer.context().serving(trainer.model, "torch") as served:
        assert len(served.examples) == len(trainer.train_dataset)
        assert served.runtime.predict(served.collate(list(served.examples[:3]))).logits.shape[0] == 3

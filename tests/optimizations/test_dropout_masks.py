import gc
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional
from transformers import TrainerCallback

from hf_efficient import EfficientTrainer, EfficientTrainingArguments
from hf_efficient.optimizations import dropout_masks
from hf_efficient.optimizations.dropout_masks import DropoutMasks, draw
from hf_efficient.proposal import Observed
from tests.test_parity import build
from tests.tiny import text_model

NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


class TestDraw:
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.bool], ids=str)
    @pytest.mark.parametrize("p", [0.1, 0.5, 0.9, 0.99])
    def test_ones_come_at_their_probability_and_independently(self, p: float, dtype: torch.dtype) -> None:
        count = 400_000
        drawn = draw(torch.empty(100, count // 100, dtype=dtype), p, generator=torch.Generator().manual_seed(1))
        values = drawn.double().flatten()
        assert set(values.tolist()) == {0.0, 1.0}
        deviation = (p * (1 - p) / count) ** 0.5
        assert abs(values.mean().item() - p) < 4 * deviation
        for apart in (1, 2, 3, 4, 5):  # four are drawn together
            together = torch.corrcoef(torch.stack([values[:-apart], values[apart:]]))[0, 1].item()
            assert abs(together) < 4 / count**0.5

    @pytest.mark.parametrize("p", [2.3e-5, 1 - 2.3e-5])
    def test_a_probability_too_fine_for_16_bits(self, p: float) -> None:
        count = 20_000_000
        rare = draw(torch.empty(count), p, generator=torch.Generator().manual_seed(0)).eq(float(p < 0.5)).sum().item()
        assert abs(rare - 460) < 4 * 460**0.5  # with 16 bits it were 610

    @pytest.mark.parametrize(("p", "expected"), [(0.0, 0), (1.0, 1000)])
    def test_never_and_always(self, p: float, expected: int) -> None:
        assert draw(torch.empty(1000), p).sum() == expected

    @pytest.mark.parametrize("shape", [(0,), (), (1,), (3, 5)])
    def test_any_shape(self, shape: tuple[int, ...]) -> None:
        assert draw(torch.full(shape, 7.0), 0.5).le(1).all()

    def test_a_part_of_a_tensor(self) -> None:
        whole = torch.full((4, 6), 7.0)
        draw(whole[:, ::2], 0.5)
        assert whole[:, ::2].le(1).all()
        assert whole[:, 1::2].eq(7).all()

    @pytest.mark.parametrize("p", [-0.1, 1.1])
    def test_refuses_what_stock_refuses(self, p: float) -> None:
        for fill in (torch.Tensor.bernoulli_, draw):
            with pytest.raises(RuntimeError, match=r"expects p to be in \[0, 1\]"):
                fill(torch.empty(3), p)

    def test_repeats_with_the_seed_and_leaves_other_generators_alone(self) -> None:
        def own() -> torch.Tensor:
            return draw(torch.empty(50), 0.5, generator=torch.Generator().manual_seed(3))

        before = torch.get_rng_state()
        assert own().equal(own())
        dropout_masks.speedup(elements=100)
        assert before.equal(torch.get_rng_state())
        torch.manual_seed(3)
        assert draw(torch.empty(50), 0.5).equal(own())


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[torch.Size]:
    """Shapes of the masks that were drawn here."""
    shapes: list[torch.Size] = []

    def counted(out: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        shapes.append(out.shape)
        return draw(out, *args, **kwargs)

    monkeypatch.setattr(dropout_masks, "draw", counted)
    return shapes


def trainer(folder: Path, *callbacks: Any, **given: Any) -> EfficientTrainer:
    settings: dict[str, Any] = {"optimizations": {"dropout_masks": {}}, "measure_seconds": 0, "max_steps": 2}
    given = {"callbacks": list(callbacks), **given}
    return build(EfficientTrainer, EfficientTrainingArguments, folder, given=given, **settings)


def test_in_place_for_layers_and_attention_while_it_trains(tmp_path: Path, drawn: list[torch.Size]) -> None:
    trainer(tmp_path).train()
    assert {len(shape) for shape in drawn} == {2, 3, 4}  # of the pooled output, hidden states and attention
    count = len(drawn)
    functional.dropout(torch.ones(10), 0.5)
    assert len(drawn) == count


class Fails(TrainerCallback):
    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        raise OSError("disk full")


def test_a_training_that_fails_takes_it_along(tmp_path: Path, drawn: list[torch.Size]) -> None:
    made = trainer(tmp_path, Fails())
    with pytest.raises(OSError, match="disk full"):
        made.train()
    assert drawn
    del made
    gc.collect()
    count = len(drawn)
    functional.dropout(torch.ones(10), 0.5)
    assert len(drawn) == count


class TestProposals:
    def observed(self, **config: float) -> Observed:
        return Observed(EfficientTrainingArguments("out", use_cpu=True), text_model(**config), computing=0.9)

    def test_by_how_much_faster_drawing_is(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(dropout_masks, "speedup", lambda: 4.0)
        (proposal,) = DropoutMasks.proposals(self.observed())
        assert proposal.gain == pytest.approx(0.75 * 0.2 * 0.9)
        assert not proposal.settings

    def test_none_without_dropout(self) -> None:
        assert not list(DropoutMasks.proposals(self.observed(**NO_DROPOUT)))

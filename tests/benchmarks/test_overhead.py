"""The benchmark runs, and compares what it says it compares; its figure is not judged here."""

from pathlib import Path

from transformers import Trainer, TrainingArguments

from benchmarks import overhead
from hf_efficient import EfficientTrainer, EfficientTrainingArguments


def test_one_ratio_per_pair() -> None:
    found = overhead.ratios(2)
    assert len(found) == 2
    assert all(0.1 < ratio < 10 for ratio in found)


def test_both_do_the_same_steps(tmp_path: Path) -> None:
    stock = overhead.trainer(Trainer, TrainingArguments, str(tmp_path / "stock"))
    ours = overhead.trainer(EfficientTrainer, EfficientTrainingArguments, str(tmp_path / "ours"))
    for one in (stock, ours):
        assert overhead.seconds(one) > 0
    assert stock.state.global_step == ours.state.global_step == overhead.STEPS
    assert type(ours) is EfficientTrainer

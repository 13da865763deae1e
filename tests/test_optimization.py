"""What optimizations share: arguments changed in a copy."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from transformers import TrainingArguments

from hf_efficient import EfficientTrainingArguments
from hf_efficient.optimization import changed

QUIET = {"report_to": "none", "use_cpu": True}


@pytest.mark.parametrize("changes", [{"bf16": True}, {"optim": "adafactor"}, {"torch_compile_backend": "eager"}])
def test_what_stock_derives_is_derived_anew(tmp_path: Path, changes: dict[str, Any]) -> None:
    args = EfficientTrainingArguments(str(tmp_path), optimizations={"precision": {}}, **QUIET)
    before, made, anew = args.to_dict(), changed(args, **changes), replace(args, **changes)
    assert type(made) is EfficientTrainingArguments
    assert made.to_dict() == anew.to_dict()
    assert (made.mixed_precision, made.device) == (anew.mixed_precision, anew.device)
    assert args.to_dict() == before


def test_what_stock_refuses_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="requires non-zero --logging_steps"):
        changed(TrainingArguments(str(tmp_path), **QUIET), logging_steps=0)


@dataclass
class FillsIn(TrainingArguments):
    """As classes of other libraries do."""

    size: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.size is not None:
            raise ValueError("size is filled in here")
        self.size = 4


def test_what_another_class_filled_in_stays(tmp_path: Path) -> None:
    args = FillsIn(str(tmp_path), **QUIET)
    with pytest.raises(ValueError, match="filled in here"):
        replace(args, bf16=True)
    made = changed(args, bf16=True)
    assert (made.size, made.bf16, made.mixed_precision) == (4, True, "bf16")

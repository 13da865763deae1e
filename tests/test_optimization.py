"""What optimizations share: arguments changed in a copy, and what they refuse where weights are shared out."""

import re
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from accelerate import Accelerator
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType
from transformers import TrainingArguments

from hf_efficient import ConfigError, EfficientTrainingArguments
from hf_efficient.optimization import changed, refuse_sharding
from hf_efficient.plan import Plan, build_optimizations
from tests.test_contract import ROWS
from tests.test_trainer import trainer

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


GUIDE = Path(__file__).parents[1] / "docs" / "guides" / "several_devices.md"
SHARED_OUT = {
    "fsdp1": (DistributedType.FSDP, 1, False),
    "fsdp2": (DistributedType.FSDP, 2, False),
    "zero2": (DistributedType.DEEPSPEED, 0, False),
    "zero3": (DistributedType.DEEPSPEED, 0, True),
}


def refused(way: str, monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """The optimizations of the contract table that are refused where weights are shared out in this way."""
    Accelerator(cpu=True)
    found = set()
    with monkeypatch.context() as patch:
        kind, version, is_zero3 = SHARED_OUT[way]
        patch.setitem(PartialState()._shared_state, "distributed_type", kind)
        patch.setattr(AcceleratorState, "is_fsdp2", property(lambda self: version == 2))
        patch.setattr("transformers.integrations.is_deepspeed_zero3_enabled", lambda: is_zero3)
        for name, row in ROWS.items():
            (one,) = build_optimizations({name: row.settings})
            try:
                refuse_sharding(one, None)
            except ConfigError as error:
                assert f"{name} " in str(error)  # noqa: PT017
                assert "drop fsdp or deepspeed" in str(error)  # noqa: PT017
                assert ("take FSDP2" in str(error)) == (name in ("pruning", "quantization"))  # noqa: PT017
                found.add(name)
    return found


def test_the_guide_says_what_goes_with_shared_out_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = [line for line in GUIDE.read_text(encoding="utf-8").splitlines() if line[:3] in ("| r", "| n")]
    always, fsdp2, zero3, never = (set(re.findall("`(.+?)`", line.split("|")[2])) for line in lines)
    assert refused("fsdp2", monkeypatch) == always
    assert refused("fsdp1", monkeypatch) == refused("zero2", monkeypatch) == always | fsdp2
    assert refused("zero3", monkeypatch) == always | fsdp2 | zero3
    assert never == set(ROWS) - always - fsdp2 - zero3


def test_parts_of_matrices_are_refused_like_zero3() -> None:
    model = SimpleNamespace(is_distributed_loading_by_transformers=True)
    (cut, batches) = build_optimizations({"structured_pruning": {"keep_layers": 2}, "length_batching": {}})
    with pytest.raises(ConfigError, match=r"structured_pruning changes .* loaded in parts.* without tp_plan"):
        refuse_sharding(cut, model)
    refuse_sharding(batches, model)


def test_a_plan_refuses_before_it_prepares_anything(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = trainer(tmp_path, optimizations={"quantization": {}})
    monkeypatch.setitem(PartialState()._shared_state, "distributed_type", DistributedType.FSDP)
    monkeypatch.setattr(AcceleratorState, "is_fsdp2", False)
    with pytest.raises(ConfigError, match="quantization rounds whole weights, but FSDP"):
        Plan(made.optimizations).prepare_model(made.model, made.context())

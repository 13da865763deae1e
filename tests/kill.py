"""A training that is killed when it has chosen what to cut, and before it cuts."""

from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from hf_efficient.optimization import Optimization
from tests.test_parity import assert_same_tensors, train


class Killed(BaseException):
    pass


def die(*args: Any) -> None:
    raise Killed


def assert_survives_a_kill(
    trainer: Callable[..., Any],
    optimization: type[Optimization],
    module: ModuleType,
    folder: Path,
    patches: pytest.MonkeyPatch,
    **settings: Any,
) -> None:
    """The decision is on disk before the cut: after a restart the same cut is made, without measuring again.

    Args:
        trainer: from a folder and ``settings``.
        module: of ``optimization``.
    """
    whole = trainer(folder / "whole", **settings)
    train(whole)
    with patches.context() as patch:
        patch.setattr(module, "applied_alike", die)
        with pytest.raises(Killed):
            train(trainer(folder / "killed", **settings))
    assert (folder / "killed" / "decisions" / f"{optimization.name}.json").is_file()
    with patches.context() as patch:
        patch.setattr(optimization, "_choose", die)
        again = trainer(folder / "killed", **settings)
        train(again, resume_from_checkpoint=True)
    assert_same_tensors(dict(whole.model.state_dict()), dict(again.model.state_dict()))

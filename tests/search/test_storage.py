"""Two workers at one database."""

from pathlib import Path
from typing import Any

import optuna
import pytest
from sqlalchemy import event

from hf_efficient import ConfigError
from hf_efficient.search.storage import reachable, storage_at


def test_a_waiting_trial_is_taken_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where another worker comes for it between the look at its state and the change of it."""
    monkeypatch.setattr("hf_efficient.search.storage.LOCKED_SECONDS", 0.05)
    mine, other = storage_at(None, tmp_path), storage_at(None, tmp_path)
    study = optuna.create_study(study_name="one", storage=mine)
    study.enqueue_trial({"x": 1})
    (trial,) = study.trials
    came: list[Any] = []

    @event.listens_for(mine.engine, "before_cursor_execute")
    def another_comes(connection: Any, cursor: Any, statement: str, *args: Any) -> None:
        if statement.startswith("UPDATE trials") and not came:
            came.append(None)
            with pytest.raises(optuna.exceptions.StorageInternalError, match="raised during the commit"):
                other.set_trial_state_values(trial._trial_id, optuna.trial.TrialState.RUNNING)

    assert mine.set_trial_state_values(trial._trial_id, optuna.trial.TrialState.RUNNING)
    assert came
    assert not other.set_trial_state_values(trial._trial_id, optuna.trial.TrialState.RUNNING)


def test_errors_are_told_in_plain_words(tmp_path: Path) -> None:
    (tmp_path / "study.db").write_text("no database")
    with pytest.raises(ConfigError, match=r"storage of the study cannot be used .*writable\?"):
        storage_at(None, tmp_path)
    with pytest.raises(ZeroDivisionError), reachable(anything=False):
        raise ZeroDivisionError
    with pytest.raises(ConfigError, match=r"^no such trial$"), reachable():
        raise ConfigError("no such trial")

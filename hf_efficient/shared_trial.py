"""An Optuna trial that all processes of a training share.

Stock (5.24) gives every process but the main one a `FixedTrial`, which knows no study: it never prunes, so that its
process waits forever for one whose trial was pruned, and it holds only what the search space suggested, so that
`model_init` cannot suggest anything.
"""

from types import SimpleNamespace
from typing import Any

from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import FixedTrial, Trial
from transformers import TrainingArguments

from hf_efficient.optimization import from_main


class SharedTrial(FixedTrial):
    """Asks the main process's trial, and tells all processes what it said, or raised.

    All processes must ask alike, in the same order. What was suggested is kept here, as in a `FixedTrial`.

    Args:
        trial: on the main process, the study's; None on the others.
        number: of the trial.
        objectives: how many the study has.
    """

    def __init__(self, trial: Trial | None, number: int, objectives: int, args: TrainingArguments):
        self._trial, self._args = trial, args
        self._answers: dict[str, Any] = {}
        super().__init__(self._answers, number)
        # All that stock asks the study before it reports
        self.study = SimpleNamespace(_is_multi_objective=lambda: objectives > 1)

    def suggest_float(
        self, name: str, low: float, high: float, *, step: float | None = None, log: bool = False
    ) -> float:
        self._answers[name] = self._ask("suggest_float", name, low, high, step=step, log=log)
        return self._suggest(name, FloatDistribution(low, high, log=log, step=step))

    def suggest_int(self, name: str, low: int, high: int, *, step: int = 1, log: bool = False) -> int:
        self._answers[name] = self._ask("suggest_int", name, low, high, step=step, log=log)
        return self._suggest(name, IntDistribution(low, high, log=log, step=step))

    def suggest_categorical(self, name: str, choices: Any) -> Any:
        self._answers[name] = self._ask("suggest_categorical", name, choices)
        return self._suggest(name, CategoricalDistribution(choices))

    def report(self, value: float, step: int) -> None:
        self._ask("report", value, step)

    def should_prune(self) -> bool:
        return self._ask("should_prune")

    def set_user_attr(self, key: str, value: Any) -> None:
        super().set_user_attr(key, value)
        if self._trial is not None:
            self._trial.set_user_attr(key, value)

    def _ask(self, method: str, *args: Any, **kwargs: Any) -> Any:
        answer, error = None, None
        if self._trial is not None:
            try:
                answer = getattr(self._trial, method)(*args, **kwargs)
            except Exception as raised:  # handed to all: a process that waits for the answer would wait forever
                error = raised
        answer, error = from_main((answer, error), self._args)
        if error is not None:
            raise error
        return answer

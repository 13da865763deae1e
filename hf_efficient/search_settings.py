"""What a search may change and what it is for: the ``search:`` block of a recipe."""

from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator


class Dimension(BaseModel):
    """The values that one dotted key of a recipe may have: a range, or choices.

    Attributes:
        low, high: least and greatest value; both whole numbers for a whole number.
        step: between values, counted from ``low``.
        log: whether values are drawn evenly by their logarithm.
        choices: the values, of any kind; in place of a range.
        when: dotted key -> the value, or a list of the values, at which this key is searched; else the recipe's stays.
    """

    model_config = ConfigDict(extra="forbid")

    low: int | float | None = None
    high: int | float | None = None
    step: int | float | None = Field(default=None, gt=0)
    log: bool = False
    choices: list[Any] | None = Field(default=None, min_length=1)
    when: dict[str, Any] = {}

    @model_validator(mode="after")
    def _is_one_of_both(self) -> "Dimension":
        given = self.low is not None and self.high is not None
        if (self.choices is None) != given or (self.low is None) != (self.high is None):
            raise ValueError("give both low and high, or choices alone")
        if self.choices is not None and (self.step is not None or self.log):
            raise ValueError("step and log belong to a range, and there are choices")
        if self.low is not None and self.high is not None:
            if self.low > self.high:
                raise ValueError(f"low ({self.low}) is more than high ({self.high})")
            if self.log and self.low <= 0:
                raise ValueError(f"log takes low above 0, got {self.low}")
            if self.log and self.step is not None:
                raise ValueError("step and log do not go together")
        return self

    @property
    def is_continuous(self) -> bool:
        """Whether values may lie arbitrarily close together."""
        whole = isinstance(self.low, int) and isinstance(self.high, int)
        return self.choices is None and self.step is None and not whole

    @property
    def ends(self) -> list[Any]:
        """Values that show whether all of them are allowed."""
        return self.choices if self.choices is not None else [self.low, self.high]


def _choices(value: Any) -> Any:
    return {"choices": value} if isinstance(value, list) else value


class SearchSettings(BaseModel):
    """Settings of a search."""

    model_config = ConfigDict(extra="forbid")

    space: dict[str, Annotated[Dimension, BeforeValidator(_choices)]] = Field(min_length=1)
    """Dotted key of the recipe -> its `Dimension`; a list is short for choices."""

    objectives: list[str] = Field(default=[], max_length=4)
    """What counts: ``max accuracy``, ``min latency_ms``, ...; without a word in front, metrics go the way that the task
    judges by. Empty: the task's main metric."""

    constraints: list[str] = []
    """What the result must keep: ``accuracy >= 0.91``, ``latency_ms <= 3``."""

    sampler: str = "auto"
    """Who proposes values: a name in `hf_efficient.search.samplers.SAMPLERS`."""

    pruner: str = "auto"
    """With one objective, who stops trials: a name in `hf_efficient.search.samplers.PRUNERS`."""

    rungs: list[Annotated[float, Field(gt=0, lt=1)]] = [0.3]
    """Shares of the training after which a trial is judged, and goes on only if it may still be worth it."""

    launch: str = ""
    """Command that trains each stage, such as ``accelerate launch --num_processes 2``; empty: the worker does."""

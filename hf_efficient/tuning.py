"""What autotune found: as a table, a picture and JSON; and remembered, so that nothing is tried twice."""

import hashlib
import json
import logging
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import yaml
from transformers import TrainingArguments

from hf_efficient.errors import ConfigError
from hf_efficient.files import atomic_path, write_json, write_text
from hf_efficient.optimization import from_main
from hf_efficient.picture import AFTER_COLOUR, BEFORE_COLOUR, MUTED_COLOUR, blank, draw, inline
from hf_efficient.wording import escaped, number

logger = logging.getLogger(__name__)

DECISION = "autotune"
CACHE_VARIABLE = "HF_EFFICIENT_CACHE"


@dataclass(frozen=True)
class Row:
    """One thing that was tried, or was not.

    Attributes:
        way: what.
        verdict: `taken`, `tried`, `skipped` or `rejected`.
        reason: why it was skipped or rejected.
        found: of a trial: step_ms, seconds (of the whole training) and its error, loss, memory_mb, steps_timed.
        settings: training arguments that were tried, beside the user's.
    """

    way: str
    verdict: str
    reason: str = ""
    found: dict[str, Any] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Tuning:
    """The choice, and how it came about.

    Attributes:
        optimizations: what is added to the user's, with settings.
        args: training arguments that are changed.
        before_s: what the training would have taken as it was given, in seconds; None where it does not fit in memory.
        expected_s: what it is expected to take, without evaluations, saving and the tuning itself.
        expected_error_s: two standard errors of that: of the steps' median, and of the machine's speed later on.
        tuning_s: what the trials took.
        rows: all that was tried, in order.
        source: "tried", or where the choice was found.
    """

    optimizations: dict[str, dict[str, Any]]
    args: dict[str, Any]
    before_s: float | None
    expected_s: float
    expected_error_s: float
    tuning_s: float
    rows: list[Row]
    source: str = "tried"

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "Tuning":
        return cls(**{**values, "rows": [Row(**row) for row in values["rows"]]})

    def choice(self) -> str:
        """The choice as YAML that training arguments and recipes take; empty where nothing is better than stock."""
        chosen = {**({"optimizations": self.optimizations} if self.optimizations else {}), **self.args}
        return yaml.safe_dump(chosen, sort_keys=False) if chosen else ""

    def summary(self) -> str:
        """One line."""
        before = "does not fit in memory" if self.before_s is None else f"{number(self.before_s)} s"
        how = f"found in {self.tuning_s:.1f} s" if self.source == "tried" else f"from {self.source}"
        return (
            f"as given: {before}; expected now: {number(self.expected_s)} s (+/- {number(self.expected_error_s)}), "
            f"without evaluations; {how}"
        )

    def __str__(self) -> str:
        lines = [f"{'way':<58} {'ms a step':>10} {'training':>10} {'loss':>8}  verdict"]
        for row in self.rows:
            step, seconds, loss = (row.found.get(name) for name in ("step_ms", "seconds", "loss"))
            timed = "" if step is None else f"{step:.0f}"
            whole = "" if seconds is None else f"{number(seconds)} s"
            told = "" if loss is None else f"{loss:.3f}"
            verdict = f"{row.verdict}: {row.reason}" if row.reason else row.verdict
            lines.append(f"{row.way:<58} {timed:>10} {whole:>10} {told:>8}  {verdict}")
        return "\n".join([*lines, "", self.summary(), "", self.choice() or "Nothing is faster than what is given.\n"])

    def markdown(self) -> str:
        lines = ["# Autotune", "", self.summary(), "", "| way | ms a step | training, s | loss | verdict |"]
        lines.append("| --- | ---: | ---: | ---: | --- |")
        for row in self.rows:
            figures = (row.found.get(name) for name in ("step_ms", "seconds", "loss"))
            cells = ["" if value is None else number(value) for value in figures]
            verdict = f"{row.verdict}: {row.reason}" if row.reason else row.verdict
            lines.append(f"| {escaped(row.way)} | {' | '.join(cells)} | {escaped(verdict)} |")
        choice = f"```yaml\n{self.choice()}```" if self.choice() else "Nothing is faster than what is given."
        return "\n".join([*lines, "", choice, ""])

    def save(self, folder: Path) -> None:
        """`autotune.json`, `autotune.md` and `autotune.png` in ``folder``."""
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / f"{DECISION}.json", asdict(self))
        write_text(folder / f"{DECISION}.md", self.markdown())
        with atomic_path(folder / f"{DECISION}.png") as path:
            draw(self._figure(), path)

    def _repr_markdown_(self) -> str:
        """What a notebook shows."""
        return f"{self.markdown()}\n![What was tried, as in the table above]({inline(self._figure())})\n"

    def _figure(self) -> Any:
        timed = [row for row in self.rows if "seconds" in row.found and row.verdict != "rejected"]
        figure = blank(8.0, 1.2 + 0.34 * max(2, len(timed)), "Autotune: what the whole training would take")
        axes = figure.subplots()
        seconds = [row.found["seconds"] for row in timed]
        colours = [AFTER_COLOUR if row.verdict == "taken" else BEFORE_COLOUR for row in timed]
        bars = axes.barh(range(len(timed)), seconds, color=colours, xerr=[row.found["seconds_error"] for row in timed])
        axes.bar_label(bars, labels=[f" {number(value)} s" for value in seconds], padding=6, fontsize=9)
        axes.set_yticks(range(len(timed)), [row.way for row in timed], fontsize=9, parse_math=False)
        axes.invert_yaxis()
        axes.margins(x=0.15)
        axes.set_xlabel("seconds, with two standard errors; blue: taken", fontsize=9, color=MUTED_COLOUR)
        axes.spines[["top", "right"]].set_visible(False)
        return figure


def remembered(tune: Callable[[], Tuning], args: TrainingArguments, circumstances: Mapping[str, Any]) -> Tuning:
    """What ``tune()`` finds, or has found before.

    Where the output folder holds checkpoints, the choice that they were written with is taken: a resumed training goes
    on as it began, on whatever machine. Else one that was made under the same ``circumstances``, from the cache:
    `$HF_EFFICIENT_CACHE/autotune`, by default in the Hugging Face cache.
    """
    output, main = Path(str(args.output_dir)), args.process_index == 0
    cache = cache_folder() / f"{_digest(circumstances)}.json"
    found = (_earlier(output) or _read(cache, f"the cache ({cache.name})")) if main else None
    tuning = from_main(found, args)
    if tuning is None:
        tuning = from_main(tune(), args)
        if main:
            _remember(cache, tuning)
    if main:
        tuning.save(output)
    return tuning


def cache_folder() -> Path:
    from huggingface_hub.constants import HF_HOME

    return Path(os.environ.get(CACHE_VARIABLE) or Path(HF_HOME) / "hf_efficient") / DECISION


def _earlier(output: Path) -> Tuning | None:
    begun = any(output.glob("checkpoint-*")) or any(output.glob("dense/checkpoint-*")) or (output / "dense").is_dir()
    return _read(output / f"{DECISION}.json", "the checkpoints' folder") if begun else None


def _read(path: Path, source: str) -> Tuning | None:
    """None where there is no such file or, with a warning, where it is damaged."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        return Tuning.from_json({**values, "source": source})
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, KeyError) as error:
        logger.warning("autotune: %s cannot be read (%s: %s); tuning anew", path.name, type(error).__name__, error)
        return None


def _remember(path: Path, tuning: Tuning) -> None:
    try:
        write_json(path, asdict(tuning))
    except ConfigError as error:  # a cache that cannot be written is no reason not to train
        logger.warning("autotune: %s", error)


def _digest(circumstances: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(circumstances, sort_keys=True).encode()).hexdigest()[:24]

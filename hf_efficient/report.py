"""What a run changed: one table of measured figures before and after, as text, Markdown, JSON and a picture."""

import io
import json
import math
import re
import warnings
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from rich import box
from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from hf_efficient.errors import ConfigError, unknown
from hf_efficient.files import atomic_path, write_json, write_text
from hf_efficient.measure import Measurement
from hf_efficient.timing import LATENCY_RUNS

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NOT_MEASURED = "not measured"

# What a quantity is called when it became less, and when it became more
_SIZE, _TIME, _SPEED = ("smaller", "larger"), ("faster", "slower"), ("slower", "faster")

_RATES = {"accuracy", "f1", "precision", "recall", "auc", "map", "mrr", "ndcg", "exact", "em", "wer", "cer"} | {
    "rouge1",
    "rouge2",
    "rougel",
    "rougelsum",
}
"""Words in the names of metrics that are shares of 1, whose difference is told in points of 0.01."""


@dataclass(frozen=True)
class Row:
    """One quantity in words, the same in every rendering.

    Attributes:
        ratio: the change in words, e.g. "2.1x faster" or "-0.4 points".
        values: the numbers before and after behind the words, unrounded; None where not measured.
        plotted: whether the picture shows it.
    """

    label: str
    before: str
    after: str
    ratio: str
    values: tuple[float | None, float | None]
    plotted: bool = False


@dataclass
class Report:
    """Before and after.

    Attributes:
        metrics_before, metrics_after: metric -> value; its first key that both have is the main metric.
        training: phase -> plain figures of its training (seconds, peak_memory_mb, ...), or the figures themselves.
        changes: what each optimization says it did: {"name": ..., plain values}.
        notes: sentences that a reader needs to judge the figures.
    """

    before: Measurement
    after: Measurement
    metrics_before: dict[str, float] = field(default_factory=dict)
    metrics_after: dict[str, float] = field(default_factory=dict)
    training: dict[str, Any] = field(default_factory=dict)
    changes: list[dict[str, Any]] = field(default_factory=list)
    title: str = "Before and after"
    notes: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        # metrics come as NumPy scalars, which JSON does not take
        self.metrics_before = {name: float(value) for name, value in self.metrics_before.items()}
        self.metrics_after = {name: float(value) for name, value in self.metrics_after.items()}

    def rows(self) -> list[Row]:
        """Every quantity once: metrics first, then size, speed and memory."""
        return [*self._metric_rows(), *self._size_rows(), *self._speed_rows(), *self._memory_rows()]

    def _metric_rows(self) -> list[Row]:
        both = [name for name in self.metrics_before if name in self.metrics_after]
        names = dict.fromkeys([*both, *self.metrics_before, *self.metrics_after])
        return [
            _metric_row(name, (self.metrics_before.get(name), self.metrics_after.get(name)), plotted=name in both[:1])
            for name in names
        ]

    def _size_rows(self) -> list[Row]:
        return [
            self._row("Parameters", lambda m: m.parameters, _count, _SIZE, plotted=True),
            self._row("Non-zero parameters", lambda m: m.nonzero_parameters, _count, _SIZE),
            self._row("Size on disk", lambda m: m.bytes_on_disk, _bytes, _SIZE, plotted=True),
        ]

    def _speed_rows(self) -> list[Row]:
        batch = f", batch {self.after.batch_size}" if self.before.batch_size == self.after.batch_size else ""
        return [
            self._row("Latency p50, 1 example", lambda m: m.latency_ms["p50"], _ms, _TIME, plotted=True),
            self._row("Latency p95, 1 example", lambda m: m.latency_ms["p95"], _ms, _TIME),
            self._row("Latency p50 with preprocessing", _optional("latency_with_preprocessing_ms", "p50"), _ms, _TIME),
            self._row("Latency p95 with preprocessing", _optional("latency_with_preprocessing_ms", "p95"), _ms, _TIME),
            self._row(f"Throughput{batch}", lambda m: m.throughput, _rate, _SPEED, plotted=True),
            self._row("Throughput with preprocessing", lambda m: m.throughput_with_preprocessing, _rate, _SPEED),
        ]

    def _memory_rows(self) -> list[Row]:
        rows = [self._row("Peak memory, fresh process", _optional("peak_memory_mb", "process"), _mb, _SIZE)]
        device = self._row("Peak device memory", _optional("peak_memory_mb", "device"), _mb, _SIZE)
        return rows if device.values == (None, None) else [*rows, device]

    def _row(
        self,
        label: str,
        read: Callable[[Measurement], float | None],
        show: Callable[[float], str],
        words: tuple[str, str],
        plotted: bool = False,
    ) -> Row:
        values = read(self.before), read(self.after)
        return _shown(label, values, show, lambda before, after: _ratio(before, after, *words), plotted)

    def conditions(self) -> dict[str, str]:
        """What the figures were measured on and with; where the two sides differ, both."""
        told = {
            "Machine": self._told(_machine),
            "Software": self._told(_software),
            "Runtime": self._told(lambda m: f"{m.runtime} {m.runtime_version} on {m.device}"),
            "CPU threads": self._told(lambda m: _for_each(m.threads)),
            "Batch size": self._told(lambda m: f"1 for latency, {m.batch_size} for throughput"),
            "Input lengths": self._told(_lengths),
            "Repeats": self._told(
                lambda m: f"{_for_each(m.repeats)} (a latency repeat is {LATENCY_RUNS} single examples)"
            ),
        }
        if self.before.peak_memory_mb or self.after.peak_memory_mb:
            told["Peak memory"] = self._told(_memory)
        return told

    def _told(self, tell: Callable[[Measurement], str]) -> str:
        before, after = tell(self.before), tell(self.after)
        return before if before == after else f"before: {before}; after: {after}"

    def table(self) -> Table:
        """The rows for a terminal."""
        table = Table(title=Text(self.title), title_justify="left", box=box.SIMPLE_HEAD)
        table.add_column("")
        for name in ("Before", "After", "Change"):
            table.add_column(name, justify="right")
        for row in self.rows():
            table.add_row(*map(Text, (row.label, row.before, row.after, row.ratio)))  # no markup in users' names
        return table

    def __str__(self) -> str:
        table = self.table()
        table.box = box.ASCII2  # logs may not take more
        console = Console(file=io.StringIO(), record=True, width=100, color_system=None, legacy_windows=False)
        console.print(table)
        for heading, lines in self._sections().items():
            if lines:
                console.print(Text(heading))
            for name, text in lines:
                console.print(Padding(Text(f"{name}: {text}"), (0, 0, 0, 2)))
        for note in self.notes:
            console.print(Text(note))
        return "\n".join(line.rstrip() for line in console.export_text(styles=False).splitlines())

    def _sections(self) -> dict[str, list[tuple[str, str]]]:
        """Everything beside rows and notes, as (name, text) lines under the heading that text and Markdown share."""
        nested = all(isinstance(figures, Mapping) for figures in self.training.values())
        phases = self.training if nested else {"all": self.training}
        return {
            "How it was measured": list(self.conditions().items()),
            "What was changed": [(str(change.get("name", "?")), _values(change)) for change in self.changes],
            "Training": [(name, _values(figures)) for name, figures in phases.items()],
        }

    def to_markdown(self, image: str | None = None) -> str:
        """A GitHub document: table, conditions, changes, training, notes; ``image`` is the picture's link."""
        lines = [f"# {_escaped(self.title)}", ""]
        if image:
            lines += [f"![Before and after, as in the table below]({image})", ""]
        lines += ["| | Before | After | Change |", "|:---|---:|---:|---:|"]
        for row in self.rows():
            lines.append("| " + " | ".join(map(_escaped, (row.label, row.before, row.after, row.ratio))) + " |")
        for heading, described in self._sections().items():
            if described:
                lines += ["", f"## {heading}", ""]
                lines += [f"- **{_escaped(name)}:** {_escaped(text)}" for name, text in described]
        if self.notes:
            lines += ["", "## Notes", "", *(f"- {_escaped(note)}" for note in self.notes)]
        return "\n".join(lines) + "\n"

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Rebuild what `to_dict` gave.

        Raises:
            ConfigError: a field too many or too few.
        """
        names = [known.name for known in fields(cls)]
        for name in values:
            if name not in names:
                raise ConfigError(unknown("Report field", name, names))
        for name in ("before", "after"):
            if name not in values:
                raise ConfigError(f"a Report needs '{name}', got {', '.join(values) or 'nothing'}; measure again")
        measured = {name: Measurement.from_dict(values[name]) for name in ("before", "after")}
        return cls(**{**values, **measured})

    def plot(self, path: str | Path) -> None:
        """Write a PNG of the main quantities.

        Raises:
            ConfigError: it cannot be written.
        """
        with atomic_path(path) as temporary, warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Glyph .* missing from font")  # a box for a letter: no reason to stop
            self._figure().savefig(temporary, format="png", dpi=150)

    def _figure(self) -> "Figure":
        from hf_efficient.picture import Panel, before_after  # matplotlib takes a second to import

        rows = [row for row in self.rows() if row.plotted]
        panels = [Panel(row.label, row.ratio, (row.before, row.after), row.values) for row in rows]
        told = self.conditions()
        return before_after(self.title, panels, footer="\n".join(told[name] for name in ("Runtime", "Machine")))

    def save(self, folder: str | Path) -> None:
        """Write report.json, report.md and report.png, each atomically.

        Raises:
            ConfigError: one cannot be written.
        """
        folder = Path(folder)
        write_json(folder / "report.json", self.to_dict())
        self.plot(folder / "report.png")
        write_text(folder / "report.md", self.to_markdown("report.png"))


def _shown(
    label: str,
    values: tuple[float | None, float | None],
    show: Callable[[float], str],
    change: Callable[[float, float], str],
    plotted: bool,
) -> Row:
    before, after = values
    told = "" if before is None or after is None else change(before, after)
    return Row(label, _told(before, show), _told(after, show), told, values, plotted)


def _told(value: float | None, show: Callable[[float], str]) -> str:
    return NOT_MEASURED if value is None else show(value)


def _metric_row(name: str, values: tuple[float | None, float | None], plotted: bool) -> Row:
    known = [value for value in values if value is not None]
    words = set(re.split(r"[^a-z0-9]+", name.lower()))
    if words & _RATES and all(0 <= value <= 1 for value in known):
        return _shown(name, values, "{:.4f}".format, _points, plotted)
    return _shown(name, values, _number, _difference, plotted)


def _ratio(before: float, after: float, if_less: str, if_more: str) -> str:
    if before == after:
        return "same"
    less, more = sorted((before, after))
    if less <= 0 or not math.isfinite(more):
        return "not comparable"
    factor = more / less
    if factor < 1.005:
        return "same"
    digits = 2 if factor < 1.1 else 1 if factor < 100 else 0
    return f"{factor:.{digits}f}x {if_less if after < before else if_more}"


def _points(before: float, after: float) -> str:
    points = 100 * (after - before)
    if before == after:
        return "same"
    return f"{points:+.{1 if abs(points) >= 0.05 else 3}f} points"


def _difference(before: float, after: float) -> str:
    if before == after:
        return "same"
    difference = after - before
    return ("+" if difference > 0 else "") + _number(difference) if math.isfinite(difference) else "not comparable"


def _number(value: float) -> str:
    """Three significant digits, in full from 100 up."""
    size = abs(value)
    if isinstance(value, int) or size >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if size >= 10 else f"{value:.2f}" if size >= 1 else f"{value:#.3g}"


def _count(value: float) -> str:
    return f"{value:,.0f}"


def _bytes(value: float) -> str:
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if value >= size:
            return f"{_number(value / size)} {unit}"
    return f"{value} bytes"


def _ms(value: float) -> str:
    return f"{_number(value)} ms"


def _mb(value: float) -> str:
    return f"{_number(value)} MB"


def _rate(value: float) -> str:
    return f"{_number(value)} examples/s"


def _optional(name: str, key: str) -> Callable[[Measurement], float | None]:
    return lambda measurement: (getattr(measurement, name) or {}).get(key)


def _machine(measurement: Measurement) -> str:
    machine = measurement.machine
    with_accelerator = f", {machine['accelerator']}" if machine["accelerator"] else ""
    return (
        f"{machine['processor']}, {machine['logical_cores']} cores, {machine['memory_gb']} GB memory{with_accelerator}"
    )


def _software(measurement: Measurement) -> str:
    machine = measurement.machine
    return (
        f"{machine['os']}, Python {machine['python']}, torch {machine['torch']}, transformers {machine['transformers']}"
    )


def _lengths(measurement: Measurement) -> str:
    counted = f"{measurement.examples:,} real examples"
    lengths = measurement.input_lengths
    if lengths is None:
        return f"{counted}, not tokens"
    told = f"mean {_number(lengths['mean'])}, median {_number(lengths['p50'])}, longest {lengths['max']}"
    return f"{counted}; tokens: {told}"


def _memory(measurement: Measurement) -> str:
    libraries = (measurement.peak_memory_mb or {}).get("libraries")
    share = "" if libraries is None else f", of which Python and its libraries {_mb(libraries)}"
    return f"resident memory of a process that loads the model and predicts a batch{share}"


def _for_each(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count} for {purpose}" for purpose, count in counts.items())


def _values(figures: Mapping[str, Any]) -> str:
    told = []
    for key, value in figures.items():
        if key == "name":  # told as the line's heading
            continue
        if isinstance(value, float):
            value = _number(int(value) if value.is_integer() else value)
        elif not isinstance(value, str):
            value = json.dumps(value, ensure_ascii=False)
        told.append(f"{key} {value}")
    return ", ".join(told) or "no details"


def _escaped(text: str) -> str:
    return text.replace("\n", " ").replace("|", "\\|").replace("<", "&lt;")

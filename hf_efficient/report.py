"""What a run changed: one table of measured figures before and after, as text, Markdown, JSON and a picture."""

import io
from collections.abc import Callable, Mapping, Sequence
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
from hf_efficient.wording import (
    NOT_MEASURED,
    SIZE,
    SPEED,
    TIME,
    count,
    details,
    difference,
    escaped,
    file_size,
    for_each,
    is_share,
    lengths_of,
    machine_of,
    megabytes,
    memory_of,
    milliseconds,
    number,
    optional,
    point_change,
    rate,
    ratio,
    shown,
    software_of,
    token_rate,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["NOT_MEASURED", "Report", "Row"]

LOSERS = 5
"""Classes that are named at most."""
SMALL = 0.005
"""Share of a training's time that is not worth a word."""

_SIDES = ("Before", "After", "Exported")


@dataclass(frozen=True)
class Row:
    """One quantity in words, the same in every rendering.

    Attributes:
        texts: before, after and, where a report has it, exported.
        ratio: the change from before to the last side in words, e.g. "2.1x faster" or "-0.4 points".
        values: the numbers behind ``texts``, unrounded; None where not measured.
        plotted: whether the picture shows it.
    """

    label: str
    texts: tuple[str, ...]
    ratio: str
    values: tuple[float | None, ...]
    plotted: bool = False

    @property
    def cells(self) -> tuple[str, ...]:
        """A line of the table."""
        return self.label, *self.texts, self.ratio


@dataclass
class Report:
    """Before and after, and what the export made of it.

    Attributes:
        exported: the model in the runtime that it was exported to; None where there was no export.
        metrics_before, metrics_after, metrics_exported: metric -> value; the first key that both before and the last
            side have is the main metric.
        training: phase -> plain figures of its training (seconds, peak_memory_mb, ...), or the figures themselves.
        changes: what each optimization says it did: {"name": ..., plain values}.
        classes: "before", "after" and, where there is one, "exported" -> class -> share of its examples recognised.
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
    exported: Measurement | None = None
    metrics_exported: dict[str, float] = field(default_factory=dict)
    classes: dict[str, dict[str, float]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for side in ("metrics_before", "metrics_after", "metrics_exported"):
            # metrics come as NumPy scalars, which JSON does not take
            setattr(self, side, {name: float(value) for name, value in getattr(self, side).items()})

    @property
    def sides(self) -> tuple[str, ...]:
        """Headings of the columns between quantity and change."""
        return _SIDES[: len(self._measured)]

    @property
    def _measured(self) -> list[Measurement]:
        return [side for side in (self.before, self.after, self.exported) if side is not None]

    @property
    def _metrics(self) -> list[dict[str, float]]:
        return [self.metrics_before, self.metrics_after, self.metrics_exported][: len(self._measured)]

    @property
    def main_metric(self) -> str | None:
        """The first metric that both before and the last side have."""
        return next((name for name in self.metrics_before if name in self._metrics[-1]), None)

    def rows(self) -> list[Row]:
        """Every quantity once: metrics first, then size, speed and memory."""
        return [*self._metric_rows(), *self._size_rows(), *self._speed_rows(), *self._memory_rows()]

    def _metric_rows(self) -> list[Row]:
        comparable = [name for name in self.metrics_before if name in self._metrics[-1]]
        names = dict.fromkeys([*comparable, *(name for side in self._metrics for name in side)])
        return [
            _metric_row(name, [side.get(name) for side in self._metrics], plotted=name == self.main_metric)
            for name in names
        ]

    def _size_rows(self) -> list[Row]:
        return [
            self._row("Parameters", lambda m: m.parameters, count, SIZE, plotted=True),
            self._row("Non-zero parameters", lambda m: m.nonzero_parameters, count, SIZE),
            self._row("Size on disk", lambda m: m.bytes_on_disk, file_size, SIZE, plotted=True),
        ]

    def _speed_rows(self) -> list[Row]:
        sizes = {measured.batch_size for measured in self._measured}
        batch = f", batch {self.before.batch_size}" if len(sizes) == 1 else ""
        tokens = self._row(
            f"New tokens{batch}", lambda m: m.new_tokens and m.throughput * m.new_tokens, token_rate, SPEED
        )
        rows = [
            self._row("Latency p50, 1 example", lambda m: m.latency_ms["p50"], milliseconds, TIME, plotted=True),
            self._row("Latency p95, 1 example", lambda m: m.latency_ms["p95"], milliseconds, TIME),
            self._row(
                "Latency p50 with preprocessing", optional("latency_with_preprocessing_ms", "p50"), milliseconds, TIME
            ),
            self._row(
                "Latency p95 with preprocessing", optional("latency_with_preprocessing_ms", "p95"), milliseconds, TIME
            ),
            self._row(f"Throughput{batch}", lambda m: m.throughput, rate, SPEED, plotted=True),
            self._row("Throughput with preprocessing", lambda m: m.throughput_with_preprocessing, rate, SPEED),
        ]
        return rows if set(tokens.values) == {None} else [*rows, tokens]

    def _memory_rows(self) -> list[Row]:
        rows = [self._row("Peak memory, fresh process", optional("peak_memory_mb", "process"), megabytes, SIZE)]
        device = self._row("Peak device memory", optional("peak_memory_mb", "device"), megabytes, SIZE)
        return rows if set(device.values) == {None} else [*rows, device]

    def _row(
        self,
        label: str,
        read: Callable[[Measurement], float | None],
        show: Callable[[float], str],
        words: tuple[str, str],
        plotted: bool = False,
    ) -> Row:
        values = [read(measured) for measured in self._measured]
        return _row(label, values, show, lambda before, after: ratio(before, after, *words), plotted)

    def conditions(self) -> dict[str, str]:
        """What the figures were measured on and with; where the sides differ, each."""
        told = {
            "Machine": self._told(machine_of),
            "Software": self._told(software_of),
            "Runtime": self._told(lambda m: f"{m.runtime} {m.runtime_version} on {m.device}"),
            "CPU threads": self._told(lambda m: for_each(m.threads)),
            "Batch size": self._told(lambda m: f"1 for latency, {m.batch_size} for throughput"),
            "Input lengths": self._told(lengths_of),
            "Repeats": self._told(
                lambda m: f"{for_each(m.repeats)} (a latency repeat is {LATENCY_RUNS} single examples)"
            ),
        }
        if any(measured.peak_memory_mb for measured in self._measured):
            told["Peak memory"] = self._told(memory_of)
        return told

    def _told(self, tell: Callable[[Measurement], str]) -> str:
        sides: dict[str, list[str]] = {}
        for side, measured in zip(self.sides, self._measured, strict=True):
            sides.setdefault(tell(measured), []).append(side.lower())
        if len(sides) == 1:
            return next(iter(sides))
        return "; ".join(f"{' and '.join(names)}: {told}" for told, names in sides.items())

    def table(self) -> Table:
        """The rows for a terminal."""
        table = Table(title=Text(self.title), title_justify="left", box=box.SIMPLE_HEAD)
        table.add_column("")
        for name in (*self.sides, "Change"):
            table.add_column(name, justify="right")
        for row in self.rows():
            table.add_row(*map(Text, row.cells))  # no markup in users' names
        return table

    def __str__(self) -> str:
        table = self.table()
        table.box = box.ASCII2  # logs may not take more
        width = 100 if self.exported is None else 112
        console = Console(file=io.StringIO(), record=True, width=width, color_system=None, legacy_windows=False)
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
        return {
            "Classes that lost most": self.losers(),
            "How it was measured": list(self.conditions().items()),
            "What was changed": [(str(change.get("name", "?")), details(change)) for change in self.changes],
            "Training": [line for name, figures in self._phases().items() for line in _training(name, figures)],
        }

    def _phases(self) -> dict[str, Any]:
        nested = all(isinstance(figures, Mapping) for figures in self.training.values())
        return self.training if nested else {"all": self.training}

    def losers(self) -> list[tuple[str, str]]:
        """Classes of which the last side recognises less than before, the greatest drop first."""
        before = self.classes.get("before", {})
        last = next((self.classes[side] for side in ("exported", "after") if side in self.classes), {})
        drops = {name: before[name] - last[name] for name in before if name in last and last[name] < before[name]}
        worst = sorted(drops, key=lambda name: (-drops[name], name))[:LOSERS]
        return [
            (name, f"{before[name]:.3f} -> {last[name]:.3f} ({point_change(before[name], last[name])})")
            for name in worst
        ]

    def to_markdown(self, image: str | None = None) -> str:
        """A GitHub document: table, conditions, changes, training, notes; ``image`` is the picture's link."""
        lines = [f"# {escaped(self.title)}", ""]
        if image:
            lines += [f"![Before and after, as in the table below]({image})", ""]
        lines += self.markdown_table()
        for heading, described in self._sections().items():
            if described:
                lines += ["", f"## {heading}", ""]
                lines += [f"- **{escaped(name)}:** {escaped(text)}" for name, text in described]
        if self.notes:
            lines += ["", "## Notes", "", *(f"- {escaped(note)}" for note in self.notes)]
        return "\n".join(lines) + "\n"

    def _repr_markdown_(self) -> str:
        """What a notebook shows."""
        from hf_efficient.picture import inline

        return self.to_markdown(inline(self._figure()))

    def figures(self) -> dict[str, float]:
        """Metrics, size and speed of each side as flat numbers, for trackers: ``after_latency_ms`` and so on."""
        told: dict[str, float] = {}
        for side, measured, metrics in zip(self.sides, self._measured, self._metrics, strict=True):
            values = {
                "parameters": measured.parameters,
                "bytes_on_disk": measured.bytes_on_disk,
                "latency_ms": measured.latency_ms["p50"],
                "throughput": measured.throughput,
                **metrics,
            }
            told.update({f"{side.lower()}_{name}": value for name, value in values.items() if value is not None})
        return told

    def markdown_table(self, rows: Sequence[Row] | None = None) -> list[str]:
        """``rows``, or all, as lines of a GitHub table."""
        lines = [
            "| " + " | ".join(["", *self.sides, "Change"]).lstrip() + " |",
            "|:---" + "|---:" * (len(self.sides) + 1) + "|",
        ]
        return [*lines, *("| " + " | ".join(map(escaped, row.cells)) + " |" for row in rows or self.rows())]

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
        sides = [name for name in ("before", "after", "exported") if values.get(name) is not None]
        measured = {name: Measurement.from_dict(values[name]) for name in sides}
        return cls(**{**values, **measured})

    def plot(self, path: str | Path) -> None:
        """Write a PNG of the main quantities.

        Raises:
            ConfigError: it cannot be written.
        """
        _draw(self._figure(), path)

    def _figure(self) -> "Figure":
        from hf_efficient.picture import Panel, before_after  # matplotlib takes a second to import

        rows = [row for row in self.rows() if row.plotted]
        panels = [Panel(row.label, row.ratio, row.texts, row.values) for row in rows]
        told = self.conditions()
        return before_after(
            self.title, panels, self.sides, footer="\n".join(told[name] for name in ("Runtime", "Machine"))
        )

    def save(self, folder: str | Path) -> None:
        """Write report.json, report.md, report.png and, where trainings were clocked, training.png, each atomically.

        Raises:
            ConfigError: one cannot be written.
        """
        folder = Path(folder)
        write_json(folder / "report.json", self.to_dict())
        self.plot(folder / "report.png")
        shares = {name: figures["time"] for name, figures in self._phases().items() if figures.get("time")}
        if shares:
            from hf_efficient.picture import training_time

            _draw(training_time(shares), folder / "training.png")
        write_text(folder / "report.md", self.to_markdown("report.png"))


def _draw(figure: "Figure", path: str | Path) -> None:
    from hf_efficient.picture import draw

    with atomic_path(path) as temporary:
        draw(figure, temporary)


def _training(name: str, figures: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What a training cost, and where its time went."""
    shares = figures.get("time", {})
    told = [(name, details({key: value for key, value in figures.items() if key != "time"}))]
    parts = [f"{part} {share:.0%}" for part, share in shares.items() if share >= SMALL]
    return [*told, (f"{name}, time", ", ".join(parts))] if shares else told


def _row(
    label: str,
    values: Sequence[float | None],
    show: Callable[[float], str],
    change: Callable[[float, float], str],
    plotted: bool,
) -> Row:
    before, last = values[0], values[-1]
    told = "" if before is None or last is None else change(before, last)
    return Row(label, tuple(shown(value, show) for value in values), told, tuple(values), plotted)


def _metric_row(name: str, values: Sequence[float | None], plotted: bool) -> Row:
    if is_share(name, [value for value in values if value is not None]):
        return _row(name, values, "{:.4f}".format, point_change, plotted)
    return _row(name, values, number, difference, plotted)

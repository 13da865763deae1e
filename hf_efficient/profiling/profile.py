"""A model's profile on this machine, as table, JSON, Markdown and picture."""

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from hf_efficient.errors import ConfigError
from hf_efficient.files import atomic_folder, write_json, write_text
from hf_efficient.machine import machine
from hf_efficient.picture import draw, inline
from hf_efficient.profiling.bounds import Bound, bounds
from hf_efficient.profiling.parts import PARTS, bytes_of_parts, time_parts
from hf_efficient.profiling.picture import profile_figure, scaling_figure
from hf_efficient.profiling.scaling import Scaling
from hf_efficient.timing import evaluating
from hf_efficient.wording import escaped, file_size, number

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from transformers import PreTrainedModel

PROFILE, SCALING_PICTURE = "profile.json", "scaling.png"

_EXPLAINED = (
    "attention: a layer up to its feed-forward network; head: after the last layer; overhead: what a call costs "
    "whatever it computes (one head, one feature, one token).",
    "At most: measured on a model from which all was taken that the technique can take; accuracy is not looked at.",
)


@dataclass
class Profile:
    """Where time and bytes go, and the most each technique can give.

    Attributes:
        milliseconds: batch size -> part (see `parts.PARTS`) -> ms of an average batch in eager PyTorch.
        bytes: part -> bytes of parameters; overhead has none.
        examples: that were timed.
        machine: see `hf_efficient.machine.machine`.
        scaling: of a training over more devices, where it was asked for.
    """

    milliseconds: dict[int, dict[str, float]]
    bytes: dict[str, int]
    bounds: list[Bound]
    examples: int
    machine: dict[str, Any]
    scaling: Scaling | None = None

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "scaling": self.scaling.to_dict() if self.scaling else None}

    def _tables(self) -> dict[str, tuple[list[str], list[list[str]]]]:
        tables = {
            "Where time and bytes go": self._parts(),
            "What each technique can give at most": self._bounds(),
        }
        return tables | ({"A training step on more devices": self.scaling.table()} if self.scaling else {})

    def _explained(self) -> list[str]:
        return [*_EXPLAINED, *(self.scaling.explained() if self.scaling else ())]

    def _parts(self) -> tuple[list[str], list[list[str]]]:
        heading = ["Part", *(f"ms, batch {size}" for size in self.milliseconds), "Bytes"]
        rows = []
        columns: list[Mapping[str, float]] = [*self.milliseconds.values(), self.bytes]
        shows: list[Callable[[float], str]] = [*(number for _ in self.milliseconds), file_size]
        for part in PARTS:
            cells = [_with_share(column, part, show) for column, show in zip(columns, shows, strict=True)]
            rows.append([part, *cells])
        totals = [show(sum(column.values())) for column, show in zip(columns, shows, strict=True)]
        return heading, [*rows, ["whole", *totals]]

    def _bounds(self) -> tuple[list[str], list[list[str]]]:
        sizes = list(self.milliseconds)
        heading = ["Technique", *(f"faster, batch {size}" for size in sizes), "smaller", "How", "Note"]
        rows = []
        for bound in self.bounds:
            speedups = [f"{bound.speedups[size]:.1f}x" if bound.speedups else "-" for size in sizes]
            smaller = "-" if bound.smaller is None else f"{bound.smaller:.1f}x"
            rows.append([bound.technique, *speedups, smaller, bound.setting, bound.note])
        return heading, rows

    def __str__(self) -> str:
        console = Console(file=io.StringIO(), record=True, width=140, color_system=None, legacy_windows=False)
        for title, (heading, rows) in self._tables().items():
            table = Table(title=title, title_justify="left", box=box.ASCII2)
            for index, name in enumerate(heading):
                table.add_column(name, justify="left" if index == 0 or name in ("How", "Note") else "right")
            for row in rows:
                table.add_row(*map(Text, row))
            console.print(table)
        for line in self._explained():
            console.print(Text(line))
        return "\n".join(line.rstrip() for line in console.export_text(styles=False).splitlines())

    def to_markdown(self, image: str = "profile.png", scaling_image: str = SCALING_PICTURE) -> str:
        lines = ["# Profile", "", f"![Where time and bytes go, as in the tables below]({image})"]
        for heading, rows in self._tables().values():
            lines += ["", "| " + " | ".join(heading) + " |", "|" + "---|" * len(heading)]
            lines += ["| " + " | ".join(escaped(cell).replace("|", "\\|") for cell in row) + " |" for row in rows]
        told = ", ".join(f"{name} {value}" for name, value in self.machine.items())
        if self.scaling:
            lines += ["", f"![Examples a second on more devices, as in the last table]({scaling_image})"]
        return "\n".join(
            [*lines, "", *self._explained(), "", escaped(f"Machine: {told}. {self.examples} examples."), ""]
        )

    def save(self, folder: str | Path) -> None:
        """Write ``profile.json``, ``profile.md`` and ``profile.png``, with `scaling` ``scaling.png``; all or none."""
        with atomic_folder(folder) as path:
            write_json(path / PROFILE, self.to_dict())
            write_text(path / "profile.md", self.to_markdown())
            draw(self._figure(), path / "profile.png")
            if self.scaling:
                draw(scaling_figure(self.scaling), path / SCALING_PICTURE)

    def _repr_markdown_(self) -> str:
        """What a notebook shows."""
        return self.to_markdown(
            inline(self._figure()), inline(scaling_figure(self.scaling)) if self.scaling else SCALING_PICTURE
        )

    def _figure(self) -> "Figure":
        shares = {f"time, batch {size}": _shares(column) for size, column in self.milliseconds.items()}
        shares["bytes"] = _shares(self.bytes)
        largest = max(self.milliseconds)
        ratios = [(bound.technique, bound.speedups[largest]) for bound in self.bounds if bound.speedups]
        return profile_figure("Profile", shares, ratios, f"Times faster at most, batch {largest}")


def profile(
    model: "PreTrainedModel",
    examples: Sequence[Mapping[str, Any]],
    collate: Callable[[list[Any]], Mapping[str, Any]],
    batch_size: int = 32,
    tell: Callable[[str], None] = lambda step: None,
) -> Profile:
    """Profile ``model`` on real examples, at batch size 1 and ``batch_size``, while no other measurement runs here.

        print(profile(model, examples, collate))

    Args:
        examples: model-ready features in the length distribution that is to be served, best a few hundred.
        collate: from a list of features to a batch of tensors.
        tell: called with what is being done; it takes a minute or two.

    Raises:
        ConfigError: no examples, or a model family whose layers are not known.
    """
    if not len(examples):
        raise ConfigError("profile times a model on real examples, and there are none; pass some")
    if batch_size < 1:
        raise ConfigError(f"batch_size must be at least 1, got {batch_size}")
    sizes = sorted({1, min(batch_size, len(examples))})
    with evaluating(model):
        split = bytes_of_parts(model)
        milliseconds = {}
        for size in sizes:
            tell(f"time by part, batch {size}")
            milliseconds[size] = time_parts(model, examples, collate, size)
        found = bounds(model, examples, collate, sizes, tell)
    return Profile(milliseconds, split, found, len(examples), machine())


def _shares(column: Mapping[str, float]) -> dict[str, float]:
    total = sum(column.values())
    return {part: column.get(part, 0) / total for part in PARTS}


def _with_share(column: Mapping[str, float], part: str, show: Callable[[float], str]) -> str:
    if part not in column:
        return "-"
    return f"{show(column[part])} ({100 * column[part] / sum(column.values()):.0f} %)"

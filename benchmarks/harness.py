"""What every benchmark shares: cells that are cached by content, claims, a table and a result file.

A benchmark is a module with a function that gets a `Bench`::

    def body(bench: Bench) -> None:
        steps = 10 if bench.quick else 300
        for seed in bench.seeds:
            found = bench.cell({"setting": "random", "seed": seed}, lambda: train(...))    # {"accuracy": 0.92, ...}
        bench.claim("accuracy_difference", values, unit="points", target=">= -0.3")

    if __name__ == "__main__":
        main("length_batching", body, depends=[length_batching])

`python -m benchmarks.<name>` computes what the cache lacks, so that one that was stopped goes on where it was, prints
a table and writes `benchmarks/results/<name>.json`; with `--quick` it does the same on less work and writes to
`benchmarks/results/quick/`. A cell is found again only with the same settings, machine, library versions and source of
the modules that the benchmark says it measures.
"""

import argparse
import hashlib
import inspect
import json
import multiprocessing
import operator
import statistics
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import transformers
from rich.console import Console
from rich.table import Table

from hf_efficient import __version__
from hf_efficient.files import write_json
from hf_efficient.machine import machine

FOLDER = Path(__file__).parent
RESULTS = FOLDER / "results"
CACHE = FOLDER / ".cache"

_COMPARISONS = {"<=": operator.le, ">=": operator.ge}


@dataclass(frozen=True)
class Claim:
    """One measured figure.

    Attributes:
        value: median over the repeats.
        unit: what it is, e.g. "examples/s of length_batching / stock random sampling".
        target: e.g. ">= 3"; empty for a figure that is only reported.
        repeats: number of values behind it.
        spread: their least and greatest.
    """

    name: str
    value: float
    unit: str
    target: str
    repeats: int
    spread: tuple[float, float]

    @property
    def reached(self) -> bool | None:
        """Whether the target is met; None where there is none."""
        if not self.target:
            return None
        sign, _, limit = self.target.partition(" ")
        return _COMPARISONS[sign](self.value, float(limit))


@dataclass
class Bench:
    """One run of a benchmark.

    Attributes:
        quick: do less work, by the same code.
        fresh: compute cells that are cached, too.
        code: hash of the source that the benchmark measures.
    """

    name: str
    quick: bool = False
    fresh: bool = False
    code: str = ""
    cache: Path = CACHE
    claims: list[Claim] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def seeds(self) -> range:
        return range(1 if self.quick else 3)

    def cell(
        self,
        settings: dict[str, Any],
        compute: Callable[[], dict[str, Any]],
        peer: bool = False,
        of: str = "",
        depends: Sequence[ModuleType] | None = None,
    ) -> dict[str, Any]:
        """The plain values that ``compute`` returns for ``settings``, from the cache where it has them.

        Args:
            peer: nothing of ours is measured: the cell stays good whatever becomes of our code.
            of: the benchmark that has the same cell, and the same code to depend on; empty: this one.
            depends: modules that the cell measures; None: those that the benchmark does.
        """
        code = "" if peer else self.code if depends is None else _source_hash(depends)
        key = {"settings": settings, "quick": self.quick, "code": code, "machine": _conditions()}
        digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:20]
        path = self.cache / (of or self.name) / f"{digest}.json"
        told = ", ".join(f"{name} {value}" for name, value in settings.items())
        if path.is_file() and not self.fresh:
            Console(stderr=True).print(f"[dim]{self.name}: {told} (cached)[/dim]")
            return json.loads(path.read_text(encoding="utf-8"))["values"]
        Console(stderr=True).print(f"{self.name}: {told} ...")
        values = compute()
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, {**key, "values": values})
        return values

    def claim(self, name: str, values: float | Iterable[float], unit: str, target: str = "") -> Claim:
        """Note the median of ``values`` as a claim; ``target`` is ``">= number"``, ``"<= number"`` or empty."""
        numbers = [float(values)] if isinstance(values, int | float) else [float(value) for value in values]
        spread = (_rounded(min(numbers)), _rounded(max(numbers)))
        made = Claim(name, _rounded(statistics.median(numbers)), unit, target, len(numbers), spread)
        self.claims.append(made)
        return made

    def table(self) -> Table:
        table = Table(title=f"{self.name}{' (quick)' if self.quick else ''}", title_justify="left")
        for column in ("claim", "value", "least ... greatest", "repeats", "target", ""):
            table.add_column(column, justify="left" if column in ("claim", "") else "right")
        for claim in self.claims:
            verdict = {None: "", True: "reached", False: "missed"}[claim.reached]
            spread = f"{claim.spread[0]:g} ... {claim.spread[1]:g}"
            table.add_row(claim.name, f"{claim.value:g}", spread, str(claim.repeats), claim.target, verdict)
        return table

    def save(self, folder: Path = RESULTS) -> Path:
        """Write the claims, with machine and versions, as JSON."""
        path = (folder / "quick" if self.quick else folder) / f"{self.name}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        content = {"claims": [asdict(claim) for claim in self.claims], "notes": self.notes}
        write_json(path, {**content, "machine": machine(), "versions": {"hf_efficient": __version__}})
        return path


def ratios(ones: Iterable[float], others: Iterable[float]) -> list[float]:
    """Of each turn or seed, one figure over the other."""
    return [one / other for one, other in zip(ones, others, strict=True)]


def alone(function: Callable[..., Any], *args: Any) -> Any:
    """``function(*args)`` in a process of its own.

    For what is timed: the threads and memory that trainings left in this process have no part in it. It starts others
    as this one does, though it was itself spawned.
    """
    method = multiprocessing.get_start_method()
    begin = partial(multiprocessing.set_start_method, method, force=True)
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), begin) as pool:
        return pool.submit(function, *args).result()


def main(
    name: str,
    body: Callable[[Bench], None],
    depends: Sequence[ModuleType] = (),
    arguments: Sequence[str] | None = None,
) -> Bench:
    """The command line of a benchmark: run ``body``, print the table, write the result.

    Args:
        depends: modules whose source decides whether a cached cell is still good.
    """
    parser = argparse.ArgumentParser(prog=f"python -m benchmarks.{name}")
    parser.add_argument("--quick", action="store_true", help="the same code on less work")
    parser.add_argument("--fresh", action="store_true", help="compute cached cells again")
    options = parser.parse_args(arguments)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    bench = Bench(name, quick=options.quick, fresh=options.fresh, code=_source_hash(depends))
    body(bench)
    path = bench.save()
    Console().print(bench.table())
    for note in bench.notes:
        Console().print(note)
    print(f"written to {path.relative_to(FOLDER.parent)}")
    return bench


def _rounded(value: float) -> float:
    return float(f"{value:.4g}")


def _source_hash(modules: Sequence[ModuleType]) -> str:
    text = "".join(inspect.getsource(module) for module in modules)
    return hashlib.sha256(text.encode()).hexdigest()[:20]


def _conditions() -> dict[str, Any]:
    """What a cached figure depends on beside its settings."""
    names = ("processor", "logical_cores", "accelerator", "torch", "transformers")
    return {name: value for name, value in machine().items() if name in names}

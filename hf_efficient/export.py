"""From a trained model to a folder that can be shipped: converted, compared with the model, measured.

    result = export(model, "out", format="onnx", quantize="dynamic", examples=validation, collate=collate,
                    metrics=compute_metrics, processor=tokenizer)
    exported_pipeline("out")("Where is my card?")

Conversion is transformers' own (`transformers.exporters`). What is added: no export is kept that was not checked
against its model on real inputs (`hf_efficient.guard`), from the files that will be shipped.
"""

import contextlib
import io
import json
import platform
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import torch
from rich.console import Console
from transformers import PreTrainedModel

from hf_efficient.auto_export import Tried, choose, table
from hf_efficient.candidates import AUTO, CANDIDATES, Candidate, check_choice, require_choice
from hf_efficient.conversion import calibration_batches, convert_plain, plain_copy, trace_inputs
from hf_efficient.errors import ConfigError, ExportError
from hf_efficient.files import atomic_folder, refuse_other_contents, write_json
from hf_efficient.guard import FLOOR, TOLERANCE, Comparison, Metrics, compare, judge
from hf_efficient.machine import MB, machine
from hf_efficient.measure import Measurement, Timing, measure
from hf_efficient.runtimes import RUNTIMES, ExportedRuntime, load_runtime
from hf_efficient.sensitivity import sensitivities
from hf_efficient.timing import Runtime, TorchRuntime

if TYPE_CHECKING:
    pass

REPORT = "export_report.json"
MEASURED_EXAMPLES = 256


@dataclass
class ExportResult:
    """What an export leaves.

    Attributes:
        folder: model, config, processor and `export_report.json`; `load_exported` and `exported_pipeline` take it.
        comparison: with the model, on the examples.
        metrics: the export's; empty without labels or metrics.
        measurement: size and speed; None where it was not asked for.
        in_float: linear layers that a mixed export leaves in float.
        tried: where the choice was automatic, all that was tried.
    """

    folder: Path
    format: str
    quantize: str
    comparison: Comparison
    metrics: dict[str, float]
    measurement: Measurement | None
    in_float: list[str] = field(default_factory=list)
    tried: list[Tried] = field(default_factory=list)

    def runtime(self, threads: int | None = None) -> ExportedRuntime:
        return load_runtime(self.folder, threads)

    def __str__(self) -> str:
        lines = [f"exported  {self.folder} ({self.format}, quantize {self.quantize})", f"checked   {self.comparison}"]
        if self.measurement is not None:
            told = self.measurement
            lines += [
                f"measured  {told.bytes_on_disk / MB:.1f} MB; {told.latency_ms['p50']:.2f} ms for one example, "
                f"{told.throughput:.0f} examples/s in batches of {told.batch_size}, with {told.runtime}"
            ]
        if self.in_float:
            lines += [f"in float  {', '.join(self.in_float)}"]
        if self.tried:
            console = Console(file=io.StringIO(), record=True, width=140, color_system=None, legacy_windows=False)
            console.print(table(self.tried))
            lines += ["", console.export_text(styles=False).rstrip()]
        return "\n".join(lines)

    @classmethod
    def load(cls, folder: str | Path) -> Self:
        """What `export` returned, from its report.

        Raises:
            ConfigError: no report there, or a damaged one.
        """
        path = Path(folder) / REPORT
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
            comparison: Comparison = Comparison(**values["comparison"])
            measured = values["measurement"]
            measurement = None if measured is None else Measurement.from_dict(measured)
            kind = values["format"], values["quantize"]
            tried = [Tried(**one) for one in values.get("tried", [])]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ConfigError(f"no readable {REPORT} in {folder} ({type(error).__name__}); export again") from error
        metrics, in_float = comparison.metrics_export, values.get("in_float", [])
        return cls(Path(folder), *kind, comparison, metrics, measurement, in_float, tried)


SENSITIVITY_BATCHES = 16


def export(
    model: torch.nn.Module,
    folder: str | Path,
    *,
    format: str = "onnx",
    quantize: str = "none",
    examples: Sequence[Mapping[str, Any]],
    collate: Callable[[list[Any]], Mapping[str, Any]],
    metrics: Metrics | None = None,
    main_metric: str | None = None,
    greater_is_better: bool = True,
    max_drop: float = 0.01,
    processor: Any = None,
    timing: Callable[[Runtime], Timing] | None = None,
    seconds: float = 1.0,
    calibration: Sequence[Mapping[str, Any]] | None = None,
) -> ExportResult:
    """Write ``model`` to ``folder`` in a form that another runtime serves, if it still computes the same there.

    Args:
        model: for sequence, token or image classification; it is left as it is, on its device.
        folder: written as a whole, or not at all.
        format: ``onnx`` or ``openvino``; ``auto``: whichever is faster.
        quantize: ``none`` (fp32), ``dynamic`` (int8 weights, activations quantized as they come; ONNX only),
            ``dynamic-per-channel``, ``static`` (activations quantized in ranges seen beforehand), ``mixed`` (static,
            but for the layers that lose most) or ``auto``: the fastest of them that keeps the metric.
        examples: real model-ready features, labels included, in the lengths that will be served: some hundreds.
        collate: from a list of features to a batch of tensors on the CPU.
        metrics: `compute_metrics` of a Trainer; without it, the predictions that change are counted.
        main_metric: the metric that may drop; its first when None.
        max_drop: greatest drop by quantization, in the metric's units: 0.01 is a point of accuracy.
        processor: tokenizer or image processor, saved along.
        timing: measures the export; by default `measure` on up to `MEASURED_EXAMPLES` examples.
        seconds: for each series of the default measurement; 0 measures nothing.
        calibration: examples that static int8 takes ranges from, `CALIBRATION_EXAMPLES` at most; training examples,
            where there are some, else ``examples``.

    Raises:
        ConfigError: no such format, a model that is not exported here, nothing to check with, or a folder that holds
            something else.
        MissingDependencyError: the format's packages are not installed.
        ExportError: the conversion failed, or the export does not compute what the model does.
    """
    check_choice(format, quantize, max_drop)
    require_choice(format, quantize)
    refuse_other_contents(folder, REPORT)
    job = _Job(
        plain_copy(model),
        *(examples, collate, examples if calibration is None else calibration, max_drop, processor),
        {"metrics": metrics, "main_metric": main_metric, "greater_is_better": greater_is_better},
    )
    if not len(examples):
        raise ConfigError("an export is traced and checked on real examples, and there are none; pass some")
    if timing is None and seconds:
        timing = _default_timing(examples, collate, seconds)
    if AUTO not in (format, quantize):
        return job.export(Path(folder), format, quantize, timing)
    timing = timing or _default_timing(examples, collate, 1.0)  # the fastest cannot be told without

    def export_one(path: Path, format: str, quantize: str) -> ExportResult:
        return job.export(path, format, quantize, timing)

    def tell(path: Path, tried: list[Tried]) -> None:
        report = json.loads((path / REPORT).read_text(encoding="utf-8"))
        write_json(path / REPORT, {**report, "tried": [one.to_dict() for one in tried]})

    choose(export_one, Path(folder), format, quantize, tell)
    return ExportResult.load(folder)


@dataclass
class _Job:
    """What every way to export a model has in common."""

    model: PreTrainedModel
    examples: Sequence[Mapping[str, Any]]
    collate: Callable[[list[Any]], Mapping[str, Any]]
    calibration: Sequence[Mapping[str, Any]]
    max_drop: float
    processor: Any
    metrics: dict[str, Any]

    def export(
        self, folder: Path, format: str, quantize: str, timing: Callable[[Runtime], Timing] | None
    ) -> ExportResult:
        candidate = CANDIDATES[format, quantize]
        candidate.require()
        batches = calibration_batches(candidate, self.model, self.collate, self.calibration)
        *rounds, last = _rounds(candidate, self.model, batches)
        for in_float in rounds:
            with contextlib.suppress(ExportError):
                return self._export(folder, (format, quantize), batches, in_float, timing)
        return self._export(folder, (format, quantize), batches, last, timing)

    def _export(
        self,
        folder: Path,
        key: tuple[str, str],
        batches: Sequence[dict[str, torch.Tensor]],
        in_float: list[str],
        timing: Callable[[Runtime], Timing] | None,
    ) -> ExportResult:
        candidate, inputs = CANDIDATES[key], trace_inputs(self.model, self.collate, self.examples)
        with atomic_folder(folder) as path:
            convert_plain(candidate, self.model, inputs, batches, in_float).save_pretrained(path)
            if self.processor is not None:
                self.processor.save_pretrained(path)
            comparison = _verify(
                *(load_runtime(path), self.model, self.examples, self.collate),
                exact=candidate.exact,
                max_drop=self.max_drop,
                **self.metrics,
            )
            # The weights are the model's, stored in another way: so is their number
            measurement = Measurement.of(timing(load_runtime(path)), self.model, path) if timing else None
            result = ExportResult(folder, *key, comparison, comparison.metrics_export, measurement, in_float)
            write_json(path / REPORT, _report(result, candidate, self.max_drop))
        return result


def _rounds(
    candidate: Candidate, model: PreTrainedModel, batches: Sequence[dict[str, torch.Tensor]]
) -> Iterator[list[str]]:
    """Layers to leave in float: none; where the candidate is mixed, more and more until it keeps the metric."""
    if not candidate.mixed:
        yield []
        return
    ranked = list(sensitivities(model, batches[:SENSITIVITY_BATCHES]))
    count = 1
    while count < len(ranked):
        yield ranked[:count]
        count *= 2
    yield ranked


def _default_timing(
    examples: Sequence[Any], collate: Callable[..., Any], seconds: float
) -> Callable[[Runtime], Timing]:
    chosen = [examples[index] for index in range(min(MEASURED_EXAMPLES, len(examples)))]
    return lambda runtime: measure(runtime, chosen, collate, repeats=1, seconds=seconds)


def verify(
    folder: str | Path,
    model: torch.nn.Module,
    examples: Sequence[Mapping[str, Any]],
    collate: Callable[[list[Any]], Mapping[str, Any]],
    *,
    exact: bool,
    max_drop: float = 0.01,
    **metrics: Any,
) -> Comparison:
    """Check the export in ``folder`` against its model, on this machine: int8 kernels differ between processors.

    Args:
        exact: for fp32 exports: logits within `TOLERANCE`; else see ``max_drop`` of `export`.
        metrics: ``metrics``, ``main_metric`` and ``greater_is_better`` of `hf_efficient.guard.compare`.

    Raises:
        ExportError: it does not compute what the model does; with the figures.
    """
    return _verify(
        load_runtime(folder), plain_copy(model), examples, collate, exact=exact, max_drop=max_drop, **metrics
    )


def _verify(
    runtime: ExportedRuntime, model: PreTrainedModel, *data: Any, exact: bool, max_drop: float, **metrics: Any
) -> Comparison:
    _check_labels(model, runtime)
    comparison = compare(TorchRuntime(model), runtime, *data, **metrics)
    judge(comparison, exact=exact, max_drop=max_drop)
    return comparison


def _check_labels(model: PreTrainedModel, runtime: ExportedRuntime) -> None:
    configs: list[Any] = [model.config, runtime.exported.config]
    own, exported = (dict(config.id2label or {}) for config in configs)
    if own != exported:
        raise ExportError(f"the export names its classes {exported}, the model {own}; export again from the model")


def _report(result: ExportResult, candidate: Candidate, max_drop: float) -> dict[str, Any]:
    packages = (*_PACKAGES, *RUNTIMES[candidate.format].packages, *candidate.packages)
    return {
        "format": result.format,
        "quantize": result.quantize,
        "settings": {"exporter": dict(candidate.settings), "int8": dict(candidate.int8)},
        "in_float": result.in_float,
        "comparison": result.comparison.to_dict(),
        "limits": {"relative": TOLERANCE, "absolute": FLOOR} if candidate.exact else {"max_drop": max_drop},
        "measurement": result.measurement.to_dict() if result.measurement else None,
        "versions": {"python": platform.python_version(), **{name: _version(name) for name in packages}},
        "machine": machine(),
    }


_PACKAGES = ("hf-efficient", "torch", "transformers")


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        from hf_efficient import __version__

        return __version__

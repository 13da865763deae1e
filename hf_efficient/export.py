"""From a trained model to a folder that can be shipped: converted, compared with the model, measured.

    result = export(model, "out", format="onnx", quantize="dynamic", examples=validation, collate=collate,
                    metrics=compute_metrics, processor=tokenizer)
    exported_pipeline("out")("Where is my card?")

Conversion is transformers' own (`transformers.exporters`). What is added: no export is kept that was not checked
against its model on real inputs (`hf_efficient.guard`), from the files that will be shipped.
"""

import contextlib
import copy
import io
import json
import logging
import platform
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, cast

import torch
from transformers import PreTrainedModel
from transformers.utils import find_labels

from hf_efficient.candidates import Candidate, check_choice
from hf_efficient.errors import ConfigError, ExportError
from hf_efficient.exported import pipeline_of
from hf_efficient.files import atomic_folder, refuse_other_contents, write_json
from hf_efficient.functional.batching import by_length
from hf_efficient.guard import FLOOR, TOLERANCE, Comparison, Metrics, compare, judge
from hf_efficient.machine import MB, machine
from hf_efficient.measure import Measurement, Timing, measure
from hf_efficient.runtimes import RUNTIMES, ExportedRuntime, load_runtime
from hf_efficient.timing import Runtime, TorchRuntime

if TYPE_CHECKING:
    from transformers.exporters import ExportedModel

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
    """

    folder: Path
    format: str
    quantize: str
    comparison: Comparison
    metrics: dict[str, float]
    measurement: Measurement | None

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
            comparison = Comparison(**values["comparison"])
            measured = values["measurement"]
            measurement = None if measured is None else Measurement.from_dict(measured)
            kind = values["format"], values["quantize"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ConfigError(f"no readable {REPORT} in {folder} ({type(error).__name__}); export again") from error
        return cls(Path(folder), *kind, comparison, comparison.metrics_export, measurement)


CALIBRATION_EXAMPLES, CALIBRATION_BATCH = 320, 8
"""Real inputs from which static int8 takes the ranges of activations, in batches of similar length."""


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
        format: ``onnx`` or ``openvino``.
        quantize: ``none`` (fp32), ``dynamic`` (int8 weights, activations quantized as they come; ONNX only), or
            ``static`` (activations quantized in ranges seen beforehand).
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
    candidate = check_choice(format, quantize, max_drop)
    candidate.require()
    refuse_other_contents(folder, REPORT)
    plain = _plain(model)
    if not len(examples):
        raise ConfigError("an export is traced and checked on real examples, and there are none; pass some")
    with atomic_folder(folder) as path:
        convert(plain, candidate, examples, collate, calibration).save_pretrained(path)
        if processor is not None:
            processor.save_pretrained(path)
        comparison = _verify(
            load_runtime(path),
            plain,
            *(examples, collate),
            exact=candidate.exact,
            max_drop=max_drop,
            metrics=metrics,
            main_metric=main_metric,
            greater_is_better=greater_is_better,
        )
        if timing is None and seconds:
            timing = _default_timing(examples, collate, seconds)
        # The weights are the model's, stored in another way: so is their number
        measurement = Measurement.of(timing(load_runtime(path)), plain, path) if timing else None
        result = ExportResult(Path(folder), format, quantize, comparison, comparison.metrics_export, measurement)
        write_json(path / REPORT, _report(result, candidate, max_drop))
    return result


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
    return _verify(load_runtime(folder), _plain(model), examples, collate, exact=exact, max_drop=max_drop, **metrics)


def _verify(
    runtime: ExportedRuntime, model: PreTrainedModel, *data: Any, exact: bool, max_drop: float, **metrics: Any
) -> Comparison:
    _check_labels(model, runtime)
    comparison = compare(TorchRuntime(model), runtime, *data, **metrics)
    judge(comparison, exact=exact, max_drop=max_drop)
    return comparison


def _plain(model: torch.nn.Module) -> PreTrainedModel:
    """``model`` in fp32 on the CPU, evaluating, without a wrapper of mixed precision around `forward`."""
    if not isinstance(model, PreTrainedModel):
        raise ConfigError(
            f"export takes a transformers model, got {type(model).__name__}; merge adapters first "
            "(model.merge_and_unload())"
        )
    pipeline_of(type(model).__name__)
    plain = copy.deepcopy(model)
    for wrapper in ("forward", "_original_forward"):
        vars(plain).pop(wrapper, None)
    plain.config.architectures = [type(plain).__name__]  # as `save_pretrained` would write it
    return cast(Any, plain).to("cpu", torch.float32).eval()


def _inputs(model: PreTrainedModel, collate: Callable[..., Any], examples: Sequence[Any]) -> dict[str, torch.Tensor]:
    """A batch to trace with: of three, as tracing takes an axis of one for a constant."""
    return without_labels(model, collate([examples[index % len(examples)] for index in range(3)]))


def without_labels(model: PreTrainedModel, batch: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    labels = {"labels", *find_labels(type(model))}
    return {name: value for name, value in batch.items() if name not in labels}


def convert(
    model: torch.nn.Module,
    candidate: Candidate,
    examples: Sequence[Mapping[str, Any]],
    collate: Callable[[list[Any]], Mapping[str, Any]],
    calibration: Sequence[Mapping[str, Any]] | None = None,
) -> "ExportedModel":
    """``model`` converted and not checked; arguments and errors as for `export`."""
    candidate.require()
    plain = _plain(model)
    batches = _calibration(candidate, plain, collate, examples if calibration is None else calibration)
    return _convert(candidate, plain, _inputs(plain, collate, examples), batches)


def _calibration(
    candidate: Candidate, model: PreTrainedModel, collate: Callable[..., Any], examples: Sequence[Any]
) -> list[dict[str, torch.Tensor]]:
    """Batches of real inputs; short ones together, so that padding is no part of the ranges."""
    if not candidate.calibrated:
        return []
    chosen = by_length([examples[index] for index in range(min(CALIBRATION_EXAMPLES, len(examples)))])
    starts = range(0, len(chosen), CALIBRATION_BATCH)
    return [without_labels(model, collate(chosen[start : start + CALIBRATION_BATCH])) for start in starts]


def _convert(
    candidate: Candidate,
    model: PreTrainedModel,
    inputs: dict[str, torch.Tensor],
    calibration: Sequence[dict[str, torch.Tensor]],
) -> "ExportedModel":
    try:
        with _quiet():
            return candidate.convert(model, inputs, calibration)
    except MemoryError:
        raise
    except Exception as error:  # torch, onnxscript and the runtimes each raise their own for what they cannot convert
        words = " ".join(str(error).split())[:300]
        raise ExportError(
            f"{type(model).__name__} cannot be converted to {candidate.format} ({type(error).__name__}: {words}); "
            f"try another format ({', '.join(sorted(RUNTIMES))})"
        ) from error


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Leave out what the converters tell their own makers; errors pass."""
    from transformers.exporters import exporter_dynamo, utils

    sources: list[Any] = [*map(logging.getLogger, _TALKATIVE), exporter_dynamo.logger, utils.logger]
    with contextlib.ExitStack() as stack:
        stack.enter_context(contextlib.redirect_stdout(io.StringIO()))  # torch.onnx prints each of its steps
        stack.enter_context(warnings.catch_warnings())
        # torch.export pickles its own deprecated class
        warnings.filterwarnings("ignore", r"`isinstance\(treespec, LeafSpec\)`", FutureWarning)
        for source in sources:
            source.addFilter(_is_error)
            stack.callback(source.removeFilter, _is_error)
        yield


_TALKATIVE = (
    "root",  # ONNX Runtime's quantizer: each tensor that stays as it is, advice to preprocess
    "torch.onnx._internal.exporter._registration",  # operators of torchvision, which is not there
)
"""Beside the exporters' own loggers: advice for a faster export, and versions a little newer than the tested ones."""


def _is_error(record: logging.LogRecord) -> bool:
    return record.levelno >= logging.ERROR


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

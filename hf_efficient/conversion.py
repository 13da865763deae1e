"""A model converted to another runtime's form; nothing is checked or kept."""

import contextlib
import copy
import io
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

import torch
from transformers import PreTrainedModel
from transformers.utils import find_labels

from hf_efficient.candidates import Candidate
from hf_efficient.errors import ConfigError, ExportError
from hf_efficient.exported import pipeline_of
from hf_efficient.functional.batching import by_length
from hf_efficient.runtimes import RUNTIMES

if TYPE_CHECKING:
    from transformers.exporters import ExportedModel

CALIBRATION_EXAMPLES, CALIBRATION_BATCH = 320, 8
"""Real inputs from which static int8 takes the ranges of activations, in batches of similar length."""


def plain_copy(model: torch.nn.Module) -> PreTrainedModel:
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


def trace_inputs(
    model: PreTrainedModel, collate: Callable[..., Any], examples: Sequence[Any]
) -> dict[str, torch.Tensor]:
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
    """``model`` converted; arguments and errors as for `hf_efficient.export.export`."""
    candidate.require()
    plain = plain_copy(model)
    batches = calibration_batches(candidate, plain, collate, examples if calibration is None else calibration)
    return convert_plain(candidate, plain, trace_inputs(plain, collate, examples), batches)


def calibration_batches(
    candidate: Candidate, model: PreTrainedModel, collate: Callable[..., Any], examples: Sequence[Any]
) -> list[dict[str, torch.Tensor]]:
    """Batches of real inputs; short ones together, so that padding is no part of the ranges."""
    if not candidate.calibrated:
        return []
    chosen = by_length([examples[index] for index in range(min(CALIBRATION_EXAMPLES, len(examples)))])
    starts = range(0, len(chosen), CALIBRATION_BATCH)
    return [without_labels(model, collate(chosen[start : start + CALIBRATION_BATCH])) for start in starts]


def convert_plain(
    candidate: Candidate,
    model: PreTrainedModel,
    inputs: dict[str, torch.Tensor],
    calibration: Sequence[dict[str, torch.Tensor]],
    in_float: Sequence[str] = (),
) -> "ExportedModel":
    try:
        with _quiet():
            return candidate.convert(model, inputs, calibration, in_float)
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

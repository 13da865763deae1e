"""ONNX Runtime and OpenVINO over a folder that `hf_efficient.export` wrote: each can be timed, and called by batch."""

import importlib.util
import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, ClassVar

from hf_efficient.errors import ConfigError, MissingDependencyError, unknown
from hf_efficient.signal_stack import signal_stack_kept

MANIFEST = "export.json"
"""What transformers' exporters write beside a program; a folder with it is an export."""


class ExportedRuntime(ABC):
    """A runtime of `hf_efficient.timing.Runtime` over an exported folder, on the CPU.

    Args:
        folder: what `export` wrote.
        threads: CPU threads within an operator; None leaves the choice to the runtime.
        alone: whether no other model computes on the same cores. Threads of ONNX Runtime then wait spinning for the
            next operator, which makes it faster; beside others it makes all of them slower.

    Raises:
        ConfigError: not an export of this format, or damaged.
        MissingDependencyError: the runtime is not installed.
    """

    name: str
    format: ClassVar[str]
    """Of the export: the key in `RUNTIMES`, and the name of the extra that brings the packages."""
    packages: ClassVar[tuple[str, ...]]
    """Modules that must be there; the first is the runtime itself."""

    device: str = "cpu"

    def __init__(self, folder: str | Path, threads: int | None = None, *, alone: bool = True):
        require(self.format)
        from transformers.exporters import ExportedModel

        found = format_of(folder)
        if found != self.format:
            raise ConfigError(f"{folder} holds an export of format '{found}'; load it with {RUNTIMES[found].__name__}")
        self.version = metadata.version(self.packages[0])
        self.folder, self.alone = Path(folder), alone
        self._load = ExportedModel.from_pretrained
        self._by_threads: dict[int | None, Any] = {}
        self._use(threads)

    @abstractmethod
    def _options(self, threads: int | None) -> dict[str, Any]:
        """Arguments of transformers' runner for this many threads."""

    def set_threads(self, threads: int) -> None:
        """Compute with this many threads from now on.

        In a session of its own, as neither runtime can change an open one; sessions stay open. Closing and opening them
        by turns, as measurements do, left OpenVINO with one thread of two after some dozen times.
        """
        self._use(threads)

    def _use(self, threads: int | None) -> None:
        if threads not in self._by_threads:
            try:
                with signal_stack_kept():
                    self._by_threads[threads] = self._load(self.folder, device="cpu", **self._options(threads))
            except Exception as error:  # each runtime has its own errors for files that it cannot read
                raise _damaged(self.folder, error) from error
        self.exported = self._by_threads[threads]

    @property
    def inputs(self) -> list[str]:
        """Names of the inputs that the model was traced with; others in a batch are not used."""
        return list(self._metadata.kwargs)

    @property
    def architecture(self) -> str:
        """Class of the source model."""
        return str(self._metadata.architecture)

    @property
    def _metadata(self) -> Any:
        return next(iter(self.exported.components.values())).metadata

    def predict(self, batch: Mapping[str, Any]) -> Any:
        """The source model's output class, e.g. with ``logits``, for a collated batch; labels in it are not used.

        Raises:
            ConfigError: the batch lacks an input.
        """
        given = {name: batch[name] for name in self.inputs if name in batch}
        missing = [name for name in self.inputs if name not in given]
        if missing:
            raise ConfigError(
                f"the export in {self.folder} takes {', '.join(self.inputs)}, but the batch lacks {', '.join(missing)}"
            )
        return self.exported(**given)


class OnnxRuntime(ExportedRuntime):
    """ONNX Runtime on its CPU provider."""

    name = "ONNX Runtime"
    format = "onnx"
    packages = ("onnxruntime", "onnx", "onnxscript")

    def _options(self, threads: int | None) -> dict[str, Any]:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3  # errors: below that it tells what it could not optimize
        options.inter_op_num_threads = 1
        options.intra_op_num_threads = threads or 0
        options.add_session_config_entry("session.intra_op.allow_spinning", str(int(self.alone)))
        return {"session_options": options}


class OpenVINORuntime(ExportedRuntime):
    """OpenVINO on its CPU plugin, in fp32: left to itself it computes in bf16 on processors that have it."""

    name = "OpenVINO"
    format = "openvino"
    packages = ("openvino",)

    def _options(self, threads: int | None) -> dict[str, Any]:
        config: dict[str, Any] = {"INFERENCE_PRECISION_HINT": "f32"}
        if threads is not None:
            config["INFERENCE_NUM_THREADS"] = threads
        return {"config": config}


RUNTIMES: dict[str, type[ExportedRuntime]] = {cls.format: cls for cls in (OnnxRuntime, OpenVINORuntime)}
"""Format of an export -> what runs it."""


def load_runtime(folder: str | Path, threads: int | None = None, *, alone: bool = True) -> ExportedRuntime:
    """The runtime of the export in ``folder``; arguments are those of `ExportedRuntime`.

    Raises:
        ConfigError: not an export, or damaged.
        MissingDependencyError: the runtime is not installed.
    """
    return RUNTIMES[format_of(folder)](folder, threads, alone=alone)


def format_of(folder: str | Path) -> str:
    """The format of the export in ``folder``.

    Raises:
        ConfigError: not an export, damaged, or of a format without a runtime here.
    """
    path = Path(folder) / MANIFEST
    if not path.is_file():
        raise ConfigError(
            f"{folder} is not an exported model: it has no {MANIFEST}. Write one with `hf-efficient export` or "
            "EfficientTrainer.export()"
        )
    try:
        found = json.loads(path.read_text(encoding="utf-8"))["export_format"]
    except (ValueError, KeyError, TypeError) as error:
        raise _damaged(folder, error) from error
    if found not in RUNTIMES:
        raise ConfigError(f"{folder}: {unknown('format', str(found), RUNTIMES)}")
    return found


def require(format: str) -> None:
    """Refuse a format whose packages are not installed.

    Raises:
        MissingDependencyError: names the first that is missing.
    """
    require_packages(RUNTIMES[format].packages, f"export format '{format}'", format)


def require_packages(packages: Sequence[str], what: str, extra: str) -> None:
    """Refuse ``what`` where one of the ``packages`` that it takes, and ``extra`` brings, is not installed.

    Raises:
        MissingDependencyError: names the first that is missing.
    """
    for package in packages:
        if importlib.util.find_spec(package) is None:
            raise MissingDependencyError(what, package, extra)


def _damaged(folder: str | Path, error: Exception) -> ConfigError:
    words = " ".join(str(error).split())[:200]
    return ConfigError(f"the export in {folder} cannot be loaded ({type(error).__name__}: {words}); export again")

"""Exported models as models: called like the one they were made from, and in `transformers.pipeline`."""

import shutil
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_AUDIO_CLASSIFICATION_MAPPING_NAMES

from hf_efficient.errors import ConfigError, HubError, unknown
from hf_efficient.files import atomic_folder
from hf_efficient.hub import downloaded, hub_id
from hf_efficient.runtimes import MANIFEST, RUNTIMES, ExportedRuntime, load_runtime

PIPELINES = {
    "ForAudioClassification": ("audio-classification", "feature_extractor"),
    "ForSequenceClassification": ("text-classification", "tokenizer"),
    "ForTokenClassification": ("token-classification", "tokenizer"),
    "ForImageClassification": ("image-classification", "image_processor"),
}
"""End of an architecture's name -> its pipeline, and the argument by which that takes its processor. Models of these
kinds are exported, and no others."""

_PROCESSORS = {
    "feature_extractor": ("AutoFeatureExtractor", "preprocessor_config.json"),
    "tokenizer": ("AutoTokenizer", "tokenizer_config.json"),
    "image_processor": ("AutoImageProcessor", "preprocessor_config.json"),
}
"""Argument of a pipeline -> auto class, and the file that every saved one has: without files, some load empty."""


def exported_folder(name: str | Path) -> Path:
    """Folder of an export: ``name`` itself, or, of a repository that `publish` made, its export in the cache.

    Raises:
        HubError: there is neither.
    """
    if hub_id(str(name)) is None:
        return Path(name)
    found = downloaded(str(name), [f"{format}/*" for format in RUNTIMES])
    for format in RUNTIMES:
        if (found / format / MANIFEST).is_file():
            return found / format
    raise HubError(f"the repository '{name}' has no export; push a run whose recipe has an `export:` block")


class ExportedForTask(PreTrainedModel):
    """An exported graph that takes and returns what its source model does. `load_exported` makes it.

    Attributes:
        runtime: what runs the graph.
    """

    def __init__(self, config: Any, runtime: ExportedRuntime):
        super().__init__(config)
        self.runtime = runtime
        self.eval()

    def forward(self, **inputs: Any) -> Any:
        """The source model's outputs, e.g. ``logits``; tensors on the CPU."""
        return self.runtime.predict(inputs)

    @property
    def device(self) -> torch.device:
        return torch.device(self.runtime.device)

    @property
    def dtype(self) -> torch.dtype:
        return torch.float32

    def set_threads(self, threads: int) -> None:
        """Compute with this many CPU threads from now on."""
        self.runtime.set_threads(threads)

    def save_pretrained(self, save_directory: Any, **kwargs: Any) -> None:
        """Copy the exported folder."""
        with atomic_folder(save_directory) as path:
            shutil.copytree(self.runtime.folder, path, dirs_exist_ok=True)


def load_exported(folder: str | Path, threads: int | None = None) -> ExportedForTask:
    """The exported model in ``folder``: call it with a batch, or hand it to `transformers.pipeline`.

    Args:
        folder: of an export, or a repository on the Hub that `publish` made.
        threads: CPU threads; None leaves the choice to the runtime.

    Raises:
        ConfigError: not an export, or damaged.
        HubError: neither a folder nor a repository with an export.
        MissingDependencyError: its runtime is not installed.
    """
    folder = exported_folder(folder)
    runtime = load_runtime(folder, threads)
    config = AutoConfig.from_pretrained(folder)
    # Pipelines know models by their class's name, and this one stands in for its source
    cls = type(runtime.architecture, (ExportedForTask,), {"__doc__": ExportedForTask.__doc__})
    return cls(config, runtime)


def exported_pipeline(folder: str | Path, threads: int | None = None, **kwargs: Any) -> Any:
    """A `transformers.pipeline` that answers with the exported model in ``folder``.

    Args:
        folder: as for `load_exported`.
        kwargs: passed on to `transformers.pipeline`.

    Raises:
        ConfigError: not an export, damaged, or without the processor's files.
        HubError: neither a folder nor a repository with an export.
        MissingDependencyError: its runtime is not installed.
    """
    folder = exported_folder(folder)
    model = load_exported(folder, threads)
    task, argument = pipeline_of(type(model).__name__)
    if argument not in kwargs:
        kwargs[argument] = _processor(folder, argument)
    pipeline: Any = transformers.pipeline  # typed for each task's own name
    return pipeline(task, model=model, device="cpu", **kwargs)


def pipeline_of(architecture: str) -> tuple[str, str]:
    """Name of the pipeline for a class of models, and the argument by which it takes the processor.

    Raises:
        ConfigError: models of this kind are not exported.
    """
    if architecture in MODEL_FOR_AUDIO_CLASSIFICATION_MAPPING_NAMES.values():  # some end as models of texts do
        return PIPELINES["ForAudioClassification"]
    for ending, found in PIPELINES.items():
        if architecture.endswith(ending):
            return found
    allowed = [f"...{ending}" for ending in PIPELINES]
    raise ConfigError(
        f"export takes models of one graph with a classifier, and none that generate: "
        f"{unknown('kind', architecture, allowed)}; serve others in PyTorch, without an export"
    )


def _processor(folder: str | Path, argument: str) -> Any:
    auto_class, file = _PROCESSORS[argument]
    remedy = f"pass {argument}=..., or export again with processor=..."
    if not (Path(folder) / file).is_file():
        raise ConfigError(f"{folder} has no {argument} ({file}); {remedy}")
    try:
        return getattr(transformers, auto_class).from_pretrained(folder)
    except (OSError, ValueError, KeyError) as error:
        words = " ".join(str(error).split())[:120]
        raise ConfigError(f"the {argument} in {folder} cannot be read ({words}); {remedy}") from error

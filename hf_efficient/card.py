"""The model card: what a finished model is, what it measured, how to load it and how it was trained.

Metadata is what is known, and nothing else: a path on this machine is never the name of a model or data set, and no
licence or language is guessed.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import transformers
from huggingface_hub import EvalResult, ModelCard, ModelCardData
from transformers import PreTrainedConfig
from transformers.modelcard import TASK_MAPPING
from transformers.pipelines import SUPPORTED_TASKS

from hf_efficient.checkpoint import manifest_of, shapes_of
from hf_efficient.errors import ConfigError, unknown
from hf_efficient.files import write_text
from hf_efficient.hub import CARD, LOCAL, hub_id, is_local_path, without_paths
from hf_efficient.report import Report
from hf_efficient.wording import details

PICTURE = "report.png"
TAG = "hf-efficient"
MODEL = "user/name"
"""Stands for the model in the card's code until a push gives it a name."""

LOADING, TRAINING = "## How to load it", "## How it was trained"

_TASKS: Mapping[str, Any] = TASK_MAPPING
_PIPELINES: Mapping[str, Any] = SUPPORTED_TASKS
_SAMPLE = "sample:"
_SHOWN_CLASSES = 30
_SENTENCES = "modules.json"
"""The file that tells a model of sentence-transformers."""
_PROCESSORS = ("tokenizer_config.json", "preprocessor_config.json", "processor_config.json")


@dataclass(frozen=True, kw_only=True)
class About:
    """What neither the report nor the model's folder tells; what is not known stays out of the card.

    Attributes:
        name: of the model.
        base_model: what it was fine-tuned from, as given; told only if it is a Hub id.
        data: source of the training data, as in `hf_efficient.data.DataSettings`; None where not known.
        split: of the data that the report's metrics are on.
        training: phase -> its settings.
        language, license: as on the Hub, e.g. "en", "apache-2.0".
        tags: besides our own and those of the optimizations.
    """

    name: str
    base_model: str | None = None
    data: str | None = None
    split: str = "evaluation"
    training: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    language: str | list[str] | None = None
    license: str | None = None
    tags: tuple[str, ...] = ()


def write_card(folder: str | Path, report: Report, about: About) -> Path:
    """Write the card and its picture into the folder of a saved model, each atomically.

    Returns:
        the card's path.

    Raises:
        ConfigError: one cannot be written.
    """
    folder = Path(folder)
    report.plot(folder / PICTURE)
    path = folder / CARD
    write_text(path, str(card(folder, report, about)))
    return path


def card(folder: str | Path, report: Report, about: About) -> ModelCard:
    """The card of the model saved in ``folder``."""
    config = _config(Path(folder))
    embeds = _embeds(Path(folder))
    task = _task(Path(folder), config)
    data = ModelCardData(
        model_name=about.name,
        base_model=hub_id(about.base_model),
        datasets=[name] if (name := _data_id(about.data)) else None,
        language=about.language,
        license=about.license,
        library_name="sentence-transformers" if embeds else "transformers" if config is not None else None,
        pipeline_tag=task,
        tags=[TAG, *dict.fromkeys(change["name"] for change in report.changes if "name" in change), *about.tags],
        eval_results=_results(report, about, task) or None,
    )
    sections = [
        _introduction(report, about, config, task),
        _figures(report),
        loading(folder),
        _training(report, about),
        _limits(report, about),
    ]
    return ModelCard(f"---\n{data.to_yaml()}\n---\n\n" + "\n\n".join(filter(None, sections)) + "\n")


def pipeline_task(config: PreTrainedConfig | None) -> str | None:
    """Name, for the Hub and `transformers.pipeline`, of the task of the class in ``config``; None if unknown."""
    names = set((config and config.architectures) or [])
    for task, classes in _TASKS.items():
        for name in classes.values():
            if names & set([name] if isinstance(name, str) else name):
                return task
    return None


def update_card(path: str | Path, repo_id: str | None = None, **metadata: Any) -> None:
    """Complete a card that `write_card` wrote.

    Args:
        repo_id: the name that the model gets on the Hub, for the card's code.
        metadata: what `transformers.Trainer.create_model_card` takes: language, license, tags, model_name,
            finetuned_from, tasks, dataset_tags, dataset (its readable name), dataset_args (its configuration).

    Raises:
        ConfigError: other metadata.
    """
    found = ModelCard.load(path)
    complete(found, repo_id, **metadata)
    write_text(path, str(found))


def complete(found: ModelCard, repo_id: str | None = None, **metadata: Any) -> None:
    """As `update_card`, of a card in memory."""
    values = {name: value for name, value in metadata.items() if value is not None}
    if repo_id:
        found.text = found.text.replace(f'"{MODEL}"', f'"{repo_id}"')
        values.setdefault("model_name", repo_id.split("/")[-1])
    for name, value in values.items():
        if name not in _SETTERS:
            raise ConfigError(unknown("model card metadata", name, _SETTERS))
        _SETTERS[name](found.data, value)


def _task(folder: Path, config: PreTrainedConfig | None) -> str | None:
    return "sentence-similarity" if _embeds(folder) else pipeline_task(config)


def _embeds(folder: Path) -> bool:
    return (folder / _SENTENCES).is_file()


def _config(folder: Path) -> PreTrainedConfig | None:
    path = folder / "config.json"
    return PreTrainedConfig.from_json_file(path) if path.is_file() else None


def _data_id(source: str | None) -> str | None:
    """The Hub id of a data source; None for samples, files and what is not known."""
    return hub_id((source or "").partition(":")[0]) if source and not source.startswith(_SAMPLE) else None


def _data_words(source: str | None) -> tuple[str, str]:
    """Type and name of a data source: of a Hub data set both are its id, files keep their names to themselves."""
    if source is None:
        return "unknown", "evaluation data"
    if source.startswith(_SAMPLE):
        return "sample", f"{source.removeprefix(_SAMPLE)} (sample data of hf_efficient)"
    name = _data_id(source)
    return (name, name) if name else ("local", "local files")


def _results(report: Report, about: About, task: str | None) -> list[EvalResult]:
    kind, name = _data_words(about.data)
    config = about.data.partition(":")[2] if about.data and _data_id(about.data) else ""
    sides = {"": report.metrics_after}
    if report.exported is not None:
        sides[f" ({report.exported.runtime})"] = report.metrics_exported
    return [
        EvalResult(
            task_type=task or "other",
            dataset_type=kind,
            dataset_name=name,
            dataset_config=config or None,
            dataset_split=about.split,
            metric_type=metric,
            metric_name=f"{metric}{runtime}",
            metric_value=round(value, 6),
        )
        for runtime, metrics in sides.items()
        for metric, value in metrics.items()
        if metric != "loss" and math.isfinite(value)
    ]


def _introduction(report: Report, about: About, config: PreTrainedConfig | None, task: str | None) -> str:
    kind = ((config and config.architectures) or ["model"])[0]
    base = hub_id(about.base_model)
    start = f"fine-tuned from [{base}](https://huggingface.co/{base})" if base else "fine-tuned"
    lines = [f"# {about.name}", "", f"A `{kind}`, {start}{f' for {task}' if task else ''}."]
    if about.data:
        lines[-1] += f" Trained on {_data_sentence(about.data)}."
    if done := list(dict.fromkeys(f"`{change['name']}`" for change in report.changes if "name" in change)):
        lines[-1] += f" Optimizations: {', '.join(done)}."
    told = [f"{row.label}: {row.ratio}" for row in report.rows() if row.plotted and row.ratio]
    if told:
        lines += ["", f"Compared with the model before: {'; '.join(told)}."]
    return "\n".join([*lines, *_classes(config)])


def _data_sentence(source: str) -> str:
    name = _data_id(source)
    return f"[{name}](https://huggingface.co/datasets/{name})" if name else _data_words(source)[1]


def _classes(config: PreTrainedConfig | None) -> list[str]:
    names = [str(name) for name in ((config and config.id2label) or {}).values()]
    if not names or names[0] == "LABEL_0":
        return []
    more = f" and {len(names) - _SHOWN_CLASSES} more" if len(names) > _SHOWN_CLASSES else ""
    return ["", f"{len(names)} classes: {', '.join(f'`{name}`' for name in names[:_SHOWN_CLASSES])}{more}."]


def _figures(report: Report) -> str:
    lines = ["## Before and after", "", f"![Before and after, as in the table below]({PICTURE})", ""]
    rows = [row for row in report.rows() if set(row.values) != {None}]
    lines += [*report.markdown_table(rows), "", "Measured on:", ""]
    return "\n".join([*lines, *(f"- **{name}:** {text}" for name, text in report.conditions().items())])


def loading(folder: str | Path, portable: bool = False) -> str:
    """The section on how to load the model in ``folder``; empty where nobody but its maker can.

    Args:
        portable: with code of its own rather than ours, see `hf_efficient.portable`.
    """
    folder = Path(folder)
    config = _config(folder)
    task = _task(folder, config)
    if config is None or not config.architectures:
        return ""
    pipelines = _PIPELINES.get(task or "", {}).get("pt", ())
    loader = next((auto.__name__ for auto in pipelines), config.architectures[0])
    has_pipeline = bool(pipelines) and any((folder / name).is_file() for name in _PROCESSORS)
    if not hasattr(transformers, loader):  # a class of the user's own
        return ""
    if _embeds(folder):
        library, call = "from sentence_transformers import SentenceTransformer", f'SentenceTransformer("{MODEL}")'
    else:
        library = f"from transformers import {loader}{', pipeline' if has_pipeline else ''}"
        call = f'{loader}.from_pretrained("{MODEL}")'
    code = [library, ""]
    reason = None if portable else _own_format(config)
    if reason is not None:
        code = [f"import hf_efficient  # {reason}, which this reads", *code]
    trusted = ", trust_remote_code=True" if portable and shapes_of(config) else ""
    code.append(f"model = {call[:-1]}{trusted})")
    if has_pipeline:
        code.append(f'predict = pipeline("{task}", model="{MODEL}"{trusted})  # with the preprocessing')
    lines = [LOADING, "", "The name on the Hub, or the folder of this card:", "", "```python", *code, "```"]
    return "\n".join([*lines, "", "`pip install hf-efficient` first."] if reason is not None else lines)


def _own_format(config: PreTrainedConfig) -> str | None:
    """What only our loader reads in a model's folder; None where any does."""
    manifest = manifest_of(config)
    if manifest is not None and manifest.codebooks:
        return "weights are indices into codebooks"
    return "the layers have sizes of their own" if manifest is not None and manifest.modules else None


def _training(report: Report, about: About) -> str:
    lines = [TRAINING, ""]
    measured = {phase: figures for phase, figures in report.training.items() if isinstance(figures, Mapping)}
    for phase in dict.fromkeys([*about.training, *measured]):
        lines.append(f"- **{phase}:** {details(without_paths(dict(about.training.get(phase, {}))))}")
        if phase in measured:
            lines.append(f"  - measured: {details(measured[phase])}")
    for change in report.changes:
        lines.append(f"- **{change.get('name', '?')}**: {details(without_paths(change))}")
    return "\n".join(lines)


def _limits(report: Report, about: About) -> str:
    lines = ["## Limits", ""]
    if report.metrics_after:
        lines.append(f"- Metrics are of one training, on the {about.split} split; other data may give others.")
    lines.append(
        "- Speed and memory were measured on the machine named above. Yours gives other figures: measure there."
    )
    if lost := report.losers():
        lines.append(f"- Recognised less often than before: {'; '.join(f'`{name}` {text}' for name, text in lost)}.")
    return "\n".join([*lines, *(f"- {note}" for note in public_notes(report.notes))])


def public_notes(notes: Sequence[str]) -> list[str]:
    """Those that name no path of this machine."""
    return [note for note in notes if LOCAL not in note and not any(map(is_local_path, note.split()))]


def _tags(data: ModelCardData, tags: str | list[str]) -> None:
    data.tags = list(dict.fromkeys([*(data.tags or []), *([tags] if isinstance(tags, str) else tags)]))


def _base_model(data: ModelCardData, name: str) -> None:
    data.base_model = hub_id(name) or data.base_model


def _datasets(data: ModelCardData, names: str | list[str]) -> None:
    names = [names] if isinstance(names, str) else names
    known = [name for name in names if hub_id(name)]
    data.datasets = known or data.datasets
    if known:
        _set_results(data, dataset_type=known[0])


def _set_results(data: ModelCardData, **values: str) -> None:
    for result in data.eval_results or []:
        for name, value in values.items():
            setattr(result, name, value)


def _first(value: str | list[str]) -> str:
    return value if isinstance(value, str) else value[0]


_SETTERS: dict[str, Any] = {
    "language": lambda data, value: setattr(data, "language", value),
    "license": lambda data, value: setattr(data, "license", value),
    "model_name": lambda data, value: setattr(data, "model_name", value),
    "tags": _tags,
    "finetuned_from": _base_model,
    "tasks": lambda data, value: setattr(data, "pipeline_tag", _first(value)),
    "dataset_tags": _datasets,
    "dataset": lambda data, value: _set_results(data, dataset_name=_first(value)),
    "dataset_args": lambda data, value: _set_results(data, dataset_config=_first(value)),
}

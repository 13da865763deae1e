"""Task: what a kind of problem (text classification, ...) needs to turn data and a model name into a training."""

import functools
import importlib
import logging
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any, ClassVar

import numpy as np
import torch
import transformers
from datasets import Dataset, DatasetDict
from transformers import AutoConfig, EvalPrediction, PretrainedConfig, PreTrainedModel

from hf_efficient.arguments import EfficientTrainingArguments
from hf_efficient.data import DataSettings
from hf_efficient.errors import ConfigError, DataError, unknown
from hf_efficient.machine import available_cores
from hf_efficient.pretrained import is_new, load_pretrained, new_model, resolve_model
from hf_efficient.reading import quiet
from hf_efficient.timing import Runtime, TorchRuntime
from hf_efficient.trainer import EfficientTrainer

logger = logging.getLogger(__name__)

TASKS = {
    "audio-classification": "hf_efficient.tasks.audio_classification:AudioClassification",
    "image-classification": "hf_efficient.tasks.image_classification:ImageClassification",
    "image-generation": "hf_efficient.tasks.image_generation:ImageGeneration",
    "object-detection": "hf_efficient.tasks.object_detection:ObjectDetection",
    "recommendation": "hf_efficient.tasks.recommendation:Recommendation",
    "reinforcement-learning": "hf_efficient.tasks.reinforcement_learning:ReinforcementLearning",
    "sentence-similarity": "hf_efficient.tasks.sentence_similarity:SentenceSimilarity",
    "speech-recognition": "hf_efficient.tasks.speech_recognition:SpeechRecognition",
    "summarization": "hf_efficient.tasks.summarization:Summarization",
    "text-classification": "hf_efficient.tasks.text_classification:TextClassification",
    "text-generation": "hf_efficient.tasks.text_generation:TextGeneration",
    "token-classification": "hf_efficient.tasks.token_classification:TokenClassification",
    "translation": "hf_efficient.tasks.translation:Translation",
}
"""Name -> where the class lives. Strings, so that the core imports no instance."""

MANY_FOR_PROCESSES = 2000
"""Rows from which on files are read in several processes."""
_MANY_ROWS = 100_000  # encoding takes longer than a few seconds: worth a progress bar
_PROCESS = os.getpid()


class Task(ABC):
    """A kind of problem. Used in this order::

        data = load(settings)
        task = TextClassification(settings)
        task.check(data)                          refuse data that does not fit; learn the labels
        processor = task.load_processor(model)
        encoded = task.encode_all(data)           model inputs
        model = task.load_model(model)            with a head for these labels
        args = task.arguments_class("out", **task.arguments())
        task.trainer(model=model, args=args, train_dataset=encoded["train"], ...)

    Without `check`, the labels are those of the first model that is loaded: that is how a finished model is used.

    Attributes:
        settings: an instance of `data_settings`.
        label_names: the class names, by index; empty before `check`, and for tasks without classes.
        processor: what `load_processor` returned.
    """

    name: ClassVar[str]
    """Key in `TASKS` and recipes."""

    pipeline: ClassVar[str]
    """Task of `transformers.pipeline`; empty where transformers has none."""

    auto_model: ClassVar[str]
    """Auto class of the model, e.g. ``AutoModelForSequenceClassification``."""

    auto_processor: ClassVar[str] = "AutoTokenizer"
    """Auto class of the tokenizer, image processor or feature extractor."""

    data_settings: ClassVar[type[DataSettings]] = DataSettings

    trainer_class: type = EfficientTrainer
    """What trains its models; `efficient(AnyTrainer)` where the stock loop is not enough."""

    arguments_class: type = EfficientTrainingArguments
    """What `trainer_class` takes as arguments; the `training` block of a recipe's stage names its fields."""

    reduce_logits: ClassVar[Callable[[Any, Any], Any] | None] = None
    """From logits and labels of a batch to what `compute_metrics` gets of it, where logits of a whole split are too
    much to keep: `preprocess_logits_for_metrics` of a Trainer."""

    main_metric: str = "accuracy"
    """The metric by which checkpoints, targets and trials are compared."""

    greater_is_better: ClassVar[bool] = True

    def __init__(self, settings: DataSettings):
        self.settings = settings
        self.label_names: list[str] = []
        self.processor: Any = None
        self._is_checked = self._order_is_final = False

    def check(self, data: DatasetDict) -> None:
        """Validate every split and learn the labels from train.

        Raises:
            DataError: data that does not fit the task.
        """
        self.label_names = self.labels(data)
        self._is_checked, self._order_is_final = True, False

    def labels(self, data: DatasetDict) -> list[str]:
        """Class names in the order of their indices; empty for tasks without classes."""
        return []

    def load_processor(self, model: str, **kwargs: Any) -> Any:
        """The processor of ``model`` (Hub id or folder), also kept as `processor`.

        Args:
            kwargs: passed on to ``from_pretrained``.

        Raises:
            ConfigError: there is none, or it cannot be read.
        """
        source = resolve_model(model)
        self._order_labels(load_pretrained(AutoConfig, source), model)
        self.processor = load_pretrained(getattr(transformers, self.auto_processor), source, **kwargs)
        return self.processor

    def load_model(self, model: str, **kwargs: Any) -> PreTrainedModel:
        """``model`` (Hub id or folder) in fp32, with a head for `label_names`; ``new:<model>``: with random weights.

        Fine-tuning a classifier onto other labels is normal: a head of another size is initialised anew, with a
        warning.

        Args:
            kwargs: passed on to ``from_pretrained``, e.g. ``dtype``.

        Raises:
            ConfigError: there is no such model, or it cannot be read.
        """
        source = resolve_model(model)
        config = load_pretrained(AutoConfig, source)
        self._order_labels(config, model)
        self.fit_config(config)
        auto_class = self.auto_class()
        if is_new(model):
            return new_model(auto_class, config, **kwargs)
        loaded, info = load_pretrained(
            auto_class,
            source,
            # 16-bit checkpoints would train in 16 bits, without a master copy of the weights
            **{"dtype": "float32", **kwargs, "config": config},
            ignore_mismatched_sizes=True,
            output_loading_info=True,
        )
        _check_loaded(loaded, info, model)
        return loaded

    def auto_class(self) -> Any:
        """What loads its models: `auto_model`."""
        return getattr(transformers, self.auto_model)

    def fit_config(self, config: PretrainedConfig) -> None:
        """Change ``config`` to what the data needs, before the model is made from it: here, names of classes."""
        if self.label_names:
            config.id2label = dict(enumerate(self.label_names))
            config.label2id = {name: index for index, name in enumerate(self.label_names)}

    def _order_labels(self, config: PretrainedConfig, model: str) -> None:
        """Keep the model's own label order where it has the same labels: its head stays right as it is.

        Only until the first processor or model is loaded; data is encoded in that order from then on.
        """
        names = dict(config.id2label or {}).items()
        own = [str(name) for _, name in sorted(names, key=lambda item: int(item[0]))]
        same = sorted(own) == sorted(self.label_names)
        if not self._order_is_final:
            self._order_is_final = True
            if same or not self._is_checked:
                self.label_names = own
            elif len(own) == len(self.label_names) and own[0] != "LABEL_0":
                logger.warning(
                    "model '%s' has a head for other labels (%s); its weights are where training on yours (%s) starts",
                    *(model, _shown(own), _shown(self.label_names)),
                )
        elif same and own != self.label_names:
            raise ConfigError(
                f"model '{model}' has the labels in the order {_shown(own)}, but the data is encoded in the order "
                f"{_shown(self.label_names)}; load the processor of '{model}' before encoding the data"
            )

    def map_batches(
        self, split: Dataset, function: Callable[..., dict[str, Any]], in_processes: bool = False, **kwargs: Any
    ) -> Dataset:
        """``split`` with its columns replaced by those that ``function`` makes of batches of rows.

        `datasets` caches the result on disk by a hash of what ``function`` refers to: let it refer to values, not self.

        Args:
            in_processes: share many rows out over a process for each core; not where ``function`` itself uses all of
                them, as fast tokenizers do.
            kwargs: passed on to `Dataset.map`.
        """
        if in_processes:
            function = functools.partial(_on_one_thread, function)
            if len(split) >= MANY_FOR_PROCESSES and available_cores() > 1:
                kwargs["num_proc"] = available_cores()
        with quiet() if len(split) < _MANY_ROWS else nullcontext():
            return split.map(function, batched=True, remove_columns=split.column_names, **kwargs)

    def encode_all(self, data: DatasetDict) -> DatasetDict:
        """`encode` each split.

        Raises:
            DataError: a row that cannot be encoded; names its split.
        """
        encoded = {}
        for name, split in data.items():
            try:
                encoded[name] = self.encode(split)
            except DataError as error:
                raise DataError(f"data.{name}: {error}") from error
        return DatasetDict(encoded)

    @abstractmethod
    def encode(self, split: Dataset) -> Dataset:
        """Model inputs of each row of ``split``, plus ``labels`` where the row has them.

        Raises:
            DataError: a row that cannot be encoded; names it.
        """

    @abstractmethod
    def collator(self) -> Callable[[list[dict[str, Any]]], dict[str, Any]]:
        """Joins encoded rows into a padded batch of tensors."""

    @abstractmethod
    def compute_metrics(self, prediction: EvalPrediction) -> dict[str, float]:
        """Metrics of predictions on a whole split, `main_metric` among them."""

    def arguments(self) -> dict[str, Any]:
        """Fields of `arguments_class` that the task needs; a stage's own come before them."""
        return {}

    def trainer(self, **kwargs: Any) -> Any:
        """A `trainer_class` with collator and metrics of the task.

        Args:
            kwargs: its other arguments: model, args, data, processor.
        """
        return self.trainer_class(
            data_collator=self.collator(),
            compute_metrics=self.compute_metrics,
            preprocess_logits_for_metrics=self.reduce_logits,
            **kwargs,
        )

    def baseline(self, data: DatasetDict, split: str) -> tuple[str, dict[str, float]] | None:
        """A trivial answer that every model should beat, in words, and its metrics on ``split``; None without one.

        It may go by ``data["train"]``, as far as counting goes.
        """
        return None

    def per_class(self, prediction: EvalPrediction) -> dict[str, float]:
        """Name of each class that occurs -> share of its examples that were recognised; empty for tasks without."""
        return {}

    def details(self, prediction: EvalPrediction) -> dict[str, str | bytes]:
        """Name of a file -> its text or bytes: what a report on predictions shows beside the metrics.

        Args:
            prediction: with the rows of the split as ``inputs``, where they are at hand.
        """
        return {}

    def training_details(self, history: dict[str, list[dict[str, float]]]) -> dict[str, str | bytes]:
        """Name of a file -> its text or bytes: what a report shows of a training.

        Args:
            history: name of each stage -> what its Trainer logged (``log_history``).
        """
        return {}

    @abstractmethod
    def raw(self, example: dict[str, Any]) -> Any:
        """The input of a data row as a user's program has it: what the pipeline takes."""

    @abstractmethod
    def preprocess(self, inputs: list[Any]) -> dict[str, Any]:
        """A padded batch of tensors from `raw` inputs: what serving does before the model runs."""

    def answers(self, runtime: Runtime, inputs: Sequence[Any]) -> list[dict[str, Any]]:
        """Plain values that a user's program gets for each of some `raw` inputs.

        Raises:
            ConfigError: models of this task have no such answers.
        """
        raise ConfigError(f"models of the task {self.name} give no answers of this kind; use their pipeline")

    def logits(self, runtime: Runtime, inputs: Sequence[Any]) -> np.ndarray:
        """Logits for `raw` inputs, in one batch; shape (inputs, ...)."""
        with torch.inference_mode():
            output = runtime.predict(self.preprocess(list(inputs)))
        return np.asarray(output.logits, dtype=np.float32)

    def requests(self, rows: Dataset) -> Dataset:
        """Model inputs as they come when the model serves, one for each of ``rows``: what it is timed on."""
        return self.encode(rows)

    def runtime(self, model: PreTrainedModel) -> Runtime:
        """``model`` as it serves: what is timed."""
        return TorchRuntime(model)


def get_task(name: str) -> type[Task]:
    """The class behind a name of `TASKS`.

    Raises:
        ConfigError: unknown name.
    """
    if name not in TASKS:
        raise ConfigError(unknown("task", name, TASKS))
    module, _, attribute = TASKS[name].partition(":")
    return getattr(importlib.import_module(module), attribute)


def _on_one_thread(function: Callable[..., dict[str, Any]], *batch: Any) -> dict[str, Any]:
    """In a forked process, the threads that PyTorch had are not there; it would wait for them for ever."""
    if os.getpid() != _PROCESS:
        torch.set_num_threads(1)
    return function(*batch)


def _check_loaded(model: PreTrainedModel, info: dict[str, Any], name: str) -> None:
    """Only the head may differ from the checkpoint: a backbone of random weights would train, badly and silently.

    Raises:
        ConfigError: backbone weights of another shape, or none that fit.
    """
    prefix = f"{model.base_model_prefix}."
    backbone = {key for key in model.state_dict() if key.startswith(prefix)}
    mismatched = {key for key, *_ in info["mismatched_keys"]}
    wrong = sorted(mismatched & backbone)
    if wrong:
        raise ConfigError(f"model '{name}': weights do not fit its config.json, e.g. {wrong[0]}; save it again")
    if backbone and backbone <= set(info["missing_keys"]):
        raise ConfigError(f"model '{name}': no weight is one of a {type(model).__name__}; check its config.json")
    if mismatched:
        heads = ", ".join(sorted(mismatched))
        logger.warning("model '%s' has a head for another number of labels: %s start from random", name, heads)


def _shown(names: list[str], count: int = 5) -> str:
    return ", ".join(names[:count]) + (f", ... ({len(names)})" if len(names) > count else "")

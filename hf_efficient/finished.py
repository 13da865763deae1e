"""What becomes of a trainer's finished model: its card, its export, and its push to the Hub."""

import copy
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

import datasets
import torch
from transformers import EvalPrediction
from transformers.modelcard import extract_hyperparameters_from_trainer

from hf_efficient.card import About, update_card, write_card
from hf_efficient.errors import EfficientError
from hf_efficient.hub import CARD, hub_id, push_folder, remove_local_names, repository

if TYPE_CHECKING:
    from hf_efficient.export import ExportResult

logger = logging.getLogger(__name__)

EXPORT_EXAMPLES = 2000
"""Examples of the evaluation data, drawn by the seed, on which an export is checked at most."""

_HUB_FILES = "hf://datasets/"


def write_final_card(trainer: Any) -> None:
    """Write the card of ``trainer``'s finished model, if it was measured; that it fails costs no training."""
    if trainer.report is None:
        return
    try:
        write_card(trainer.finished, trainer.report, about(trainer))
    except (EfficientError, OSError) as error:
        logger.warning("no model card: %s", error)


def about(trainer: Any) -> About:
    """What a card can tell from a trainer: its model's origin, its data where that came from the Hub, its settings."""
    settings = {**extract_hyperparameters_from_trainer(trainer), "optimizer": trainer.args.optim.value}
    training = {"main": settings}
    if "dense" in trainer.report.training:
        training = {"dense": {**settings, "num_epochs": trainer.args.dense_epochs}, **training}
    return About(
        name=_name(trainer.args),
        base_model=hub_id(getattr(trainer.model.config, "_name_or_path", None)),
        data=_hub_source(trainer.train_dataset),
        split=_split(trainer.eval_dataset),
        training=training,
    )


def _name(args: Any) -> str:
    return Path(args.hub_model_id or Path(args.output_dir).absolute()).name


def _hub_source(dataset: Any) -> str | None:
    """``user/name`` or ``user/name:config`` of a data set that `datasets` loaded from the Hub."""
    if not isinstance(dataset, datasets.Dataset):
        return None
    files = [
        url.removeprefix(_HUB_FILES) for url in dataset.info.download_checksums or {} if url.startswith(_HUB_FILES)
    ]
    names = {url.partition("@")[0] for url in files}
    if len(names) != 1:
        return None
    config = dataset.info.config_name
    return names.pop() + (f":{config}" if config and config != "default" else "")


def _split(dataset: Any) -> str:
    if isinstance(dataset, dict):
        return next(iter(dataset), "evaluation")
    return str(getattr(dataset, "split", None) or "evaluation")


def push_finished(
    trainer: Any,
    message: str | None,
    blocking: bool,
    token: str | None,
    revision: str | None,
    private: bool | None,
    metadata: dict[str, Any],
) -> Any:
    """Push the finished model's folder as it is on disk, its card completed; on the main process.

    Raises:
        HubError: it did not arrive.
    """
    args, folder = trainer.args, trainer.finished
    trainer.callback_handler.on_push_begin(args, trainer.state, trainer.control)
    if not trainer.is_world_process_zero():
        return None
    token = args.hub_token if token is None else token
    if trainer.hub_model_id is None:
        private = args.hub_private_repo if private is None else private
        trainer.hub_model_id = repository(args.hub_model_id or _name(args), folder, token=token, private=private)
    _card_for_push(trainer, metadata)
    trainer._finish_current_push()
    for job in getattr(getattr(trainer, "push_in_progress", None), "jobs", []):
        if job.done() and not job.cancelled() and job.exception():  # stock training goes on and says nothing
            logger.warning("a checkpoint did not get to the Hub: %s", job.exception())
    return push_folder(
        folder,
        trainer.hub_model_id,
        message=message or "Finished model",
        token=token,
        revision=revision or args.hub_revision,
        blocking=blocking,
    )


def _card_for_push(trainer: Any, metadata: dict[str, Any]) -> None:
    """Our card completed or, for a model that was not measured, the stock one; both in the finished model's folder."""
    args, name = trainer.args, trainer.hub_model_id.split("/")[-1]
    if tags := getattr(trainer.model, "model_tags", None):
        given = metadata.get("tags") or []
        metadata = {**metadata, "tags": list(dict.fromkeys([*([given] if isinstance(given, str) else given), *tags]))}
    trainer.args = copy.copy(args)
    trainer.args.output_dir = str(trainer.finished)
    try:
        trainer.create_model_card(**{"model_name": name, **metadata})
    finally:
        trainer.args = args
    remove_local_names(trainer.finished)


def complete_card(trainer: Any, metadata: dict[str, Any]) -> bool:
    """Add ``metadata`` and the name on the Hub to the card that `train` left; False where it left none."""
    if trainer.finished is None or trainer.report is None or not (trainer.finished / CARD).is_file():
        return False
    if trainer.is_world_process_zero():
        update_card(trainer.finished / CARD, trainer.hub_model_id, **metadata)
    return True


def export_finished(
    trainer: Any, format: str, quantize: str, folder: str | Path | None, max_drop: float
) -> "ExportResult | None":
    """What `EfficientTrainer.export` says; on the main process, while the others wait."""
    try:
        return _exported(trainer, format, quantize, folder, max_drop) if trainer.is_world_process_zero() else None
    finally:  # also where it is refused
        trainer.accelerator.wait_for_everyone()


def _exported(trainer: Any, format: str, quantize: str, folder: str | Path | None, max_drop: float) -> "ExportResult":
    from hf_efficient.conversion import CALIBRATION_EXAMPLES
    from hf_efficient.export import export

    dataset = trainer.eval_dataset
    dataset = next(iter(dataset.values()), None) if isinstance(dataset, dict) else dataset
    best = (trainer.args.metric_for_best_model or "loss").removeprefix("eval_")
    return export(
        trainer.model,
        folder or Path(trainer.args.output_dir) / "exported",
        format=format,
        quantize=quantize,
        examples=trainer.examples(dataset, EXPORT_EXAMPLES),
        calibration=trainer.examples(trainer.train_dataset, CALIBRATION_EXAMPLES) or None,
        collate=trainer.collate,
        metrics=_export_metrics(trainer),
        main_metric=None if best == "loss" else best,
        greater_is_better=best == "loss" or trainer.args.greater_is_better is not False,
        max_drop=max_drop,
        processor=trainer.processing_class,
        seconds=getattr(trainer.args, "measure_seconds", 0),
    )


def _export_metrics(trainer: Any) -> Any:
    """`compute_metrics` as it can be called on logits and labels alone; None where it cannot."""
    given, prepare = trainer.compute_metrics, trainer.preprocess_logits_for_metrics
    if given is None or trainer.args.batch_eval_metrics or trainer.args.include_for_metrics:
        return None
    if prepare is None:
        return given

    def metrics(prediction: EvalPrediction) -> dict[str, float]:
        tensors = (torch.as_tensor(value) for value in (prediction.predictions, prediction.label_ids))
        return given(EvalPrediction(prepare(*tensors).numpy(), prediction.label_ids))

    return metrics

"""Programs that test_hub.py runs as processes of their own: the client reads its settings when it is imported.

``python -m tests.hub_client train FOLDER REPO [again] [checkpoint]`` trains from a local base model, which pushes,
and prints the logits (again: one more push with metadata; checkpoint: checkpoints are pushed too);
``load REPO`` prints the logits of the model on the hub.
"""

import json
import sys
import warnings
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForSequenceClassification

from hf_efficient import EfficientTrainer, EfficientTrainingArguments, HubError
from tests.test_parity import build
from tests.tiny import text_model

CUT = {"structured_pruning": {"keep_layers": [0, 2]}}


def logits(model: Any) -> list[list[float]]:
    with torch.no_grad():
        return model.eval()(input_ids=torch.arange(1, 13).reshape(2, 6)).logits.tolist()


def train(folder: str, repo: str, *options: str) -> Any:
    """Losses and logits are not the point here: that a local base model leaves no trace is."""
    base = Path(folder) / "base"
    text_model().save_pretrained(base)
    model = AutoModelForSequenceClassification.from_pretrained(base)
    settings: dict[str, Any] = {"push_to_hub": True, "save_strategy": "epoch", "measure_seconds": 0.05}
    if "checkpoint" in options:
        settings["hub_strategy"] = "checkpoint"
    trainer = build(
        EfficientTrainer,
        EfficientTrainingArguments,
        Path(folder) / "output",
        given={"model": model},
        optimizations=CUT,
        hub_model_id=repo,
        **settings,
    )
    try:
        trainer.train()
        if "again" in options:
            trainer.push_to_hub(license="mit", language="en", tags="mine", finetuned_from=str(base))
    except HubError as error:
        return {"error": str(error), "finished": str(trainer.finished)}
    return {"logits": logits(trainer.model), "finished": str(trainer.finished)}


def load(repo: str) -> Any:
    return {"logits": logits(AutoModelForSequenceClassification.from_pretrained(repo))}


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    print(json.dumps({"train": train, "load": load}[sys.argv[1]](*sys.argv[2:])))

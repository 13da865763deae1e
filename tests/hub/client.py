"""Programs that tests run as processes of their own: the client reads its settings when it is imported.

``python -m tests.hub.client PROGRAM ...``, each of which prints JSON: a function below.
"""

import contextlib
import io
import json
import os
import sys
import warnings
from pathlib import Path
from typing import Any

import torch
import transformers
from huggingface_hub import HfApi, snapshot_download
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer, pipeline

from hf_efficient import EfficientTrainer, EfficientTrainingArguments, HubError, exported_pipeline
from hf_efficient.cli import main
from hf_efficient.data import load as load_data
from hf_efficient.hub import push_folder, repository
from hf_efficient.settings import parse
from hf_efficient.task import get_task
from tests.test_parity import build
from tests.tiny import text_model

CUT = {"structured_pruning": {"keep_layers": [0, 2]}}


def logits(model: Any) -> list[list[float]]:
    with torch.no_grad():
        return model.eval()(input_ids=torch.arange(1, 13).reshape(2, 6)).logits.tolist()


def train(folder: str, repo: str, *options: str) -> Any:
    """Train from a local base model and push; the logits.

    Args:
        options: again: one more push, with metadata; checkpoint: checkpoints are pushed, too.
    """
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
    """The logits of a model on the hub."""
    return {"logits": logits(AutoModelForSequenceClassification.from_pretrained(repo))}


def pushes(run: str) -> Any:
    """For each line with a repository and a token: what `hf-efficient push` ends with, and says."""
    for line in sys.stdin:
        repo, os.environ["HF_TOKEN"] = json.loads(line)
        with contextlib.redirect_stderr(io.StringIO()) as error, contextlib.redirect_stdout(io.StringIO()):
            code = main(["push", run, repo])
        print(json.dumps({"code": code, "error": error.getvalue()}), flush=True)


def space(repo: str, folder: str) -> Any:
    """Download a Space; its files."""
    return sorted(os.listdir(snapshot_download(repo, repo_type="space", local_dir=folder)))


def push_all(folder: str, owner: str) -> Any:
    """Each folder in ``folder`` becomes a repository of its name."""
    for path in sorted(Path(folder).iterdir()):
        push_folder(path, repository(f"{owner}/{path.name}", path))
    return {}


def load_all(owner: str, *names: str) -> Any:
    """Logits of each of some models on the hub."""
    return {name: logits_of(f"{owner}/{name}") for name in names}


def logits_of(model: str) -> list[Any]:
    """What a model of a test's kinds says to fixed inputs."""
    cls = getattr(transformers, AutoConfig.from_pretrained(model).architectures[0])
    if issubclass(cls, transformers.ViTPreTrainedModel):
        batch = {"pixel_values": torch.linspace(-1, 1, 192).reshape(1, 3, 8, 8)}
    else:
        batch = {"input_ids": torch.arange(4, 16).reshape(2, 6)}
    with torch.no_grad():
        return cls.from_pretrained(model).eval()(**batch).logits.tolist()


def answers(repo: str, text: str) -> Any:
    """What a model on the hub and its export say, alone and in pipelines."""
    model = AutoModelForSequenceClassification.from_pretrained(repo)
    batch = AutoTokenizer.from_pretrained(repo)(text, return_tensors="pt")
    with torch.no_grad():
        said = model.eval()(**batch).logits.tolist()
    return {"logits": said, "pipeline": pipeline(model=repo)(text), "export": exported_pipeline(repo)(text)}


def rows(repo: str) -> Any:
    """Push a data set; rows of each split that `hf_efficient.data` loads of it."""
    table = "text,label\n" + "".join(f"text {index},{'ab'[index % 2]}\n" for index in range(20))
    api = HfApi()
    api.create_repo(repo, repo_type="dataset", private=True)
    api.upload_file(path_or_fileobj=table.encode(), path_in_repo="train.csv", repo_id=repo, repo_type="dataset")
    task = get_task("text-classification")
    return {name: len(split) for name, split in load_data(parse(task.data_settings, {"train": repo}, "data")).items()}


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    programs = {each.__name__: each for each in (train, load, answers, rows, space, pushes, push_all, load_all)}
    print(json.dumps(programs[sys.argv[1]](*sys.argv[2:])))

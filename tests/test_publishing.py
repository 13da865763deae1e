"""A finished run goes to the Hub as a whole or not at all, names nothing of this machine, and loads from there."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import ModelCard
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from hf_efficient import ConfigError, HubError, Recipe, publish
from hf_efficient.exported import exported_folder, exported_pipeline
from hf_efficient.publishing import repository_files
from hf_efficient.run import run
from tests.hub.process import ROOT, TOKEN, assert_nothing_local, client, talking, told
from tests.hub.server import Fault, Hub
from tests.ports import free_port
from tests.runs import text_run
from tests.test_run import measure_hastily, tiny_recipe

REPO = "me/small-model"
READS = "token-that-reads"
TEXT = "my card is lost 3"


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a run's runs: a recipe of files here, with an export."""
    return hasty_run(tmp_path_factory.mktemp("run"), ["export={format: onnx, quantize: none}"]).folder


def hasty_run(folder: Path, overrides: list[str]) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        measure_hastily(patch)
        return run(tiny_recipe(folder), overrides, runs=folder / "runs")


@pytest.fixture
def hub() -> Iterator[Hub]:
    with Hub({TOKEN: "me", READS: "me", "token-of-another": "another"}, readers=(READS,)) as server:
        yield server


def pushed(hub: Hub, home: Path, *arguments: Any, token: str = TOKEN) -> "subprocess.CompletedProcess[str]":
    return client(hub.url, home, "hf_efficient", "push", *map(str, arguments), token=token)


@pytest.mark.slow
def test_a_run_is_pushed_and_loads_from_an_empty_cache(finished: Path, hub: Hub, tmp_path: Path) -> None:
    done = pushed(hub, tmp_path / "pusher", finished.parent, "small-model", "--private", "--json")
    assert done.returncode == 0, done.stderr[-2000:]
    url = json.loads(done.stdout)["url"]
    assert url == f"{hub.url}/{REPO}/commit/{hub.commit(REPO).oid}"
    assert hub.repository(REPO).private
    files = hub.files(REPO)
    onnx = {f"onnx/{name}" for name in ("model.onnx", "export.json", "config.json", "tokenizer.json")}
    assert {"README.md", "config.json", "model.safetensors", "report.json", "report.png", "recipe.yaml", *onnx} <= set(
        files
    )
    assert_nothing_local(files, str(finished), *(part for part in finished.parts if "pytest" in part))

    here = AutoModelForSequenceClassification.from_pretrained(finished / "final").eval()
    batch = AutoTokenizer.from_pretrained(finished / "final")(TEXT, return_tensors="pt")
    with torch.no_grad():
        logits = here(**batch).logits.tolist()
    said = told(hub, tmp_path / "loader", "answers", REPO, TEXT)
    assert said["logits"] == logits
    assert said["pipeline"][0]["label"] == said["export"][0]["label"] == exported_label(finished)
    nobody = client(hub.url, tmp_path / "nobody", "tests.hub.client", "load", REPO, token="")
    assert nobody.returncode == 1
    assert "small-model" in nobody.stderr


@pytest.mark.slow
def test_a_portable_model_loads_without_hf_efficient(tmp_path: Path, hub: Hub) -> None:
    cut = json.dumps({"structured_pruning": {"keep_heads": 0.5}, "weight_fusion": {"cluster": 4}})
    result = hasty_run(tmp_path, [f"stages.compress.optimizations={cut}"])
    done = pushed(hub, tmp_path / "pusher", result.folder, REPO, "--portable")
    assert done.returncode == 0, done.stderr[-2000:]
    files = hub.files(REPO)
    assert "modeling_resized.py" in files
    assert "quantization_config" not in json.loads(files["config.json"])
    assert len(files["model.safetensors"]) > (result.folder / "final" / "model.safetensors").stat().st_size
    card = files["README.md"].decode()
    assert f'from_pretrained("{REPO}", trust_remote_code=True)' in card
    assert "import hf_efficient " not in card
    here = AutoModelForSequenceClassification.from_pretrained(result.folder / "final").eval()
    batch = AutoTokenizer.from_pretrained(result.folder / "final")(TEXT, return_tensors="pt")
    with torch.no_grad():
        logits = here(**batch).logits.tolist()
    (tmp_path / "stranger.py").write_text(STRANGER)
    loaded = client(hub.url, tmp_path / "loader", "stranger", REPO, TEXT)
    assert loaded.returncode == 0, loaded.stderr[-2000:]
    said = json.loads(loaded.stdout.splitlines()[-1])
    assert said["logits"] == logits
    assert said["pipeline"] == here.config.id2label[int(torch.tensor(logits).argmax())]
    assert said["untrusted"] != "loaded"


STRANGER = """
import json, sys
sys.modules["hf_efficient"] = None  # as where it is not installed
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer, pipeline
repo, text = sys.argv[1:]
model = AutoModelForSequenceClassification.from_pretrained(repo, trust_remote_code=True).eval()
with torch.no_grad():
    logits = model(**AutoTokenizer.from_pretrained(repo)(text, return_tensors="pt")).logits.tolist()
label = pipeline("text-classification", model=repo, trust_remote_code=True)(text)[0]["label"]
try:
    AutoModelForSequenceClassification.from_pretrained(repo)
    untrusted = "loaded"
except Exception as error:
    untrusted = str(error)
print(json.dumps({"logits": logits, "pipeline": label, "untrusted": untrusted}))
"""


def exported_label(finished: Path) -> str:
    return str(exported_pipeline(finished / "exported")(TEXT)[0]["label"])


@pytest.mark.slow
def test_branches_and_pull_requests(finished: Path, hub: Hub, tmp_path: Path) -> None:
    first = pushed(hub, tmp_path / "home", finished, REPO, "--revision", "next", "--message", "The first")
    assert first.returncode == 0, first.stderr[-2000:]
    assert set(hub.files(REPO)) == {".gitattributes"}
    assert [message for message, _ in hub.commits(REPO, "next")] == ["initial commit", "The first"]
    second = pushed(hub, tmp_path / "home", finished, REPO, "--pr")
    assert second.stdout.splitlines()[-1] == f"{hub.url}/{REPO}/discussions/1"
    assert set(hub.files(REPO)) == {".gitattributes"}
    assert "model.safetensors" in hub.files(REPO, "refs/pr/1")


@pytest.mark.slow
def test_a_space_serves_the_run(hub: Hub, tmp_path: Path) -> None:
    run_folder = text_run(tmp_path / "run")
    done = pushed(hub, tmp_path / "pusher", run_folder, "page", "--space")
    assert done.returncode == 0, done.stderr[-2000:]
    files = hub.files("me/page", kind="spaces")
    assert {"app.py", "requirements.txt", "README.md", "run/recipe.yaml", "run/final/model.safetensors"} <= set(files)
    assert ModelCard(files["README.md"].decode()).data.to_dict()["sdk"] == "gradio"
    assert_nothing_local(files, str(tmp_path))
    folder, port = tmp_path / "space", free_port()
    told(hub, tmp_path / "loader", "space", "me/page", str(folder))
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "GRADIO_SERVER_PORT": str(port)}
    process = subprocess.Popen(
        [sys.executable, "app.py"], cwd=folder, env=environment, stderr=subprocess.PIPE, text=True
    )
    try:
        answer = asked(f"http://127.0.0.1:{port}/api/answer", {"text": TEXT}, process)
    finally:
        process.send_signal(signal.SIGTERM)
        _, error = process.communicate(timeout=60)
    assert "card" in json.dumps(answer), error[-2000:]


def asked(url: str, values: Any, process: Any) -> Any:
    """What the service at ``url`` answers, once it is there."""
    request = urllib.request.Request(url, json.dumps(values).encode(), {"Content-Type": "application/json"})
    for _ in range(600):
        if process.poll() is not None:
            break
        try:
            with urllib.request.urlopen(request) as answer:
                return json.loads(answer.read())
        except urllib.error.URLError:
            time.sleep(0.1)
    return None


FAULTS: dict[str, tuple[str, str, str, Fault | None]] = {
    "unknown token": (REPO, "other", "401", None),
    "a token that may only read": (REPO, READS, "this token may only read", None),
    "of another": ("another/model", TOKEN, "403", None),
    "malformed": ("a/b/c", TOKEN, "a/b/c", None),
    "full disk there": (REPO, TOKEN, "507", Fault("/lfs/", status=507, times=None)),
    "no answer to the commit": (REPO, TOKEN, "not pushed", Fault("/commit/", drop=True)),
}
"""Repository, token, what is said, what goes wrong."""


@pytest.mark.slow
def test_a_push_that_fails_says_why_and_a_retry_completes(finished: Path, hub: Hub, tmp_path: Path) -> None:
    with talking(hub, tmp_path / "home", "pushes", str(finished)) as ask:
        for case, (repository, token, said, fault) in FAULTS.items():
            hub.faults = [fault] if fault else []
            answer = ask([repository, token])
            assert answer["code"] == 2, case
            assert said in answer["error"], case
            assert "push again" in answer["error"], case
            assert token not in answer["error"], case
        hub.faults = []
        assert ask([REPO, TOKEN])["code"] == 0
    assert hub.files(REPO)["model.safetensors"] == (finished / "final" / "model.safetensors").read_bytes()


@pytest.mark.slow
def test_a_connection_that_breaks_is_taken_up_again(finished: Path, hub: Hub, tmp_path: Path) -> None:
    hub.faults = [Fault("/lfs/", "PUT", cut_after=1000)]
    done = pushed(hub, tmp_path / "home", finished, REPO)
    assert done.returncode == 0, done.stderr[-2000:]
    assert hub.files(REPO)["model.safetensors"] == (finished / "final" / "model.safetensors").read_bytes()


@pytest.mark.slow
def test_a_hub_that_is_killed_while_it_receives(finished: Path, tmp_path: Path) -> None:
    port, folder = free_port(), tmp_path / "hub"
    url, hub = f"http://127.0.0.1:{port}", served(folder, port, "--dies")
    done = client(url, tmp_path / "home", "hf_efficient", "push", str(finished), REPO)
    assert hub.wait(10) == -signal.SIGKILL
    assert done.returncode == 2, done.stderr[-2000:]
    assert "push again" in done.stderr
    again = served(folder, port)
    try:
        done = client(url, tmp_path / "home", "hf_efficient", "push", str(finished), REPO)
        assert done.returncode == 0, done.stderr[-2000:]
        loaded = client(url, tmp_path / "loader", "tests.hub.client", "answers", REPO, TEXT)
        assert loaded.returncode == 0, loaded.stderr[-2000:]
    finally:
        again.kill()
        again.wait()


def served(folder: Path, port: int, *options: str) -> "subprocess.Popen[bytes]":
    command = [sys.executable, "-m", "tests.hub.server", str(folder), str(port), *options, f"{TOKEN}=me"]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL)
    for _ in range(200):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return process
        time.sleep(0.1)
    raise AssertionError("the hub does not start")


def test_the_card_shows_what_the_report_says(finished: Path) -> None:
    files = repository_files(finished, REPO)
    card, report = ModelCard(content(files["README.md"])), json.loads(content(files["report.json"]))
    results = {(each.metric_name, each.metric_value) for each in card.data.eval_results or []}
    assert ("accuracy", round(report["metrics_after"]["accuracy"], 6)) in results
    runtime = report["exported"]["runtime"]
    assert (f"accuracy ({runtime})", round(report["metrics_exported"]["accuracy"], 6)) in results
    assert f'exported_pipeline("{REPO}")' in card.text
    assert "user/name" not in card.text
    assert not [note for note in report["notes"] if str(finished) in note]


def test_the_recipe_can_be_read_and_names_nothing_here(finished: Path, tmp_path: Path) -> None:
    text = content(repository_files(finished, REPO)["recipe.yaml"])
    assert text.startswith("# Put files of your own in place of (local path)")
    assert "train: (local path)" in text
    (tmp_path / "recipe.yaml").write_text(text)
    assert list(Recipe.load(tmp_path / "recipe.yaml").stages) == ["finetune", "compress"]


def content(value: Path | bytes) -> str:
    return (value if isinstance(value, bytes) else value.read_bytes()).decode()


def test_what_is_no_finished_run(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is no finished run"):
        publish(tmp_path, REPO)
    with pytest.raises(HubError, match=r"'me/none' cannot be downloaded"):
        exported_folder("me/none")


@pytest.mark.slow
def test_data_from_a_private_repository(hub: Hub, tmp_path: Path) -> None:
    assert told(hub, tmp_path / "home", "rows", "me/rows") == {"train": 18, "validation": 2}

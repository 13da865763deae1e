"""Every block of code in the documents works: Python runs, YAML is what recipes take, commands are ones that there are.

Commands are read by the parser of the command line itself, with their recipes and settings, and not run: most take
minutes. What they do is tested where they live.
"""

import json
import re
import shlex
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import yaml

from hf_efficient.cli import _parsed
from hf_efficient.plan import build_optimizations
from hf_efficient.recipe import Recipe
from tests.docs.blocks import CHINESE, ENGLISH, FILES, ROOT, Block, blocks
from tests.hub.process import TOKEN, client
from tests.hub.server import Hub

LANGUAGES = {"python", "yaml", "sh", "text"}


def all_of(language: str) -> list[Any]:
    return [pytest.param(block, id=str(block)) for file in FILES for block in blocks(file, language)]


def test_every_block_says_its_language() -> None:
    assert {
        str(block): block.language for file in FILES for block in blocks(file) if block.language not in LANGUAGES
    } == {}


PYTHON = [file for file in FILES if file != CHINESE and blocks(file, "python")]


@pytest.fixture(scope="module")
def failed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Document -> traceback of what failed in its Python. All in one process: to start one takes longest."""
    folder = tmp_path_factory.mktemp("documents")
    with Hub({TOKEN: "user"}) as hub:
        done = client(hub.url, folder / "home", "tests.docs.program", *map(str, PYTHON), timeout=580)
    assert done.returncode == 0, f"{done.stdout[-1000:]}\n{done.stderr[-3000:]}"
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
@pytest.mark.parametrize("file", [pytest.param(file, id=str(file.relative_to(ROOT))) for file in PYTHON])
def test_python(file: Path, failed: dict[str, str]) -> None:
    assert str(file) not in failed, failed[str(file)]


def test_the_chinese_readme_has_the_same_code() -> None:
    def code(file: Path) -> list[str]:
        return [re.sub(r" *#.*", "", block.text) for block in blocks(file) if block.language in ("python", "sh")]

    assert [text.replace("bert-base-chinese", "bert-base-uncased") for text in code(CHINESE)] == code(ENGLISH)


@pytest.mark.parametrize("block", all_of("yaml"))
def test_yaml(block: Block, tmp_path: Path) -> None:
    for text in _alternatives(block.text):
        values = yaml.safe_load(text)
        if "task" in values:
            (tmp_path / "mine.yaml").write_text(text)
            Recipe.load(tmp_path / "mine.yaml")
        elif "optimizations" in values:
            build_optimizations(values["optimizations"])
        else:
            Recipe.load("customer-service", [f"{key}={json.dumps(value)}" for key, value in values.items()])


def _alternatives(text: str) -> list[str]:
    """A block of lines for each time that its first key comes again."""
    key = re.match(r"\w+:", text.lstrip("# \n"))
    assert key, text
    return [f"{key[0]}{rest}" for rest in re.split(rf"^{key[0]}", text, flags=re.MULTILINE)[1:]]


@pytest.mark.parametrize("block", all_of("sh"))
def test_commands(block: Block, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    recipe = (ROOT / "recipes" / "customer_service.yaml").read_text(encoding="utf-8")
    for name in ("mine.yaml", "recipe.yaml"):
        Path(name).write_text(recipe)
    for line in _lines(block.text):
        CHECKS[line[0]](line)


def _lines(text: str) -> Iterator[list[str]]:
    """Words of each command, without comments and variables; those of a pipe apart."""
    for line in text.replace("\\\n", " ").splitlines():
        for part in re.split(r" [|&]+ ", line.replace("<time>", "time")):
            words = shlex.split(part, comments=True)
            while words and re.match(r"[A-Z_]+=", words[0]):
                words = words[1:]
            if words:
                yield words[: words.index(">")] if ">" in words else words


def _ours(words: list[str]) -> None:
    if words[1] == "--print-completion":
        return
    options = _parsed(words[1:])
    if "overrides" in options and "recipe" in options:
        Recipe.load(options.recipe, options.overrides)


def _module(words: list[str]) -> None:
    """``python -m hf_efficient ...``, whatever launches it."""
    where = words.index("-m")
    assert words[where + 1] == "hf_efficient"
    _ours(words[where + 1 :])


def _make(words: list[str]) -> None:
    targets = re.findall(r"^(\w[\w -]*):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    assert set(words[1:]) <= set(" ".join(targets).split())


def _pip(words: list[str]) -> None:
    provided = set(metadata.metadata("hf-efficient").get_all("Provides-Extra") or ())
    for extras in re.findall(r"hf-efficient\[(.*?)\]", " ".join(words)):
        assert set(extras.split(",")) <= provided


def _request(words: list[str]) -> None:
    assert json.loads(words[words.index("-d") + 1])
    assert words[-1].endswith("/api/answer")


def _any(words: list[str]) -> None:
    """A program of the reader's, or of somebody else."""


CHECKS = {
    "hf-efficient": _ours,
    "accelerate": _module,
    "torchrun": _module,
    "make": _make,
    "pip": _pip,
    "curl": _request,
    **dict.fromkeys(("producer", "git", "cd", "optuna-dashboard", "jq"), _any),
}

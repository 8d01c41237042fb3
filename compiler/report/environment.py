"""Where and with what a report was made."""

from __future__ import annotations

import os
import platform
from importlib import metadata
from typing import Any

import torch

from compiler.artifact.manifest import now, penstock_version
from compiler.artifact.processor import cpu_flags, cpu_model

FLAGS = ("avx2", "fma", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16", "amx_int8", "amx_bf16")
"""The processor features that decide which kernels an engine takes."""
_PACKAGES = ("torch", "numpy", "onnx", "onnxruntime", "openvino", "transformers")


def environment(threads: int | None) -> dict[str, Any]:
    """The machine and the versions; ``threads`` of ``None`` is every core."""
    flags = cpu_flags()
    return {
        "cpu": cpu_model(),
        "flags": [flag for flag in FLAGS if flag in flags],
        "cores": usable_cores(),
        "threads": threads if threads is not None else torch.get_num_threads(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "python": platform.python_version(),
        "penstock": penstock_version(),
        "versions": {name: found for name in _PACKAGES if (found := _version(name))},
        "date": now(),
    }


def usable_cores() -> int:
    """Hardware threads that this process may use, which a container makes fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""
